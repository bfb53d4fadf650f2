"""The attacks that suites are made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fastard import api
from fastard.autoattack import AutoAttack
from fastard.autoattack.report import ROBUST
from fastard.engine import NoGradient
from fastard.evaluation.noise import keyed_by
from fastard.radius import REFERENCE_EPS


@dataclass(frozen=True)
class Setting:
    """What all attacks of an evaluation share.

    `surrogate` is the network that transfer attacks are made on. Attacks keep what they reuse in
    `kept`, put into `notes` what a reader of the result must know, and their keys into `reduced`
    where the model allowed less than the whole attack. A long attack writes what it
    has found to `state_path`, goes on from there, and calls `on_part` with the name of what it has
    done so far and the accuracy then.
    """

    model: nn.Module
    eps: float = REFERENCE_EPS
    norm: str = "Linf"
    seed: int = 0
    precision: str | None = "fp32"
    surrogate: nn.Module | None = None
    kept: dict[Any, Any] = field(default_factory=dict, compare=False)
    notes: set[str] = field(default_factory=set, compare=False)
    reduced: set[str] = field(default_factory=set, compare=False)
    state_path: Path | None = None
    on_part: Callable[[str, float], None] | None = field(default=None, compare=False)


class SuiteAttack(Protocol):
    """An attack of a suite; `title` heads its column."""

    @property
    def key(self) -> str: ...

    @property
    def title(self) -> str: ...

    def at(self, eps: float) -> SuiteAttack:
        """The attack as it is at this radius."""
        ...

    def describe(self) -> str:
        """Its constants, for the protocol line."""
        ...

    def search(
        self, setting: Setting, x: Tensor, y: Tensor, ids: Tensor
    ) -> tuple[Tensor, list[str] | None]:
        """The attacked images, and for attacks of several parts which one broke each ("" none)."""
        ...


@dataclass(frozen=True)
class Attack:
    """A PGD variant; `alpha` is the step size at eps = 8/255 and follows eps in proportion.

    `step` is how the title writes alpha, where it does. The last iterate counts; of several
    restarts the one of highest loss.
    """

    key: str
    name: str
    steps: int
    alpha: float
    loss: str = "ce"
    kappa: float = 0.0
    random_start: bool | str = "uniform"
    step: str | None = None
    n_restarts: int = 1
    transferred: bool = False

    @property
    def title(self) -> str:
        """The name, and the step size that tells it from attacks of the same name."""
        return self.name if self.step is None else f"{self.name} ({self.step})"

    def at(self, eps: float) -> Attack:
        alpha = self.alpha * (eps / REFERENCE_EPS)
        if self.step is None or math.isclose(eps, REFERENCE_EPS):
            return replace(self, alpha=alpha)
        return replace(self, alpha=alpha, step=f"{alpha:.4g}")

    def describe(self) -> str:
        start = f"{self.random_start} start" if self.random_start else "no random start"
        restarts = f" x {self.n_restarts} restarts" if self.n_restarts > 1 else ""
        margin = f", margin loss with kappa {self.kappa:g}" if self.loss == "margin" else ""
        made = ", made on the surrogate" if self.transferred else ""
        return f"{self.title}: {self.steps} x {self.alpha:.5g}{restarts}, {start}{margin}{made}"

    def search(
        self, setting: Setting, x: Tensor, y: Tensor, ids: Tensor
    ) -> tuple[Tensor, list[str] | None]:
        model = setting.surrogate if self.transferred else setting.model
        if model is None:
            raise ValueError(f"{self.title} is made on a surrogate: give one (--surrogate).")
        try:
            with keyed_by(ids, setting.seed):
                adv = api.pgd(
                    model, x, y, setting.eps, self.alpha, self.steps, loss=self.loss,
                    kappa=self.kappa, norm=setting.norm, random_start=self.random_start,
                    clip_start=True, n_restarts=self.n_restarts, precision=setting.precision,
                    # Evaluation counts unusable logits as broken instead.
                    check_logits=False)  # fmt: skip
        except NoGradient:
            return _unattacked(setting, self.title, x), None
        return adv, None


@dataclass(frozen=True)
class CWL2:
    """Carlini and Wagner's L2 attack, in no ball: any image that the network errs on counts."""

    key: str
    c: float
    steps: int
    lr: float
    kappa: float
    title: str = "CW L2"

    def at(self, eps: float) -> CWL2:
        return self

    def describe(self) -> str:
        return (
            f"{self.title}: {self.steps} Adam steps of {self.lr:g}, c {self.c:g}, "
            f"confidence {self.kappa:g}, no early abort, in no ball"
        )

    def search(
        self, setting: Setting, x: Tensor, y: Tensor, ids: Tensor
    ) -> tuple[Tensor, list[str] | None]:
        try:
            adv = api.cw_l2(
                setting.model, x, y, c=self.c, kappa=self.kappa, steps=self.steps, lr=self.lr,
                binary_search_steps=1, precision=setting.precision)  # fmt: skip
        except NoGradient:
            return _unattacked(setting, self.title, x), None
        return adv, None


@dataclass(frozen=True)
class AutoAttackParts:
    """AutoAttack, or some parts of it, on the samples that the network classifies correctly."""

    key: str
    title: str
    version: str = "standard"
    parts: tuple[str, ...] = ()
    n_queries: int | None = None

    def at(self, eps: float) -> AutoAttackParts:
        return self

    def describe(self) -> str:
        queries = f", {self.n_queries} queries" if self.n_queries else ""
        parts = f" ({', '.join(self.parts)})" if self.parts else ""
        return f"{self.title}: AutoAttack {self.version}{parts}{queries}"

    def made(self, setting: Setting) -> AutoAttack:
        """The attack with its settings; one for all of an evaluation's blocks."""
        # By all of its constants: a key alone is not one attack's.
        found: AutoAttack | None = setting.kept.get(self)
        if found is None:
            found = AutoAttack(
                setting.model, norm=setting.norm, eps=setting.eps, seed=setting.seed,
                version=self.version, verbose=False, attacks_to_run=list(self.parts),
                device=None, precision=setting.precision or "fp32")  # fmt: skip
            if self.parts:
                found.apgd.n_restarts = found.fab.n_restarts = 1
            if self.n_queries:
                found.square.n_queries = self.n_queries
            setting.kept[self] = found
        return found

    def search(
        self, setting: Setting, x: Tensor, y: Tensor, ids: Tensor
    ) -> tuple[Tensor, list[str] | None]:
        attack, on_part = self.made(setting), setting.on_part
        if on_part is not None:
            attack.on_batch = lambda part, done, total, accuracy: on_part(part, accuracy)
        adv = attack.run_standard_evaluation(
            x, y, bs=max(len(x), 1), state_path=setting.state_path, ids=ids
        )
        report = attack.report
        assert report is not None
        if report.reductions:
            setting.reduced.add(self.key)
        setting.notes.update(f"{self.title} (reduced): {told}" for told in report.reductions)
        flags = set(report.flags).difference(report.reductions)
        setting.notes.update(f"{self.title}: {told}" for told in flags)
        # "clean" too: what it took for wrong from the start it has not attacked.
        return adv, ["" if part == ROBUST else part for part in report.broken_by]


def _unattacked(setting: Setting, title: str, x: Tensor) -> Tensor:
    """The images as they are, with a note that says why."""
    setting.notes.add(f"{title}: no gradient reaches the image, so that it was left as it is")
    return x


def usable(logits: Tensor) -> Tensor:
    """[B] bool: no NaN and no +inf among a sample's logits."""
    return ~(logits.isnan() | logits.isposinf()).any(1)


def require_logits(logits: object, samples: int) -> Tensor:
    """The logits [samples, classes], or one sentence on what the model returned instead."""
    if not isinstance(logits, torch.Tensor):
        raise TypeError(
            f"the model must return a tensor of logits, but returned a {type(logits).__name__}."
        )
    if logits.dim() != 2 or len(logits) != samples:
        raise ValueError(
            f"the model must return logits [{samples}, classes] for {samples} images, but returned "
            f"{list(logits.shape)}."
        )
    return logits
