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
from fastard.training.networks import Networks
from fastard.training.optim import Stepper
from fastard.training.ranks import Ranks


class BatchStep:
    """Trains a method's student on batches; ``steps(batch, epoch)`` returns each replay's logs.

    Args:
        networks: the method with its student, in train mode, and that student whole.
        stepper: steps the optimiser.
        average: takes the weights in after each step.
        config: a resolved config.
        precision: of attack and passes; None as torch is set.
        clock: counts the sections attack, teacher and student.
        ranks: the processes of which each has a part of the batch.
    """

    def __init__(
        self,
        networks: Networks,
        stepper: Stepper,
        average: WeightAverage | None,
        config: Resolved,
        precision: Precision | None,
        clock: Clock,
        ranks: Ranks,
    ):
        method = self.method = networks.method
        self.student, self.sharded, self.stepper = networks.student, networks.sharded, stepper
        self.average, self.config, self.precision, self.clock = average, config, precision, clock
        method.attack_timer = clock.section("attack")
        for part in method.modules():
            # A method over another one asks the teachers through it.
            if isinstance(part, Method):
                part.teacher_timer = clock.section("teacher")
        self.awp = None
        if config.awp_gamma > 0:
            self.awp = AWP(self.student, config.awp_gamma, [method], ranks.average_)
        self.ranks = ranks
        self.parallel: nn.Module = ranks.parallel(method) if self.sharded is None else method

    def __call__(self, batch: Batch, epoch: int) -> list[Logs]:
        found = []
        for _ in range(self.method.replays):
            if self.awp is not None and epoch > self.config.awp_warmup:
                found.append(self._perturbed(batch, self.awp))
            else:
                found.append(self._plain(batch))
            if self.sharded is not None:
                self.sharded.renew()
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
        with self.ranks.noise():
            self.method.after_backward()

    def _arithmetic(self) -> contextlib.ExitStack:
        contexts = contextlib.ExitStack()
        if self.precision is not None:
            device = torch.device(self.config.device).type
            # Attacks see the whole student, training passes its parts: each has a head of its own.
            for network in {self.student, *([] if self.sharded is None else [self.sharded.parts])}:
                contexts.enter_context(arithmetic(self.precision, network, device))
        return contexts
