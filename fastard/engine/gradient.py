"""From losses to input gradients: a loss seeds dlogits, a program carries them to the input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from fastard import checks, ops
from fastard.engine.guard import attack_mode
from fastard.engine.program import Program
from fastard.engine.recorder import beside, rejoined
from fastard.engine.unwrap import Model
from fastard.kinds import LossKind


class Seed(Protocol):
    """Per-sample loss [B], oriented for ascent, and its gradient in the logits [B, C]."""

    def __call__(self, logits: Tensor) -> tuple[Tensor, Tensor]: ...


class RowLoss:
    """One of fastard's fused losses with its target, as `ops.logit_loss` defines them.

    Raises:
        ValueError: at the first call, where class counts or labels do not fit the model's.
    """

    def __init__(
        self,
        kind: LossKind,
        target: Tensor,
        *,
        labels: Tensor | None = None,
        targeted: bool = False,
        temperature: float = 1.0,
        kappa: float = 0.0,
        mix: float = 0.5,
        check_values: bool = True,
        check_logits: bool = True,
    ) -> None:
        self.kind, self.target, self.labels = kind, target, labels
        self.targeted, self.temperature, self.kappa, self.mix = targeted, temperature, kappa, mix
        self._unchecked, self._check_values = True, check_values
        self._check_logits = check_logits

    def _check(self, logits: Tensor) -> None:
        classes = logits.shape[1]
        if self.kind in (LossKind.kl, LossKind.mixture) and self.target.shape[1] != classes:
            raise ValueError(
                f"teacher_logits must have one column per class of the model ({classes}), but "
                f"have {self.target.shape[1]}."
            )
        if self._check_values:
            if self._check_logits:
                checks.model_logits(logits)
            for t in (self.target, self.labels):
                if t is not None and t.dim() == 1:
                    checks.labels_below(t, classes, "labels")
        self._unchecked = False

    def __call__(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        if self._unchecked:
            self._check(logits)
        loss, dlogits = ops.logit_loss(
            logits, self.target, self.kind, labels=self.labels, targeted=self.targeted,
            temperature=self.temperature, kappa=self.kappa, mix=self.mix)  # fmt: skip
        return loss, dlogits


class UserLoss:
    """A caller's ``loss(logits, target)``, per sample or reduced; autograd leads to the logits."""

    def __init__(
        self, loss: Callable[[Tensor, Tensor], Tensor], target: Any, sign: float = 1.0,
        per_sample: bool = False,
    ) -> None:  # fmt: skip
        self.loss, self.sign, self.per_sample = loss, sign, per_sample
        with torch.inference_mode(False):
            inference = isinstance(target, Tensor) and target.is_inference()
            self.target = target.clone() if inference else target

    def __call__(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            value = self.loss(leaf, self.target)
            if not isinstance(value, Tensor) or value.numel() not in (1, len(logits)):
                raise ValueError(
                    f"loss must return a scalar or one value per sample [{len(logits)}], but "
                    f"returned {checks.describe(value)}."
                )
            if self.per_sample and value.numel() != len(logits):
                raise ValueError(
                    f"loss must return one value per sample [{len(logits)}] where n_restarts is "
                    f"above 1, but returned {checks.describe(value)}."
                )
            if not value.requires_grad:
                raise ValueError("loss must depend on the logits it is given, but does not.")
            (dlogits,) = torch.autograd.grad(value.sum() * self.sign, leaf)
        loss = (value.detach() * self.sign).reshape(-1).expand(len(logits))
        return loss, dlogits


def as_program(model: Model | Program) -> Program:
    return model if isinstance(model, Program) else Program(model)


def representable(dtype: torch.dtype | None, *seeds: Tensor) -> tuple[Tensor, ...]:
    """Seeds scaled per sample into fp16's range, all by one factor: only directions matter."""
    if dtype != torch.float16:
        return seeds
    largest = torch.stack([d.abs().amax(1, keepdim=True) for d in seeds]).amax(0)
    factor = torch.where(largest > 0, 64.0 / largest.clamp(min=1e-38), 1.0)
    return tuple(d * factor for d in seeds)


class InputGradient:
    """Per-sample loss of a model and its gradient in the (prepared) input, up to a positive factor
    per sample in fp16. Inside the program's running block it takes what `Program.feed` describes
    and answers in that; outside, pixels.

    Equivalent to: ``dx, = torch.autograd.grad(loss(model(x)).sum(), x)``, with no graph on the
    loss: it answers with its gradient in the logits, which seeds the backward pass.
    """

    def __init__(self, model: Model | Program, loss: Seed) -> None:
        self.program, self.loss = as_program(model), loss

    def __call__(self, feed: Tensor) -> tuple[Tensor, Tensor]:
        program, inside = self.program, self.program.is_running
        with program.running(feed):
            logits = program.forward_feed(feed) if inside else program.forward(feed)
            loss, dlogits = self.loss(logits)
            (seed,) = representable(program.low_dtype, dlogits)
            return loss, program.vjp(seed) if inside else program.pixel_vjp(seed)

    def value(self, feed: Tensor) -> Tensor:
        """The loss [B] alone; asking moves no BN statistics."""
        program, inside = self.program, self.program.is_running
        with program.running(feed), attack_mode(program.model, program.mode, "frozen"):
            return self.loss(program.infer_feed(feed if inside else program.prepared(feed)))[0]


class PairGradient:
    """KL(teacher(x) || student(x)) per sample and its gradient through both networks.

    The teacher reads the images as they are, the student its prepared input; at the end both
    gradients are in pixels. With `side`, a second stream, the teacher runs on that.
    """

    def __init__(
        self, student: Program, teacher: Program, *, temperature: float = 1.0,
        targeted: bool = False, check_logits: bool = True, side: torch.cuda.Stream | None = None,
    ) -> None:  # fmt: skip
        self.student, self.teacher, self.side = student, teacher, side
        self.temperature, self.targeted = temperature, targeted
        self.check_logits = check_logits

    def _logits(self, z_s: Tensor, z_t: Tensor, teacher_grad: bool) -> tuple[Tensor, ...]:
        if self.check_logits:
            for z in (z_s, z_t):
                checks.model_logits(z)
            self.check_logits = False
        if z_s.shape != z_t.shape:
            raise ValueError(
                f"teacher and student must have equal class counts, but have {z_t.shape[1]} and "
                f"{z_s.shape[1]}."
            )
        return ops.logit_loss(z_s, z_t.to(z_s.dtype), "kl", temperature=self.temperature,
                              targeted=self.targeted, teacher_grad=teacher_grad)  # fmt: skip

    def __call__(self, feed: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """loss [B], the gradient in the student's prepared input, the gradient in x (teacher)."""
        with self.student.running(feed), self.teacher.running(x):
            with beside(self.side):
                z_t = self.teacher.forward(x)
            z_s = self.student.forward_feed(feed)
            rejoined(self.side)
            loss, ds, dt = self._logits(z_s, z_t, True)
            fp16 = torch.float16 in (self.student.low_dtype, self.teacher.low_dtype)
            ds, dt = representable(torch.float16 if fp16 else None, ds, dt)
            # Whatever one stream made and the other reads, dt above all, is held until they meet.
            with beside(self.side):
                through_teacher = self.teacher.pixel_vjp(dt).to(x.dtype)
            through_student = self.student.vjp(ds)
            rejoined(self.side)
            return loss, through_student, through_teacher

    def value(self, feed: Tensor, x: Tensor) -> Tensor:
        """The loss [B] alone; asking moves no BN statistics."""
        with (
            self.student.running(feed),
            self.teacher.running(x),
            attack_mode(self.student.model, self.student.mode, "frozen"),
        ):
            z_t = self.teacher.infer_feed(self.teacher.prepared(x))
            return self._logits(self.student.infer_feed(feed), z_t, False)[0]
