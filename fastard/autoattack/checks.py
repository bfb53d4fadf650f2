"""The official automatic checks: what makes AutoAttack's answer doubtful, in the official words.

The `flags_doc.md` that they name is github.com/fra31/auto-attack/blob/master/flags_doc.md.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor

_SEE = " See flags_doc.md for details."
# Python functions by which a forward would compute gradients.
_GRADIENT_CALLS = ("grad", "backward", "_make_grads")

Logits = Callable[[Tensor], Tensor]


class AutoAttackWarning(UserWarning):
    """A flag of AutoAttack's checks: the robust accuracy it finds may be too high."""


def randomized(
    logits: Logits, x: Tensor, y: Tensor, runs: int = 5, alpha: float = 1e-4
) -> str | None:
    """The flag where accuracy differs between forwards, or normalised logits by more than alpha."""
    right, outputs = set(), []
    for _ in range(runs):
        output = logits(x)
        right.add(int((output.argmax(1) == y).sum()))
        outputs.append(output / (output.norm(dim=1, keepdim=True) + 1e-10))
    apart = [float((a - b).norm(dim=1).max()) for a, b in itertools.combinations(outputs, 2)]
    if len(right) > 1 or max(apart) > alpha:
        return f'it seems to be a randomized defense! Please use version="rand".{_SEE}'
    return None


def range_output(output: Tensor, alpha: float = 1e-5) -> str | None:
    """The flag where every row of a model's output is a probability distribution."""
    sums = (output.sum(1) - 1).abs()
    if bool((output.max() < 1 + alpha) & (output.min() > -alpha) & (sums < alpha).all()):
        return (
            "it seems that the output is a probability distribution, please be sure that the "
            f"logits are used!{_SEE}"
        )
    return None


def dynamic(logits: Callable[[Tensor], Any], x: Tensor) -> str | None:
    """The flag where a forward calls what computes gradients: it optimises while it answers."""
    calls = 0

    def watch(frame: FrameType, event: str, _: Any) -> None:
        nonlocal calls
        calls += event == "call" and frame.f_code.co_name in _GRADIENT_CALLS

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        with torch.enable_grad():
            logits(x)
    finally:
        sys.settrace(before)
    if calls:
        return (
            "it seems to be a dynamic defense! The evaluation with AutoAttack might be "
            f"insufficient.{_SEE}"
        )
    return None


def n_classes(
    classes: int, attacks: Sequence[str], apgd_targets: int, fab_targets: int
) -> str | None:
    """The flag where attacks need more classes than there are."""
    message = None
    if "apgd-dlr" in attacks or "apgd-t" in attacks:
        if classes <= 2:
            message = f"with only {classes} classes it is not possible to use the DLR loss!"
        elif classes == 3:
            message = (
                f"with only {classes} classes it is not possible to use the targeted DLR loss!"
            )
        elif "apgd-t" in attacks and apgd_targets + 1 > classes:
            message = (
                f"it seems that more target classes ({apgd_targets}) than possible "
                f"({classes - 1}) are used in APGD-T!"
            )
    if "fab-t" in attacks and fab_targets + 1 > classes:
        if message is None:
            return (
                f"it seems that more target classes ({fab_targets}) than possible "
                f"({classes - 1}) are used in FAB-T!"
            )
        message += (
            f" Also, it seems that too many target classes ({fab_targets}) are used in FAB-T "
            f"({classes - 1} possible)!"
        )
    return message


def zero_gradients(grad: Tensor) -> str | None:
    """The flag where an image's gradient at a start is zero throughout; reads their number."""
    zero = int((grad.flatten(1).abs().sum(1) == 0).sum())
    if zero:
        return (
            f"there are {zero} points with zero gradient! This might lead to unreliable evaluation "
            f"with gradient-based attacks.{_SEE}"
        )
    return None


def square_success(accuracy: Mapping[str, float], alpha: float = 0.002) -> str | None:
    """The flag where Square lowers the robust accuracy by more than alpha below all others."""
    if "square" not in accuracy or len(accuracy) < 3:
        return None
    best = min(value for name, value in accuracy.items() if name != "square")
    if accuracy["square"] < best - alpha:
        return (
            f"Square Attack has decreased the robust accuracy of {best - accuracy['square']:.2%}. "
            "This might indicate that the robustness evaluation using AutoAttack is unreliable. "
            "Consider running Square Attack with more iterations and restarts or an adaptive "
            f"attack.{_SEE}"
        )
    return None
