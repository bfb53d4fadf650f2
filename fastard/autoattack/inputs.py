"""What an evaluation is given, refused in one sentence before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastard import checks
from fastard.attacks.draws import require_seed
from fastard.attacks.square_schedule import Squares
from fastard.engine.unwrap import Model, inner_model, modules_behind
from fastard.kinds import parse_norm

_WHOLE = (torch.float32, torch.float64)


def _weights(model: Model) -> set[torch.dtype]:
    """The floating dtypes of the parameters that a model runs with, as far as they are seen."""
    parameters = (p for module in modules_behind(model) for p in module.parameters())
    return {p.dtype for p in parameters if p.is_floating_point()}


def attacked_dtype(model: Model, x: Tensor) -> torch.dtype:
    """float64 for float64 images of a model that takes them, else float32."""
    known = _weights(model)
    wide = x.dtype == torch.float64 and (not known or torch.float64 in known)
    return torch.float64 if wide else torch.float32


def checked_images(
    model: Model, x: Tensor, y: Tensor, bs: int, ids: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The labels on x's device in int64, and the samples' ids.

    Raises:
        TypeError, ValueError: what is not an evaluation's x_orig, y_orig, bs or ids.
    """
    if not isinstance(x, Tensor) or x.dtype not in _WHOLE:
        raise TypeError(f"x_orig must be float32 or float64, but is {checks.describe(x)}.")
    known = _weights(model)
    if known and not known & set(_WHOLE):
        raise TypeError(
            f"model must have float32 or float64 weights, as verdicts are, but has {known.pop()}: "
            "pass model.float()."
        )
    narrow = x.dtype == torch.float64 and attacked_dtype(model, x) != x.dtype
    inside = inner_model(model)[0]
    # A function may cast what it is given; a module takes what its weights are.
    wide = isinstance(inside, nn.Module) and _weights(inside) == {torch.float64}
    if narrow or (wide and x.dtype == torch.float32):
        weights = "float64" if wide else "float32"
        raise TypeError(
            f"x_orig must be {weights} for this model's weights, but is {checks.describe(x)}."
        )
    if x.dim() < 2 or len(x) == 0:
        raise ValueError(
            f"x_orig must be a batch of images [N, C, H, W], N >= 1, but is {list(x.shape)}."
        )
    low, high = (v.item() for v in torch.aminmax(x.detach()))
    # One rounding, for images that were interpolated; NaN fails both comparisons.
    slack = torch.finfo(x.dtype).eps
    if not (low >= -slack and high <= 1 + slack):
        raise ValueError(
            f"x_orig must lie in [0, 1], but its values span [{low:.8g}, {high:.8g}]: pass "
            "images before normalisation, which belongs into the model."
        )
    checks.steps(bs, "bs")
    if isinstance(y, Tensor):
        y = y.to(x.device)
    y = checks.labels(y, len(x), x.device, "y_orig").to(torch.int64)
    if ids is None:
        return y, torch.arange(len(x))
    if not isinstance(ids, Tensor) or ids.dtype != torch.int64 or ids.shape != (len(x),):
        raise ValueError(
            f"ids must be int64 [{len(x)}], one a sample, but is {checks.describe(ids)}."
        )
    return y, ids.cpu()


def require_square_fits(x: Tensor, norm: str, eps: float) -> None:
    """Raises ValueError for images that Square cannot take."""
    try:
        Squares(parse_norm(norm), eps).require_fits(x)
    except ValueError as error:
        raise ValueError(f"square cannot attack x_orig: {error}") from None


def require_place(path: str | Path | None, name: str) -> None:
    """Raises ValueError for a file that cannot be written: a folder, or in none that exists."""
    if path is None:
        return
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{name} must be a file, but {path} is a folder.")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{name} must lie in a folder that exists, but is {path}.")


def checked_seed(seed: Any) -> float | None:
    """The seed as a Python number.

    Raises:
        TypeError, ValueError: it is no number, or not one of 64 bits.
    """
    if seed is None:
        return None
    number = checks.number(seed, "seed")
    require_seed(number)
    return int(seed) if hasattr(seed, "__index__") else number
