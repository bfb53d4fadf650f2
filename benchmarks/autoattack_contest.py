"""AutoAttack standard beside the official package's: equal verdicts, then time.

The labels are the network's own predictions and the radius is small, so that a part of the images
survives without any training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import fastard

from . import rivals
from .attack_contests import prepared
from .case import Case
from .contest import Contest, Contestant, first_line, held
from .record import OURS, Agreement, Line
from .rivals import Absent

OFFICIAL = "pyautoattack"


def measure(case: Case) -> Iterator[Line]:
    """fastard's line and the official package's."""
    ours: Any = getattr(fastard, "AutoAttack", None)
    if ours is None:
        why = f"fastard {fastard.__version__} has no AutoAttack"
        yield case.line(OURS, "unavailable", reason=why)
        yield case.line(OFFICIAL, "skipped", reason=f"nothing to compare with: {why}")
        return
    f = prepared(case)
    net, x, eps = f.net.eval(), f.x, case.settings["eps"]
    norm, batch = case.norm or "Linf", case.batch or 64
    with torch.no_grad():
        y = net(x).argmax(1)
    attack = ours(net, norm=norm, eps=eps, version="standard", seed=0, device=case.device,
                  verbose=False)  # fmt: skip
    # The official verdicts first: they are what the others are held against.
    found: dict[str, Contestant] = {}
    absent: dict[str, tuple[str, str]] = {}
    try:
        official = _official(net, x, y, norm, eps, batch, case.device)
        found[OFFICIAL] = Contestant(official, rivals.version(OFFICIAL))
    except Absent as error:
        absent[OFFICIAL] = ("unavailable", str(error))
    except Exception as error:  # whatever a library of others raises
        absent[OFFICIAL] = ("failed", first_line(error))
    found[OURS] = Contestant(
        lambda: attack.run_standard_evaluation(x, y, bs=batch), fastard.__version__
    )
    wanted: list[float] = []

    def judge(who: str, result: Any) -> Agreement:
        left = surviving(net, result[0] if isinstance(result, tuple) else result, y)
        if who == OFFICIAL:
            wanted.append(left)
        most = 1.5 / len(x)  # one image
        gap = abs(left - wanted[0]) if wanted else math.nan
        return Agreement("robust accuracy, apart from the official package's,", gap, most,
                         gap <= most)  # fmt: skip

    yield from held(case, Contest(found, judge, absent, before=lambda: torch.manual_seed(0)))


def _official(
    net: Any, x: Tensor, y: Tensor, norm: str, eps: float, batch: int, device: str
) -> Callable[[], Any]:
    module = rivals.imported(OFFICIAL, "pyautoattack")
    attack = module.AutoAttack(net, norm=norm, eps=eps, seed=0, device=device)
    attack.verbose = False
    return lambda: attack.run_standard_evaluation(x, y, batch_size=batch)


@torch.no_grad()
def surviving(net: Any, x_adv: Tensor, y: Tensor) -> float:
    """The share of images whose label the unmodified network still gives."""
    return float((net(x_adv).argmax(1) == y).float().mean())
