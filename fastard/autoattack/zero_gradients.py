"""The official code's warning of samples whose gradient is zero."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor

from fastard.autoattack.checks import zero_gradients


def warn_of_zero_gradients(grad: Tensor, logger: Any = None) -> None:
    """Says how many rows of `grad` are zero, in the official words, if any is.

    Args:
        logger: told by its `warning`; without one a Python warning is made.
    """
    message = zero_gradients(grad)
    if message is None:
        return
    if logger is None:
        warnings.warn(Warning(message), stacklevel=2)
    else:
        logger.warning(message)
