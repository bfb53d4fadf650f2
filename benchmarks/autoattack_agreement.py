"""One attack on all images, official and ours: which verdicts differ."""

from __future__ import annotations

import time
from typing import Any

from fastard.autoattack.referee import official_images

from .autoattack_case import Case, ours, theirs

ATTACKS = ("apgd-ce", "apgd-t", "fab-t", "square")
# compat="official": as the official code computes, and the same draws on the engine.
MODES = {"eager": False, "engine": True}
ALLOWED = {"eager": 0, "engine": 1}


def agreement(case: Case, attack: str, queries: int = 5000, bs: int = 250) -> dict[str, Any]:
    """The official verdicts of one attack beside those of both modes, same seed and batch."""
    official = theirs(case, queries)
    official.attacks_to_run = [attack]
    begun = time.perf_counter()
    _, robust = official_images(official, case.model, case.x, case.y, bs)
    found: dict[str, Any] = {
        "network": case.name, "norm": case.norm, "eps": case.eps, "attack": attack,
        "images": len(case.x), "batch": bs,
        "queries": queries if attack == "square" else None,
        "targets": official.fab.n_target_classes if attack == "fab-t" else None,
        "official_robust": int(robust.sum()), "modes": {},
        "seconds": {"official": round(time.perf_counter() - begun, 2)},
    }  # fmt: skip
    for mode, engine in MODES.items():
        own = ours(case, queries, compat="official", engine=engine)
        own.attacks_to_run = [attack]
        begun = time.perf_counter()
        own.run_standard_evaluation(case.x, case.y, bs=bs)
        assert own.report is not None
        differing = (own.report.robust != robust).nonzero()[:, 0].tolist()
        found["seconds"][mode] = round(time.perf_counter() - begun, 2)
        found["modes"][mode] = {
            "robust": int(own.report.robust.sum()),
            "differing": differing,
            "allowed": ALLOWED[mode],
            "agrees": len(differing) <= ALLOWED[mode],
        }
        found["clean"] = round(own.report.accuracy["clean"] * len(case.x))
    return found
