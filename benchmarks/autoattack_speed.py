"""The whole standard AutoAttack, official and ours, on the same images; and APGD of others."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import fastard
from fastard.autoattack.referee import official_images

from .autoattack_agreement import ATTACKS
from .autoattack_case import SEED, Case, ours, theirs

TARGETS = {"resnet4b": 3.0, "cnn_a": 3.0, "resnet18": 1.3}
HOLDERS = {"apgd-ce": "apgd", "apgd-t": "apgd_targeted", "fab-t": "fab", "square": "square"}


class Passes:
    """Counts the images that a module sees, and those whose gradient will be asked for."""

    def __init__(self, model: nn.Module) -> None:
        self.forwards = self.gradients = 0
        self._handle = model.register_forward_pre_hook(self._count)

    def _count(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.forwards += len(inputs[0])
        self.gradients += len(inputs[0]) * inputs[0].requires_grad

    def close(self) -> None:
        self._handle.remove()


def _timed(holder: Any, attack: str, seconds: dict[str, float]) -> None:
    """The official attack's `perturb`, its seconds noted."""
    perturb = holder.perturb

    def run(x: Tensor, y: Tensor) -> Tensor:
        begun = time.perf_counter()
        try:
            return perturb(x, y)
        finally:
            seconds[attack] = seconds.get(attack, 0.0) + time.perf_counter() - begun

    holder.perturb = run


def _per_robust(forwards: float, gradients: float, robust: int) -> dict[str, float] | None:
    if not robust:
        return None
    return {"forwards": round(forwards / robust), "gradients": round(gradients / robust)}


def passes_alone(case: Case, report: Any, rounds: int = 5) -> float:
    """Seconds of the network's passes that the report counts, and of nothing else, on the engine.

    Timed on as many images at once as are robust, where most passes are.
    """
    x = case.x[: max(1, int(report.robust.sum()))].contiguous()
    program = fastard.engine.Program(case.model, "fp32", frozen=True)
    forward = both = float("inf")
    with program.running(x):
        feed, seed = program.prepared(x), torch.ones_like(program.forward(x))
        for turn in range(rounds + 2):
            begun = time.perf_counter()
            program.infer_feed(feed)
            halfway = time.perf_counter()
            program.forward_feed(feed)
            program.vjp(seed)
            ended = time.perf_counter()
            if turn > 1:
                forward, both = min(forward, halfway - begun), min(both, ended - halfway)
    gradients = sum(report.gradients.values())
    alone = sum(report.forwards.values()) - gradients
    return (alone * forward + gradients * both) / len(x)


def standard(case: Case, queries: int = 5000, bs: int = 250) -> dict[str, Any]:
    """Seconds of the standard version and of its parts, both sides, one run each."""
    # Compiling the network is paid once a process; it is told apart.
    begun = time.perf_counter()
    program = fastard.engine.Program(case.model, "fp32", frozen=True)
    program.vjp(torch.ones_like(program.forward(case.x[:2])))
    compiled = time.perf_counter() - begun

    official, parts = theirs(case, queries), dict[str, float]()
    for attack in ATTACKS:
        _timed(getattr(official, HOLDERS[attack]), attack, parts)
    passes = Passes(case.model)
    begun = time.perf_counter()
    _, robust = official_images(official, case.model, case.x, case.y, bs)
    whole = time.perf_counter() - begun
    passes.close()

    own = ours(case, queries)
    begun = time.perf_counter()
    own.run_standard_evaluation(case.x, case.y, bs=bs)
    own_whole = time.perf_counter() - begun
    report = own.report
    assert report is not None
    differing = (report.robust != robust).nonzero()[:, 0].tolist()
    alone = passes_alone(case, report)
    left = int(robust.sum())
    target = TARGETS.get(case.name)
    ratio = whole / own_whole
    return {
        "network": case.name, "norm": case.norm, "eps": case.eps, "images": len(case.x),
        "queries": queries, "robust": {"official": left, "fastard": int(report.robust.sum())},
        "differing": differing, "agrees": len(differing) <= 1,
        "set_up_seconds": round(compiled, 2),
        "seconds": {
            "official": round(whole, 2), "fastard": round(own_whole, 2),
            "passes_alone": round(alone, 2),
        },
        "ratio": round(ratio, 3), "target": target,
        "reached": None if target is None else ratio >= target,
        "parts": {
            attack: {"official": round(parts[attack], 2),
                     "fastard": round(report.seconds[attack], 2),
                     "ratio": round(parts[attack] / report.seconds[attack], 3)}
            for attack in ATTACKS if attack in parts and attack in report.seconds
        },
        "per_robust_sample": {
            "official": _per_robust(passes.forwards, passes.gradients, left),
            "fastard": _per_robust(sum(report.forwards.values()), sum(report.gradients.values()),
                                   int(report.robust.sum())),
        },
    }  # fmt: skip


def _rivals(case: Case) -> dict[str, Callable[[], Tensor]]:
    """APGD on cross-entropy, 100 steps, one restart, of each package that is installed."""
    loops: dict[str, Callable[[], Tensor]] = {}
    if importlib.util.find_spec("torchattacks"):
        import torchattacks

        rival = torchattacks.APGD(
            case.model, norm=case.norm, eps=case.eps, steps=100, seed=SEED, loss="ce")  # fmt: skip
        loops["torchattacks"] = lambda: rival(case.x, case.y)
    if importlib.util.find_spec("adv_lib"):
        from adv_lib.attacks import apgd

        options = {"n_iter": 100, "loss_function": "ce"}
        loops["adv_lib"] = lambda: apgd(
            case.model, case.x, case.y, case.eps, float("inf"), **options
        )
    return loops


def apgd_alone(case: Case, rounds: int = 2) -> dict[str, Any]:
    """Our APGD on cross-entropy beside others', on all images at once; the fastest of each."""
    own = ours(case, 0)
    own.apgd.n_restarts, own.attacks_to_run = 1, ["apgd-ce"]
    loops = {"fastard": lambda: own.run_standard_evaluation(case.x, case.y, bs=len(case.x))}
    loops |= _rivals(case)
    seconds: dict[str, float] = {}
    robust = {}
    for turn in range(rounds + 1):
        for name, run in loops.items():
            torch.manual_seed(SEED)
            begun = time.perf_counter()
            x_adv = run()
            took = time.perf_counter() - begun
            if turn:
                seconds[name] = min(took, seconds.get(name, took))
            with torch.no_grad():
                robust[name] = int((case.model(x_adv).argmax(1) == case.y).sum())
    spread = max(robust.values()) - min(robust.values())
    return {
        "network": case.name, "norm": case.norm, "eps": case.eps, "images": len(case.x),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "robust": robust,
        # Their starts differ: one image in fifty may fall on the other side.
        "agrees": spread <= max(1, len(case.x) // 50),
        "times_faster_than": {name: round(value / seconds["fastard"], 3)
                              for name, value in seconds.items() if name != "fastard"},
    }  # fmt: skip
