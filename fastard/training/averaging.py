"""Averages of the student's weights: EMA and SWA, with BatchNorm's statistics renewed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from fastard.training.config import Resolved


class WeightAverage:
    """The running average of a network that is validated and saved in its place.

    Equivalent to: ``torch.optim.swa_utils.AveragedModel(network, multi_avg_fn=...)``, updated after
    every optimiser step (``"ema"``, with `decay`) or epoch (``"swa"``), and ``update_bn`` before it
    is looked at.

    Args:
        network: the network being trained.
        config: a resolved config whose `average` is "ema", with its decay, or "swa".
    """

    def __init__(self, network: nn.Module, config: Resolved):
        self.kind, self.start = config.average, config.average_start
        self.network = network
        decay = config.ema_decay if self.kind == "ema" else None
        average = None if decay is None else get_ema_multi_avg_fn(decay)
        self.averaged = AveragedModel(network, multi_avg_fn=average)

    def after_step(self, epoch: int) -> None:
        """Takes the weights of a step of this epoch in, where steps are averaged."""
        if self.kind == "ema" and epoch >= self.start:
            self.averaged.update_parameters(self.network)

    def after_epoch(self, epoch: int) -> None:
        """Takes the weights of a finished epoch in, where epochs are averaged."""
        if self.kind == "swa" and epoch >= self.start:
            self.averaged.update_parameters(self.network)

    def renewed(self, images: Iterable[tuple[torch.Tensor, ...]]) -> nn.Module:
        """The averaged network with BatchNorm statistics of one pass over clean training images.

        Before anything was averaged it is the network itself.
        """
        if not self.averaged.n_averaged:
            return self.network
        with torch.no_grad():
            update_bn(images, self.averaged.module)
        return self.averaged.module

    def state_dict(self) -> dict[str, Any]:
        """The average and how many weights entered it."""
        return self.averaged.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what `state_dict` returned."""
        self.averaged.load_state_dict(state)
