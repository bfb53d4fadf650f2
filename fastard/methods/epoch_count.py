"""Methods that change with the epoch, and a state that says which one it is."""

from __future__ import annotations

import torch

from fastard.methods.base import Method


class EpochCount(Method):
    """A method that knows its epoch: what `on_epoch` said last, kept in `state_dict()`."""

    epoch: int = 1

    def on_epoch(self, epoch: int, epochs: int) -> None:
        self.epoch = epoch

    # Not a buffer: reading one on a GPU would synchronise in every step.
    def get_extra_state(self) -> torch.Tensor:
        return torch.tensor(self.epoch)

    def set_extra_state(self, state: torch.Tensor) -> None:
        self.epoch = int(state)
