"""Single numbers made of a network's clean and robust accuracy."""

from __future__ import annotations


def weighted_robust_accuracy(clean: float, robust: float, weight: float = 0.5) -> float:
    """Clean and robust accuracy in one number.

    Equivalent to: ``(1 - weight) * clean + weight * robust``

    The mean of both (weight 0.5) is how B-MTARD's published code selects its best checkpoint
    (Zhao et al. 2024). Deng et al. 2024 (DARHT) report a weighted robust accuracy; that it is this
    one is not confirmed by the paper's text.

    Args:
        clean, robust: accuracies in [0, 1].
        weight: of the robust one, in [0, 1].

    Raises ValueError for a number outside [0, 1].
    """
    for name, value in (("clean", clean), ("robust", robust), ("weight", weight)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must lie between 0 and 1, but is {value}.")
    return (1 - weight) * clean + weight * robust
