"""AutoAttack standard beside the official package's: equal verdicts, then time.

The labels are the network's own predictions and the radius is small, so that a part of the images
survives without any training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import fastard

from . import rivals
from .attack_contests import prepared
from .case import Case
from .contest import Contest, Contestant, Unjudged, first_line, held
from .record import OURS, Agreement, Line
from .rivals import Absent

OFFICIAL = "pyautoattack"
NOTHING = "there is nothing to agree with"
# An image on the boundary itself may fall either way.
DIFFERING = 1


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
    status, why = "", ""
    try:
        official = _official(net, x, y, norm, eps, batch, case.device)
    except Absent as error:
        status, why = "unavailable", str(error)
    except Exception as error:  # whatever a library of others raises
        status, why = "failed", first_line(error)
    if status:
        yield case.line(OURS, "skipped", reason=f"{NOTHING}: {OFFICIAL} is {status}")
        yield case.line(OFFICIAL, status, reason=why)
        return
    found = {OFFICIAL: Contestant(official, rivals.version(OFFICIAL))}
    found[OURS] = Contestant(
        lambda: attack.run_standard_evaluation(x, y, bs=batch), fastard.__version__
    )
    wanted: list[Tensor] = []

    def judge(who: str, result: Any) -> Agreement:
        left = surviving(net, result[0] if isinstance(result, tuple) else result, y)
        if who == OFFICIAL:
            wanted.append(left)
        if not wanted:
            raise Unjudged(f"{NOTHING}: {OFFICIAL} failed")
        differing = int((left != wanted[0]).sum())
        return Agreement("the number of verdicts that differ from the official package's",
                         differing, DIFFERING, differing <= DIFFERING)  # fmt: skip

    yield from held(case, Contest(found, judge, before=lambda: torch.manual_seed(0)))


def _official(
    net: Any, x: Tensor, y: Tensor, norm: str, eps: float, batch: int, device: str
) -> Callable[[], Any]:
    module = rivals.imported(OFFICIAL, "pyautoattack")
    attack = module.AutoAttack(net, norm=norm, eps=eps, seed=0, device=device)
    attack.verbose = False
    return lambda: attack.run_standard_evaluation(x, y, batch_size=batch)


@torch.no_grad()
def surviving(net: Any, x_adv: Tensor, y: Tensor) -> Tensor:
    """[B] bool: the images whose label the unmodified network still gives."""
    return net(x_adv).argmax(1) == y
