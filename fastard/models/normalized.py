"""A network with its input normalisation in front."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalized(nn.Module):
    """Wrap `model` so that it takes raw images in [0, 1].

    Equivalent to: `model((x - mean) / std)`, with one mean and one standard deviation a channel.
    Both are constants of the architecture: they follow `.to()`, and are not in the state_dict.

    Raises:
        ValueError: `mean` and `std` differ in length or are not finite, or a std is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        mean: Sequence[float] | Tensor,
        std: Sequence[float] | Tensor,
    ) -> None:
        super().__init__()
        mean, std = _per_channel("mean", mean), _per_channel("std", std)
        if mean.shape != std.shape:
            raise ValueError(
                f"mean has {mean.numel()} values and std {std.numel()} but both need one a channel"
            )
        if not bool((std > 0).all()):
            raise ValueError(f"std is {std.flatten().tolist()} but must be positive")
        self.model = model
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.model((x - self.mean) / self.std)

    def extra_repr(self) -> str:
        return f"mean={self.mean.flatten().tolist()}, std={self.std.flatten().tolist()}"


def _per_channel(name: str, values: Sequence[float] | Tensor) -> Tensor:
    tensor = torch.as_tensor(values, dtype=torch.float32).detach().clone().reshape(1, -1, 1, 1)
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name} is {tensor.flatten().tolist()} but must be finite")
    return tensor
