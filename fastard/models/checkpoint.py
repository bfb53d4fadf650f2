"""Checkpoints that know their architecture, written as safetensors."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fastard.files import atomic_path
from fastard.models.logit_map import LogitMap
from fastard.models.normalized import Normalized
from fastard.models.registry import build, find
from fastard.models.state_files import load_state
from fastard.models.wideresnet import WideResNet


def save(
    path: str | os.PathLike[str],
    model: nn.Module,
    *,
    name: str,
    num_classes: int = 10,
    in_channels: int | None = None,
    image_size: int | None = None,
    kwargs: Mapping[str, Any] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write `model` to `path` (.safetensors) with all that `load_checkpoint` needs, atomically.

    `name`, `num_classes`, `in_channels`, `image_size` and `kwargs` are what `build` was called
    with. A `Normalized` model is stored as the network inside and its mean and std; give `mean` and
    `std` for a network whose input the caller normalises. A `LogitMap` is stored with its rows,
    `num_classes` being the classes of its prediction. DDP and `torch.compile` wrappers are
    looked through. `extra` is any JSON object, returned as `meta["extra"]`.

    Raises:
        ValueError: `path` does not end in .safetensors, mean and std are given twice or one without
            the other, or the model is not the network described: no file is written that could not
            be loaded.
        TypeError: `extra` or `kwargs` cannot be written as JSON.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"a checkpoint is written as .safetensors but the path is {path}")
    _require_both_or_none(mean, std)
    model, normaliser = _apart(_unwrap(model))
    if normaliser is not None:
        if mean is not None:
            raise ValueError("mean and std are given although the model is Normalized already")
        mean, std = _shortest(normaliser.mean), _shortest(normaliser.std)
    meta = _describe(
        name,
        num_classes=num_classes,
        in_channels=in_channels,
        image_size=image_size,
        kwargs=kwargs,
        mean=mean,
        std=std,
        extra=extra,
        logit_map=model.description() if isinstance(model, LogitMap) else None,
    )
    state = model.state_dict()
    if isinstance(model, LogitMap) and normaliser is model.backbone:
        state = {re.sub(r"^backbone\.model\.", "backbone.", k): v for k, v in state.items()}
    require_fit(state, _skeleton(meta), meta, source="the model to save")
    metadata = {key: json.dumps(value) for key, value in meta.items()}
    # A copy of each tensor, because safetensors refuses tensors that share memory.
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in state.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata)


def load_checkpoint(
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    num_classes: int | None = None,
    in_channels: int | None = None,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    device: str | torch.device = "cpu",
    **kwargs: Any,
) -> tuple[nn.Module, dict[str, Any]]:
    """Read a checkpoint and return `(model, meta)`, the model in eval mode on `device`.

    A file of `save` needs nothing but its path. Any other file (a state_dict in .pt, .pth, .th or
    .safetensors, see `load_state`) needs `name`, and `num_classes` where it is not 10. Arguments
    given win over what the file says; `kwargs` go to `build`.

    The model takes images in [0, 1]: it is `Normalized` where the file or the arguments `mean` and
    `std` say so, and for foreign files of resnet56, resnet4b and cnn_a with the normaliser that
    their public weights were trained behind. `meta` has the keys architecture, num_classes,
    in_channels, image_size, kwargs, mean, std and extra, and logit_map where the network is a
    `LogitMap`. No random numbers are drawn.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, its architecture is not known, or it does not fit the
            network (the sentence names the first missing, unexpected or wrongly shaped entry).
    """
    _require_both_or_none(mean, std)
    state, stored = _read(path)
    name = name or stored.get("architecture")
    if name is None:
        raise ValueError(f"{path} does not say its architecture: give name=, such as 'resnet18'")
    if "architecture" not in stored:
        mean_there, std_there = find(name).normaliser(num_classes or 10)
        stored = {"mean": mean_there, "std": std_there, **stored}
        if find(name).make is WideResNet and not any(k.startswith("sub_block1.") for k in state):
            # TRADES' checkpoints hold this stage, which its forward never uses, and others do not.
            kwargs.setdefault("sub_block", False)
    elif stored["architecture"] != name:
        # Keywords of another architecture mean nothing to this one.
        stored = {**stored, "kwargs": {}, "logit_map": None}
    given = {
        "num_classes": num_classes,
        "in_channels": in_channels,
        "image_size": image_size,
        "kwargs": {**stored.get("kwargs", {}), **kwargs},
        "mean": mean,
        "std": std,
    }
    given = {key: value for key, value in given.items() if value is not None}
    meta = _describe(name, **{**stored, **given})
    model: nn.Module = _skeleton(meta)
    require_fit(state, model, meta, source=str(path))
    assign(model, state)
    if meta["mean"] is not None:
        # A map stays outermost, where the method that trains it looks for it.
        if isinstance(model, LogitMap):
            model.backbone = Normalized(model.backbone, meta["mean"], meta["std"])
        else:
            model = Normalized(model, meta["mean"], meta["std"])
    return model.to(device).eval(), meta


class Described(Protocol):
    """A dataset's name and what a network must fit, as `fastard.data.Splits` has them."""

    @property
    def name(self) -> str: ...

    @property
    def num_classes(self) -> int: ...

    @property
    def in_channels(self) -> int: ...

    @property
    def image_size(self) -> int: ...


def require_fits(meta: Mapping[str, Any], splits: Described, *, source: str) -> None:
    """Check that the network of `meta`, from `load_checkpoint`, takes the images of a dataset.

    Raises:
        ValueError: classes or channels differ, or the image size does where it matters; `source`
            says in the sentence which network it is.
    """
    architecture = find(meta["architecture"])
    keys = ["num_classes", "in_channels"]
    if architecture.takes_size or architecture.only_size is not None:
        keys.append("image_size")
    for key in keys:
        has, needed = meta[key], getattr(splits, key)
        if has != needed:
            raise ValueError(f"{source} has {key}={has}, but {splits.name} needs {needed}.")


def load(path: str | os.PathLike[str], **options: Any) -> nn.Module:
    """Return the model alone.

    Equivalent to: `load_checkpoint(path, **options)[0]`.
    """
    return load_checkpoint(path, **options)[0]


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        return load_state(path)
    except ValueError as error:
        if not isinstance(error.__cause__, pickle.UnpicklingError):
            raise
        # torch's own sentence advises to read the file unsafely.
        found = re.search(r"GLOBAL ([\w.]+)", str(error.__cause__))
        holds = f"it holds a {found[1]}" if found else "it is no torch file"
        raise ValueError(
            f"{path} is damaged or not a checkpoint: {holds}, and only tensors and plain values "
            "are read"
        ) from error.__cause__


def _describe(name: str, **given: Any) -> dict[str, Any]:
    architecture = find(name)
    meta: dict[str, Any] = {
        "num_classes": 10,
        "in_channels": architecture.in_channels,
        "image_size": architecture.image_size,
        "kwargs": {},
        "mean": None,
        "std": None,
        "extra": {},
    }
    meta.update({key: value for key, value in given.items() if value is not None})
    for key in ("mean", "std"):
        meta[key] = None if meta[key] is None else [float(value) for value in meta[key]]
        if meta[key] is not None and len(meta[key]) != meta["in_channels"]:
            raise ValueError(
                f"{key} has {len(meta[key])} values but must have one for each of the "
                f"{meta['in_channels']} channels"
            )
    return {**meta, "architecture": name}


def _skeleton(meta: Mapping[str, Any]) -> nn.Module:
    # On the meta device nothing is allocated and no random number is drawn.
    rows = meta.get("logit_map")
    with torch.device("meta"):
        network = build(
            meta["architecture"],
            meta["num_classes"] * (rows["teachers"] if rows else 1),
            in_channels=meta["in_channels"],
            image_size=meta["image_size"],
            **meta["kwargs"],
        )
        return LogitMap(network, num_classes=meta["num_classes"], **rows) if rows else network


def _apart(model: nn.Module) -> tuple[nn.Module, Normalized | None]:
    """The network to store, and the normaliser around it or around its backbone."""
    if isinstance(model, Normalized):
        return _unwrap(model.model), model
    if isinstance(model, LogitMap) and isinstance(model.backbone, Normalized):
        return model, model.backbone
    return model, None


def require_fit(
    state: Mapping[str, Tensor], model: nn.Module, meta: Mapping[str, Any], *, source: str
) -> None:
    """Check that `state` has the entries and shapes of `model`.

    Raises:
        ValueError: it has not; `source` and `meta` say in the sentence whose and what it was.
    """
    expected = model.state_dict()
    misfit = f"{source} is not a {meta['architecture']} with num_classes={meta['num_classes']}"
    missing = [k for k in expected if k not in state and not _is_counter(k)]
    unexpected = [k for k in state if k not in expected]
    if missing:
        also = f", and it has {unexpected[0]!r}, which such a network has not" if unexpected else ""
        raise ValueError(f"{misfit}: it lacks {missing[0]!r} ({len(missing)} in all){also}")
    if unexpected:
        raise ValueError(
            f"{misfit}: it has {unexpected[0]!r} ({len(unexpected)} in all), "
            "which such a network has not"
        )
    for key, target in expected.items():
        if key in state and state[key].shape != target.shape:
            raise ValueError(
                f"{misfit}: its {key!r} has shape {list(state[key].shape)} "
                f"but must have {list(target.shape)}"
            )


def assign(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give `model`, on any device, the tensors of `state`."""
    whole = {}
    for key, target in model.state_dict().items():
        if key in state:
            whole[key] = state[key].to(target.dtype)
        else:
            whole[key] = torch.zeros(target.shape, dtype=target.dtype)
    model.load_state_dict(whole, assign=True)


def _is_counter(key: str) -> bool:
    # Files from before PyTorch 0.4.1 do not count batches; the default batch norm never reads it.
    return key.endswith("num_batches_tracked")


def _require_both_or_none(mean: object, std: object) -> None:
    if (mean is None) != (std is None):
        raise ValueError(f"mean is {mean} and std is {std} but they must be given together")


def _unwrap(model: nn.Module) -> nn.Module:
    for attribute in ("_orig_mod", "module"):
        inner = getattr(model, attribute, None)
        if isinstance(inner, nn.Module):
            return _unwrap(inner)
    return model


def _shortest(values: Tensor) -> list[float]:
    # The shortest decimal that gives the same float32: 0.4914 rather than 0.49140000343322754.
    return [float(str(v)) for v in values.detach().float().cpu().flatten().numpy()]
