"""The official code's warning of samples whose gradient is zero."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor


def warn_of_zero_gradients(grad: Tensor, logger: Any = None) -> None:
    """Says how many rows of `grad` are zero, in the official words, if any is.

    Args:
        logger: told by its `warning`; without one a Python warning is made.
    """
    zero = int((grad.flatten(1).abs().sum(-1) == 0).sum())
    if not zero:
        return
    message = (
        f"there are {zero} points with zero gradient! This might lead to unreliable evaluation "
        "with gradient-based attacks. See flags_doc.md for details."
    )
    if logger is None:
        warnings.warn(Warning(message), stacklevel=2)
    else:
        logger.warning(message)
