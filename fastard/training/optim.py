"""The optimiser's step: parameter groups, mixed precision's loss scale, clipping."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from fastard.training.config import Resolved
from fastard.training.sharded import divide_momentum

_IMPLEMENTATIONS: dict[str, dict[str, bool | None]] = {
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "loop": {"foreach": False},
}


def groups(parameters: Iterable[nn.Parameter], decay: float, *, spare: bool) -> list[dict]:
    """Parameter groups for an optimiser; with `spare`, one-dimensional ones have no decay.

    Equivalent to: ``[{"params": matrices, "weight_decay": decay}, {"params": vectors,
    "weight_decay": 0.0}]``; the second group holds biases, normalisations and single numbers.
    """
    everything = list(parameters)
    if not spare:
        return [{"params": everything, "weight_decay": decay}]
    chosen = {
        decay: [p for p in everything if p.dim() > 1],
        0.0: [p for p in everything if p.dim() <= 1],
    }
    return [{"params": found, "weight_decay": d} for d, found in chosen.items() if found]


class Stepper:
    """SGD with what belongs to its step; `state_dict` holds all of it.

    Args:
        parameters: what is trained.
        config: a resolved config.
        device: where the parameters are.
        scaled: whether gradients are scaled against fp16's underflow (torch.amp.GradScaler).
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        config: Resolved,
        device: torch.device,
        *,
        scaled: bool,
    ):
        self.parameters = list(parameters)
        self.clip = config.clip_grad
        auto = {"fused": True} if device.type == "cuda" else {}
        # Decay 0 must not merge the two groups.
        self.sgd = torch.optim.SGD(
            groups(self.parameters, config.weight_decay, spare=config.no_decay_norm_bias),
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            **(auto if config.sgd == "auto" else _IMPLEMENTATIONS[config.sgd]),
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=scaled)

    def set_lr(self, lr: float) -> None:
        """Sets the learning rate of every group."""
        for group in self.sgd.param_groups:
            group["lr"] = lr

    def backward(self, loss: torch.Tensor) -> None:
        """Backpropagates into fresh gradients."""
        self.sgd.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()

    def step(self) -> None:
        """Clips the gradients and steps; a step whose scaled gradients overflowed is left out."""
        if self.clip is not None:
            self.scaler.unscale_(self.sgd)
            torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.scaler.step(self.sgd)
        self.scaler.update()

    def momentum(self) -> Iterator[torch.Tensor]:
        """What the optimiser remembers of each parameter."""
        for state in self.sgd.state.values():
            yield from (value for value in state.values() if isinstance(value, torch.Tensor))

    def state_dict(self) -> dict[str, Any]:
        """Momentum and loss scale."""
        return {"sgd": self.sgd.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores momentum and loss scale; the hyper-parameters stay as they were set here."""
        mine = [{k: v for k, v in g.items() if k != "params"} for g in self.sgd.param_groups]
        self.sgd.load_state_dict(state["sgd"])
        divide_momentum(self.sgd)
        for group, values in zip(self.sgd.param_groups, mine, strict=True):
            group.update(values)
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
