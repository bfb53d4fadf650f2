"""Reading weights out of whatever file holds them.

No pickle is ever executed: torch files are read with `weights_only=True`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

# Where published training code puts the weights among its other entries, and what wrappers put in
# front of every key.
CONTAINERS = ("state_dict", "model_state_dict", "model", "net", "student")
PREFIXES = ("module.", "_orig_mod.", "model.")
# Buffers of a normalising layer in front of the network, and what else such wrappers hold.
MEANS, STDS = ("mean", "mu", "new_mean"), ("std", "sigma", "new_std")
LAYERS = ("", "normalize.", "normalizer.", "normalization.", "0.")
BESIDE = "attacker."


def load_state(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a checkpoint under plain names, and what the file says about them.

    A safetensors file is recognised by its suffix; everything else is read as a torch file. Dicts
    with the weights under "state_dict", "model_state_dict", "model", "net" or "student" are opened,
    and the prefixes "module.", "_orig_mod." and "model." removed where all keys bear them. For
    files that `save` did not write, the second value holds at most "extra", the numbers and strings
    that stand beside the weights, and "mean" and "std", where a normalising layer in front of the
    network keeps them among the weights (as "normalize.mean", "normalizer.new_mean", "mu", ...).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or holds no weights.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint at {path}")
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    # Damaged bytes surface as whatever the parser stumbles over, from EOFError to KeyError.
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ValueError(f"{path} is damaged or not a checkpoint: {reason}") from error
    return _open_container(path, content)


def describes_itself(path: str | os.PathLike[str]) -> bool:
    """Whether a file names its architecture, as those of `save` do; reads its header only."""
    try:
        if Path(path).suffix != ".safetensors":
            return False
        with safe_open(path, framework="pt") as file:
            return "architecture" in (file.metadata() or {})
    # `load_state` says what is wrong with it.
    except (OSError, SafetensorError):
        return False


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    if "architecture" not in metadata:
        return _take_normaliser(_strip_prefixes(state))
    return state, {key: json.loads(value) for key, value in metadata.items()}


def _open_container(path: Path, content: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    extra: dict[str, Any] = {}
    if isinstance(content, Mapping):
        for name in CONTAINERS:
            if isinstance(content.get(name), Mapping):
                plain = (bool, int, float, str)
                extra = {k: v for k, v in content.items() if isinstance(v, plain)}
                content = content[name]
                break
    if not isinstance(content, Mapping) or not content:
        raise ValueError(
            f"{path} holds a {type(content).__name__} but must hold a non-empty state_dict, "
            f"or a dict with one under {', '.join(map(repr, CONTAINERS))}"
        )
    for key, value in content.items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"entry {key!r} of {path} is a {type(value).__name__} but must be a tensor"
            )
    state, normaliser = _take_normaliser(_strip_prefixes(dict(content)))
    return state, {**normaliser, **({"extra": extra} if extra else {})}


def _take_normaliser(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    for layer in LAYERS:
        for mean, std in zip(MEANS, STDS, strict=True):
            if f"{layer}{mean}" in state and f"{layer}{std}" in state:
                found = {"mean": state[f"{layer}{mean}"], "std": state[f"{layer}{std}"]}
                rest = {
                    key: value
                    for key, value in state.items()
                    if key not in (f"{layer}{mean}", f"{layer}{std}") and not key.startswith(BESIDE)
                }
                if layer == "0." and all(key.startswith("1.") for key in rest):
                    rest = {key.removeprefix("1."): value for key, value in rest.items()}
                return _strip_prefixes(rest), {k: v.flatten().tolist() for k, v in found.items()}
    return state, {}


def _strip_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in PREFIXES if state else ():
        if all(key.startswith(prefix) for key in state):
            return _strip_prefixes({k.removeprefix(prefix): v for k, v in state.items()})
    return state
