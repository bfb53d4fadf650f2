"""What training on one batch is: attack, loss, backward pass, optimiser step."""

from __future__ import annotations

import contextlib

import torch
from torch import nn

from fastard.data import Batch
from fastard.device import Clock
from fastard.engine.precision import Precision, arithmetic
from fastard.methods import Method
from fastard.methods.base import Logs
from fastard.training.averaging import WeightAverage
from fastard.training.awp import AWP
from fastard.training.config import Resolved
from fastard.training.optim import Stepper
from fastard.training.ranks import Ranks


class BatchStep:
    """Trains a method's student on batches; ``steps(batch, epoch)`` returns each replay's logs.

    Args:
        method: with the student, in train mode.
        student: the network itself, where the method has it compiled.
        stepper: steps the optimiser.
        average: takes the weights in after each step.
        config: a resolved config.
        precision: of attack and passes; None as torch is set.
        clock: counts the sections attack, teacher and student.
        ranks: the processes of which each has a part of the batch.
    """

    def __init__(
        self,
        method: Method,
        student: nn.Module,
        stepper: Stepper,
        average: WeightAverage | None,
        config: Resolved,
        precision: Precision | None,
        clock: Clock,
        ranks: Ranks,
    ):
        self.method, self.student, self.stepper = method, student, stepper
        self.average, self.config, self.precision, self.clock = average, config, precision, clock
        method.attack_timer = clock.section("attack")
        for part in method.modules():
            # A method over another one asks the teachers through it.
            if isinstance(part, Method):
                part.teacher_timer = clock.section("teacher")
        self.awp = None
        if config.awp_gamma > 0:
            self.awp = AWP(student, config.awp_gamma, [method], ranks.average_)
        self.ranks, self.parallel = ranks, ranks.parallel(method)

    def __call__(self, batch: Batch, epoch: int) -> list[Logs]:
        found = []
        for _ in range(self.method.replays):
            if self.awp is not None and epoch > self.config.awp_warmup:
                found.append(self._perturbed(batch, self.awp))
            else:
                found.append(self._plain(batch))
            if self.average is not None:
                self.average.after_step(epoch)
        return found

    def loss(self, batch: Batch) -> tuple[torch.Tensor, Logs]:
        """The method's loss of a batch, in the run's precision."""
        with self._arithmetic(), self.ranks.noise():
            return self.parallel(*batch)

    def _plain(self, batch: Batch) -> Logs:
        with self.clock.section("student"):
            loss, logs = self.loss(batch)
            self._backward(loss)
        self.stepper.step()
        return logs

    def _perturbed(self, batch: Batch, awp: AWP) -> Logs:
        method, outer = self.method, self.method.outer
        with contextlib.ExitStack() as perturbed, self.clock.section("student"):

            def perturbed_outer(
                x: torch.Tensor, x_adv: torch.Tensor, y: torch.Tensor
            ) -> tuple[torch.Tensor, Logs]:
                perturbed.enter_context(awp.perturbed(lambda: outer(x, x_adv, y)[0]))
                # Autocast would go on with the weights that it cast before they moved.
                torch.clear_autocast_cache()
                return outer(x, x_adv, y)

            # The attack comes before, on the weights as they are.
            vars(method)["outer"] = perturbed_outer
            try:
                loss, logs = self.loss(batch)
            finally:
                del vars(method)["outer"]
            self._backward(loss)
            self.stepper.step()
        return logs

    def _backward(self, loss: torch.Tensor) -> None:
        self.stepper.backward(loss)
        self.method.after_backward()

    def _arithmetic(self) -> contextlib.AbstractContextManager[None]:
        if self.precision is None:
            return contextlib.nullcontext()
        device = torch.device(self.config.device).type
        return arithmetic(self.precision, self.student, device)
