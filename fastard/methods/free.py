"""Free adversarial training (Shafahi et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from fastard import ops, rows
from fastard.methods.base import Logs, Method, accuracy, require_labels
from fastard.methods.options import BallOptions
from fastard.methods.recipes import Preset


class Free(Method):
    """Trains `m` times on each batch and attacks with the gradients that training makes anyway.

    Equivalent to, with a perturbation that is carried over from batch to batch::

        for _ in range(method.replays):
            x_adv = (x + delta).requires_grad_()
            loss = F.cross_entropy(student(x_adv), y)
            optimizer.zero_grad()
            loss.backward()
            x_adv = (x_adv + eps * x_adv.grad.sign()).clamp(x - eps, x + eps).clamp(0, 1)
            delta = x_adv - x
            optimizer.step()

    The loop is the trainer's: it calls the method `replays` times a batch and
    `method.after_backward()` between ``loss.backward()`` and ``optimizer.step()``; that call moves
    the perturbation. No teacher; one pass of x', in train mode, gives both gradients. The
    perturbation is part of `state_dict()`.

    Source: Shafahi et al. 2019 (arXiv 1904.12843), github.com/ashafahi/free_adv_train. The
        perturbation is held in the box as in github.com/locuslab/fast_adversarial.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(BallOptions):
        m: int = 8
        """How often each batch is trained on."""
        step: float = 1.0
        """Size of the step in units of eps."""
        clip_start: bool = False
        """Clips x plus the carried perturbation to the box before the pass."""

        def __post_init__(self) -> None:
            super().__post_init__()
            self._count("m")
            self._number("step", low=0)
            self._flag("clip_start")
            if isinstance(self.eps, torch.Tensor):
                raise ValueError("option eps must be one number for free, but is a tensor.")

    options: Options
    name = "free"
    presets: ClassVar[tuple[Preset, ...]] = (
        Preset(
            name="free",
            method="free",
            source="github.com/ashafahi/free_adv_train, config.py: 80,000 steps, 8 a batch, drops "
            "at 40,000 and 60,000, here in epochs of 391 batches; it keeps the last step",
            student="wrn-34-10",
            epochs=26,
            milestones=(13, 19),
            selection="last",
            official=True,
        ),
    )
    _delta: torch.Tensor = torch.empty(0)
    _trained: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def replays(self) -> int:
        return self.options.m

    def attack(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The images with the perturbation that earlier passes left; makes no pass itself."""
        if self._trained is not None:
            raise RuntimeError(
                "method 'free' needs method.after_backward() after every loss.backward(), but the "
                "one of the last batch is missing."
            )
        x_adv = x.detach() + self._carried(x)
        if self.options.clip_start:
            x_adv = x_adv.clamp(self.options.clip_min, self.options.clip_max)
        return x_adv

    def outer(
        self, x: torch.Tensor, x_adv: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, Logs]:
        x_adv = x_adv.detach().requires_grad_()
        logits = self.student(x_adv)
        require_labels(y, logits)
        loss = F.cross_entropy(logits, y)
        if loss.requires_grad:
            self._trained = x.detach(), x_adv
        return loss, {"loss": loss.detach(), "robust_accuracy": accuracy(logits, y)}

    def after_backward(self) -> None:
        """Moves the perturbation along the gradient of the pass that was just backpropagated."""
        if self._trained is None or self._trained[1].grad is None:
            raise RuntimeError("after_backward() must follow loss.backward() of a new loss.")
        (x, x_adv), self._trained = self._trained, None
        assert x_adv.grad is not None
        options = self.options
        moved = ops.pgd_step_(
            x_adv.detach().clone(),
            x_adv.grad,
            x,
            options.eps,
            options.step * options.eps,
            options.norm,
            options.clip_min,
            options.clip_max,
        )
        moves = rows.gathered(moved - x)
        self._delta[: len(moves)] = moves

    def _carried(self, x: torch.Tensor) -> torch.Tensor:
        """The perturbation of the batch's places, the first ones, zero where there was none."""
        count = rows.parts() * len(x)
        if self._delta.shape[1:] != x.shape[1:]:
            self._delta = x.new_zeros((0, *x.shape[1:]))
        self._delta = self._delta.to(x)
        if (new := count - len(self._delta)) > 0:
            self._delta = torch.cat([self._delta, x.new_zeros((new, *x.shape[1:]))])
        return rows.mine(self._delta[:count])

    # Not a buffer: its size is that of batches, which are not known when a state is loaded.
    def get_extra_state(self) -> torch.Tensor:
        return self._delta

    def set_extra_state(self, state: torch.Tensor) -> None:
        self._delta = state.clone()
