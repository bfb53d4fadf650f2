"""Which model an attack runs on, in which mode, with which settings: what the origins share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastard import checks
from fastard.engine import inner_model
from fastard.engine.unwrap import Model
from fastard.kinds import unknown
from fastard.settings import check_values


class AsItIs:
    """A module called in the modes its parts are in, BatchNorm statistics updated as they then are.

    The engine puts a module that it sees into eval or train mode as a whole.
    """

    def __init__(self, model: Model) -> None:
        # In a tuple, where the engine does not look for modules.
        self._inside = (model,)

    def __call__(self, x: Tensor) -> Tensor:
        return self._inside[0](x)


def is_training(model: Model) -> bool:
    """Whether any part of the model is in train mode."""
    inside = inner_model(model)[0]
    return isinstance(inside, nn.Module) and any(m.training for m in inside.modules())


def as_it_is(model: Model) -> Model:
    """The model, to be attacked in its current mode."""
    inside = inner_model(model)[0]
    if isinstance(inside, nn.Module) and not is_training(inside):
        return inside
    return AsItIs(inside)


def device_of(model: Model) -> torch.device | None:
    """The device of the model's parameters; None where it has none."""
    inside = inner_model(model)[0]
    parameters = inside.parameters() if isinstance(inside, nn.Module) else iter(())
    return next((p.device for p in parameters), None)


def check_settings(**settings: Any) -> None:
    """Refuses radii, step sizes and step counts under the names the caller gave them."""
    for name, value in settings.items():
        if name in ("perturb_steps", "steps", "attack_iters", "restarts"):
            checks.steps(value, name)
        else:
            checks.radius(value, None, name)


def check_published(
    distance: str, known: Sequence[str], step_size: Any, epsilon: Any, perturb_steps: Any
) -> None:
    """Refuses settings of TRADES' and MART's losses that are none.

    A `distance` other than the known ones turned the published attacks off without a word.
    """
    if distance not in known:
        raise unknown("distance", distance, known)
    check_settings(step_size=step_size, epsilon=epsilon, perturb_steps=perturb_steps)


def check_optimizer(optimizer: Any) -> None:
    """Refuses what has no gradients to clear."""
    if not callable(getattr(optimizer, "zero_grad", None)):
        raise TypeError(
            f"optimizer must be a torch.optim.Optimizer, but is {checks.describe(optimizer)}."
        )


def check_images(model: Model, x: Tensor, name: str) -> bool:
    """Refuses images that are none or, where values are looked at, outside [0, 1].

    Returns: whether this call looks at values: always on the CPU, elsewhere the first time.
    """
    checks.floating(x, name)
    if x.dim() < 2:
        raise ValueError(f"{name} must be a batch of images [B, C, H, W], but is {list(x.shape)}.")
    # A key of its own: an attack that follows looks at what it is given itself.
    values = check_values(model, ("compat", x.shape, x.dtype, x.device), x.device.type)
    if values:
        checks.in_box(x, 0.0, 1.0)
    return values
