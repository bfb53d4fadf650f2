"""What an evaluation found and what it cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

# Passes per robust sample of the official standard version, for ten classes or more in Linf and L2.
OFFICIAL_FORWARDS, OFFICIAL_GRADIENTS = 7.8e3, 1.9e3
ROBUST, CLEAN, RESTORED = "robust", "clean", "earlier run"


@dataclass
class Report:
    """One evaluation, per sample and per attack.

    Attributes:
        version: as asked for, with ", changed (...)" where its attacks or their settings are not
            its own any more; "reduced" where the model allows less: `reductions` then says what is
            missing.
        attacks: in the order in which they ran. targets: at most so many each.
        accuracy: the share of samples right at first ("clean") and after each attack.
        robust: bool [N]. broken_by: for each sample the attack that broke it, "clean" where the
            model errs on the image itself, "robust", or "earlier run" for a state that only says
            that it was broken.
        seconds, forwards, gradients: by attack; a pass is counted per image.
        flags: the warnings raised.
        unusable: samples that were counted as broken because their logits held NaN or +inf.
        drawn_in: images found outside the ball or box that were moved inside before the verdict.
        rejected: those that the model no longer errs on there; they broke nothing.
        classes: of the model. resumed: a part was done by an earlier run, whose cost is not known.
    """

    version: str
    attacks: tuple[str, ...]
    norm: str
    eps: float
    seed: float | None
    compat: str | None
    engine: bool
    precision: str
    robust: Tensor
    broken_by: list[str]
    targets: int = 9
    reductions: tuple[str, ...] = ()
    accuracy: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    forwards: dict[str, int] = field(default_factory=dict)
    gradients: dict[str, int] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)
    unusable: int = 0
    drawn_in: int = 0
    rejected: int = 0
    classes: int = 0
    resumed: bool = False

    @property
    def robust_accuracy(self) -> float:
        """The share of samples that no attack broke."""
        return int(self.robust.sum()) / len(self.robust)

    def per_robust_sample(self) -> tuple[float, float] | None:
        """All forwards and all gradients over the number of robust samples; None without any, or
        where an earlier run did a part."""
        robust = int(self.robust.sum())
        if not robust or self.resumed:
            return None
        return sum(self.forwards.values()) / robust, sum(self.gradients.values()) / robust

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold of it."""
        return asdict(self) | {
            "robust": self.robust.int().tolist(),
            "robust_accuracy": self.robust_accuracy,
        }

    def lines(self) -> list[str]:
        """The report as text."""
        name = f"AutoAttack {self.version}"
        if self.reductions:
            name += f" ({'; '.join(self.reductions)})"
        mode = "engine" if self.engine else "eager"
        said = [
            f"{name}: N={len(self.robust)}, eps={self.eps:.5g} {self.norm}, seed {self.seed}, "
            f"{self.precision} search ({mode}{', official draws' if self.compat else ''}), "
            "fp32 verdicts of the module itself"
        ]
        for attack, accuracy in self.accuracy.items():
            cost = ""
            if attack in self.seconds:
                cost = (
                    f", {self.seconds[attack]:.1f} s, {self.forwards[attack]} forwards, "
                    f"{self.gradients[attack]} gradients"
                )
            said.append(f"after {attack}: {accuracy:.2%}{cost}")
        passes = self.per_robust_sample()
        if passes is not None:
            cost = f"per robust sample: {passes[0]:.0f} forwards and {passes[1]:.0f} gradients"
            if self.version == "standard" and self.norm != "L1" and self.classes >= 10:
                cost += (
                    f" (the official standard version: {OFFICIAL_FORWARDS:.0f} and "
                    f"{OFFICIAL_GRADIENTS:.0f})"
                )
            said.append(cost)
        if self.unusable:
            said.append(f"logits with NaN or +inf: {self.unusable}, counted as broken")
        if self.drawn_in:
            said.append(
                f"outside ball or box: {self.drawn_in}, moved inside; of those the model was right "
                f"on {self.rejected}, which broke nothing"
            )
        return said + [f"warning: {flag}" for flag in self.flags]
