"""Signs that a network only seems robust: gradients that mislead the attacks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastard import api
from fastard.attacks.apgd import sphere_start
from fastard.attacks.draws import CounterDraws
from fastard.attacks.pgd import Moves
from fastard.autoattack import checks
from fastard.autoattack.versions import VERSIONS
from fastard.data import ImageSet
from fastard.evaluation.attacks import AutoAttackParts, Setting, require_logits
from fastard.evaluation.judge import asked
from fastard.evaluation.noise import keyed_by
from fastard.kinds import Norm, parse_norm
from fastard.shapes import per_sample

# Of APGD-T and FAB-T in AutoAttack's standard version.
TARGETS = 9
IMAGES, QUERIES, STEPS, TRIES = 100, 1000, 20, 10
# Of 100 images three are within the noise of an attack's start.
SLACK = 0.03


@dataclass(frozen=True)
class Finding:
    """One test: its name, whether it found nothing wrong, and what it saw, in words to act on."""

    name: str
    good: bool
    told: str


def told(findings: Sequence[Finding]) -> list[str]:
    """The findings as lines, what is wrong first."""
    ordered = sorted(findings, key=lambda finding: finding.good)
    return [f"{'ok  ' if f.good else 'WARN'} {f.name}: {f.told}" for f in ordered]


def diagnose(setting: Setting, images: ImageSet, n: int = IMAGES) -> list[Finding]:
    """AutoAttack's six automatic checks, and the symptoms of masked gradients, on n images.

    The symptoms are those of Athalye et al. 2018 (arXiv 1802.00420) and Carlini et al. 2019 (arXiv
    1902.06705): a black box (Square, 1,000 queries) is stronger than PGD; more steps are no
    stronger; one step is stronger than twenty; an unlimited radius does not reach 0 %; random noise
    is as strong as PGD.

    Returns: a `Finding` a test. The model is left as it was.
    """
    rows = torch.arange(min(n, len(images)), device=images.device)
    x, y = images.float(rows), images.y[rows]
    with asked(setting.model, x.device.type):
        with torch.no_grad():
            logits = require_logits(setting.model(x), len(x))
        right = logits.argmax(1) == y
        findings = list(_official(setting, x, y, logits))
        x, y, rows = x[right], y[right], rows[right]
        if len(x):
            findings += _symptoms(setting, x, y, rows)
    return findings


def _finding(name: str, flag: str | None, fine: str) -> Finding:
    return Finding(name, flag is None, fine if flag is None else flag)


def _official(setting: Setting, x: Tensor, y: Tensor, logits: Tensor) -> Iterator[Finding]:
    def ask(images: Tensor) -> Tensor:
        with torch.no_grad():
            return setting.model(images)

    classes = logits.shape[1]
    yield _finding("randomness", checks.randomized(ask, x, y), "five passes agree")
    yield _finding("output", checks.range_output(logits), "logits, not probabilities")
    yield _finding("dynamics", checks.dynamic(setting.model, x[:1]), "no gradient in a forward")
    yield _finding(
        "classes",
        checks.n_classes(classes, VERSIONS["standard"], TARGETS, TARGETS),
        f"{classes} classes",
    )
    flag = _zero_gradients(setting, x, y)
    yield _finding("gradients", flag, "no image has a gradient of zero")


def _zero_gradients(setting: Setting, x: Tensor, y: Tensor) -> str | None:
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        logits = setting.model(leaf)
        loss = torch.nn.functional.cross_entropy(logits, y, reduction="sum")
        if not loss.requires_grad:
            return (
                "the logits do not depend on the image through autograd: attack with Square, or a "
                "differentiable stand-in (BPDA)."
            )
        (grad,) = torch.autograd.grad(loss, leaf, allow_unused=True)
    if grad is None:
        return "the gradient does not reach the image: attack with Square, or with BPDA."
    zero = int((grad.flatten(1).abs().amax(1) == 0).sum())
    if not zero:
        return None
    return (
        f"the cross-entropy's gradient is exactly zero for {zero} of {len(x)} images: a quantised "
        "input hides it (use BPDA or Square), saturated logits round it away (divide the logits, "
        "or use the DLR or margin loss)."
    )


def _symptoms(setting: Setting, x: Tensor, y: Tensor, ids: Tensor) -> Iterator[Finding]:
    def left(adv: Tensor) -> float:
        with torch.no_grad():
            return float((setting.model(adv).argmax(1) == y).double().mean())

    def pgd(steps: int, alpha: float, eps: float, start: bool | str = "uniform") -> float:
        with keyed_by(ids, setting.seed):
            adv = api.pgd(
                setting.model, x, y, eps, alpha, steps, norm=setting.norm, random_start=start,
                precision=setting.precision, check_logits=False)  # fmt: skip
        return left(adv)

    eps = setting.eps
    square = AutoAttackParts("square", "Square", "custom", ("square",), n_queries=QUERIES)
    blind = left(square.search(setting, x, y, ids)[0])
    # No two images of the box [0, 1] are farther apart.
    whole = 1.0 if parse_norm(setting.norm) == Norm.Linf else float(x[0].numel())
    try:
        strong, short = pgd(STEPS, eps / 4, eps), pgd(1, eps / 4, eps)
        one, anywhere = pgd(1, eps, eps, False), pgd(4 * STEPS, whole / 20, whole)
    except ValueError as error:
        yield Finding("gradient attacks", False, f"none can be made: {error}")
        yield _square(1.0, blind)
        return
    yield _square(strong, blind)
    noisy = left(_noise(setting, x, y, ids))

    def finding(name: str, good: bool, seen: str, advice: str) -> Finding:
        return Finding(name, good, seen if good else f"{seen}: {advice}")

    pgd_left = f"PGD-{STEPS} leaves {strong:.1%} of the images classified right"
    yield finding(
        "black box",
        blind >= strong - SLACK,
        f"{pgd_left}, Square with {QUERIES} queries {blind:.1%}",
        "gradients mislead PGD; trust Square, and adapt the gradient attack (BPDA, another loss)",
    )
    yield finding(
        "more steps",
        strong < short or strong <= SLACK or blind == 1,
        f"{pgd_left}, one step of its size {short:.1%}",
        "more steps gain nothing; look at the loss along the way",
    )
    yield finding(
        "one step",
        one >= strong - SLACK,
        f"{pgd_left}, FGSM {one:.1%}",
        "one step beats many; take smaller steps and several random starts",
    )
    yield finding(
        "unlimited radius",
        anywhere <= SLACK,
        f"PGD-{4 * STEPS} in the whole box leaves {anywhere:.1%}",
        "it should leave none, so the gradient is masked",
    )
    yield finding(
        "random noise",
        noisy > strong or strong <= SLACK or blind == 1,
        f"{pgd_left}, the worst of {TRIES} random perturbations {noisy:.1%}",
        "noise is as strong, so the gradient says nothing",
    )


def _square(strong: float, blind: float) -> Finding:
    """The official check of Square, which takes what PGD has left for the gradient attacks'."""
    flag = checks.square_success({"clean": 1.0, "pgd": strong, "square": blind})
    return _finding("square", flag, f"Square leaves {blind:.1%}, the gradient attacks {strong:.1%}")


def _noise(setting: Setting, x: Tensor, y: Tensor, ids: Tensor) -> Tensor:
    """For each image a random point on the ball's surface that the network errs on, or the last."""
    norm = parse_norm(setting.norm)
    draws = CounterDraws(setting.seed, "pgd", part=1)
    moves = Moves(setting.eps, 0.0, norm, 0.0, 1.0)
    found = x
    for attempt in range(TRIES):
        number = draws.rand if norm == Norm.Linf else draws.randn
        noise = number(ids, x.shape[1:], iteration=attempt)
        # In Linf a corner of the ball.
        at = sphere_start(x, noise.round() if norm == Norm.Linf else noise, moves)
        with torch.no_grad():
            wrong = setting.model(found).argmax(1) != y
        found = torch.where(per_sample(wrong, x), found, at)
    return found
