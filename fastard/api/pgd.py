"""`PGD`: projected gradient descent on one model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastard import checks
from fastard.api.attack import Attack, Bound
from fastard.api.run import Ascent, Goal
from fastard.engine import InputGradient, Program, RowLoss, UserLoss
from fastard.engine.capture import Values
from fastard.engine.gradient import Seed
from fastard.engine.recorder import Lane
from fastard.engine.unwrap import Model
from fastard.kinds import LossKind, Norm, parse_loss
from fastard.settings import check_values

Statistics = Sequence[float] | Tensor | None
Loss = str | Callable[[Tensor, Tensor], Tensor]


class PGD(Attack):
    """Projected gradient descent on one model, as an object that keeps its program.

    ``attack = fastard.PGD(student, loss="kl"); x_adv = attack(x, teacher_logits)``

    The loss is maximised (with `targeted`, approached). The model is attacked in eval mode, in the
    module inside DDP, DataParallel or torch.compile, and left as it was: training flags,
    requires_grad, .grad, BN statistics. Works under no_grad, inference_mode and autocast.

    Args:
        model: images [B, C, H, W] to logits [B, classes].
        loss: "kl", "ce", "margin" ("cw"), "dlr", "mixture" (see `ops.logit_loss`), or a callable
            ``loss(logits, target)`` that returns a scalar or one value per sample.
        norm: "Linf", "L2", "L1" (aliases accepted).
        eps, alpha: radius and step size in pixels; a number or one per sample.
        steps: gradient steps.
        random_start: True (the loss's published start: Gaussian for kl and mixture, else uniform),
            "gaussian" (0.001 * randn), "uniform" (in the ball), False.
        clip_start: clip the start to the box before the first forward. None: as published, False
            for a Gaussian start, True for a uniform one.
        targeted: approach the target instead.
        labels: see ``attack(x, target, labels=)``.
        temperature, kappa, mix: of kl and mixture, of margin, of mixture.
        clip_min, clip_max: the box.
        mean, std: per channel, for a student that wants normalised input; x stays in pixels.
        n_restarts: keeps, per sample, the restart that reached the highest loss.
        mode, bn_stats: "eval", or "train" as ARD, IAD, Rice and Madry attack; "update" or "frozen".
        precision: "fp32", "tf32", "bf16", "fp16", None: autocast's state.
        engine: run the compiled program where there is one; False: eager autograd, whose pixels
            equal the published loops' bit for bit.
        capture: "auto": on CUDA the attack is one recorded graph from the second call with equal
            shapes and settings on; "never". See `engine.Program`.
        check_logits: refuse a model whose first logits are NaN or +inf; False lets them be.
        noise_device: where noise is drawn (default: the generator's device, else x's); "cpu" draws
            as the published loops do.
        return_info: return (x_adv, `AttackInfo`).
    Returns (of a call):
        x_adv, detached, in x's dtype, device and memory format.
    Raises:
        TypeError, ValueError: bad input, in one sentence, before anything has changed.

    Madry et al. 2018 (ce), Zhang et al. 2019 (kl to own logits), Zi et al. 2021 (to a teacher's).
    """

    def __init__(
        self,
        model: Model,
        loss: Loss = "kl",
        norm: str | float | Norm = "Linf",
        eps: Bound = 8 / 255,
        alpha: Bound = 2 / 255,
        steps: int = 10,
        *,
        random_start: bool | str = True,
        clip_start: bool | None = None,
        targeted: bool = False,
        temperature: float = 1.0,
        kappa: float = 0.0,
        mix: float = 0.5,
        clip_min: float = 0.0,
        clip_max: float = 1.0,
        mean: Statistics = None,
        std: Statistics = None,
        n_restarts: int = 1,
        mode: str = "eval",
        bn_stats: str = "update",
        precision: str | None = None,
        engine: bool = True,
        capture: str = "auto",
        check_logits: bool = True,
        l1_sparsity: float = 0.2,
        noise_device: str | torch.device | None = None,
        generator: torch.Generator | None = None,
        return_info: bool = False,
    ) -> None:
        self.loss = loss if callable(loss) else parse_loss(loss)
        published = "gaussian" if self._takes_logits() else "uniform"
        if clip_start is None:
            clip_start = (published if random_start is True else random_start) != "gaussian"
        super().__init__(
            norm, eps, alpha, steps, random_start=random_start, published_start=published,
            clip_start=clip_start, clip_min=clip_min, clip_max=clip_max, l1_sparsity=l1_sparsity,
            n_restarts=n_restarts, noise_device=noise_device, generator=generator,
            return_info=return_info)  # fmt: skip
        self.targeted, self.check_logits = targeted, check_logits
        for value, name in ((temperature, "temperature"), (kappa, "kappa"), (mix, "mix")):
            checks.number(value, name)
        if not 0 <= mix <= 1:
            raise ValueError(f"mix must lie in [0, 1], but is {mix}.")
        self.options = {"temperature": temperature, "kappa": kappa, "mix": mix}
        self.program = Program(
            model, precision, mean=mean, std=std, mode=mode, bn_stats=bn_stats, engine=engine,
            capture=capture)  # fmt: skip

    def _takes_logits(self) -> bool:
        return self.loss in (LossKind.kl, LossKind.mixture)

    def _check_target(self, x: Tensor, target: Any, labels: Any, values: bool) -> None:
        if callable(self.loss):
            return
        if self._takes_logits():
            if isinstance(target, Tensor) and not target.is_floating_point():
                raise TypeError(
                    f"loss {self.loss.name!r} takes a teacher's logits, but target is "  # type: ignore[union-attr]
                    f"{checks.describe(target)}; for labels give loss='ce'."
                )
            checks.teacher_logits(target, x)
            if values:
                checks.logits_values(target)
        else:
            checks.labels(target, len(x), x.device, "y")
        if labels is not None:
            checks.labels(labels, len(x), x.device, "labels")

    def _seed(self, target: Tensor, labels: Tensor | None, values: bool) -> Seed:
        if callable(self.loss):
            return UserLoss(self.loss, target, -1.0 if self.targeted else 1.0, self.n_restarts > 1)
        return RowLoss(
            self.loss, target, labels=labels, targeted=self.targeted, check_values=values,
            check_logits=self.check_logits,
            **self.options)  # fmt: skip

    def __call__(self, x: Tensor, target: Tensor, labels: Tensor | None = None) -> Any:
        """Attacks x; `labels` are the true classes that mixture and targeted dlr need besides."""
        checks.floating(x, "x")
        values = check_values(self.program.model, (x.shape, x.dtype, x.device), x.device.type)
        self._check_images(x, values)
        self._check_target(x, target, labels, values)
        if len(x) == 0:
            return self._empty(x)

        def bind(held: Values, lane: Lane | None) -> Ascent:
            seed = self._seed(held["target"], held["labels"], values and lane is None)
            gradient = InputGradient(self.program, seed)
            return lambda feed, _: gradient(feed)[1], lambda feed, _: gradient.value(feed)

        refusal = "a loss of the caller's may do anything" if callable(self.loss) else None
        key = ("PGD", self.loss, self.targeted, *self.options.values())
        goal = Goal([self.program], key, {"target": target, "labels": labels}, bind, refusal)
        return self._attack(goal, x, values, lambda: self.program.explain(x.device))

    def __repr__(self) -> str:
        loss = getattr(self.loss, "name", None) or getattr(self.loss, "__name__", "loss")
        return (
            f"PGD({type(self.program.model).__name__}, loss={loss!r}, "
            f"norm={self.moves.norm.name!r}, "
            f"eps={self.moves.eps}, alpha={self.moves.alpha}, steps={self.steps})"
        )
