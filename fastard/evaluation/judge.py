"""The verdict on each sample: attacked, then asked of the user's own network."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fastard.data import ImageSet
from fastard.engine import attack_mode
from fastard.engine.precision import arithmetic, resolve
from fastard.evaluation.attacks import (
    Setting,
    SuiteAttack,
    require_logits,
    usable,
)
from fastard.radius import REFERENCE_EPS


@dataclass(frozen=True)
class Verdicts:
    """What became of each sample: `survived` (bool [N]), and where the logits were NaN or +inf;
    `by` names, for attacks of several parts, the one that broke each sample ("" none)."""

    survived: Tensor
    broken_logits: Tensor
    by: list[str] = field(default_factory=list)

    @property
    def accuracy(self) -> float:
        return int(self.survived.sum()) / len(self.survived)


@dataclass(frozen=True)
class Block:
    """A block's verdicts, with the images as they were attacked and what the network said."""

    survived: Tensor
    broken_logits: Tensor
    by: list[str]
    x: Tensor
    adv: Tensor
    answer: Tensor


@contextlib.contextmanager
def asked(model: nn.Module, device: str) -> Iterator[None]:
    """Around passes whose answers are verdicts: fp32, eval mode, as it was before afterwards."""
    with arithmetic(resolve("fp32", device), model, device), attack_mode(model):
        yield


def judge_block(
    setting: Setting, attack: SuiteAttack | None, x: Tensor, y: Tensor, ids: Tensor,
    skip: Tensor | None = None,
) -> Block:  # fmt: skip
    """Attacks images x of the samples `ids` (none, without an attack) and asks the network.

    `skip`, [B] bool: samples that are not attacked because their clean logits are broken.
    """
    adv, by = x, [""] * len(x)
    with asked(setting.model, x.device.type):
        if attack is not None:
            chosen = torch.arange(len(x), device=x.device)
            if skip is not None:
                chosen = chosen[~skip]
            if len(chosen):
                found, parts = attack.search(setting, x[chosen], y[chosen], ids[chosen])
                adv = x.clone()
                adv[chosen] = found.to(adv.dtype)
                for row, part in zip(chosen.tolist(), parts or (), strict=False):
                    by[row] = part
        with torch.no_grad():
            logits = require_logits(setting.model(adv), len(x))
    good = usable(logits)
    answer = logits.argmax(1)
    # What the attack saw broken stays broken: a second pass, in another batch, may round otherwise.
    unbroken = torch.tensor([part == "" for part in by], device=x.device)
    return Block((answer == y) & good & unbroken, ~good, by, x, adv, answer)


def judge(
    model: nn.Module,
    images: ImageSet,
    attack: SuiteAttack | None = None,
    *,
    eps: float = REFERENCE_EPS,
    norm: str = "Linf",
    batch_size: int = 256,
    seed: int = 0,
    precision: str | None = "fp32",
    skip: Tensor | None = None,
    ids: Tensor | None = None,
    on_batch: Callable[[int, int], None] = lambda samples, survivors: None,
) -> Verdicts:
    """Attacks every image (or none, without an attack) and asks the model itself for the verdict.

    A sample survives when the argmax of the model's own fp32 logits in eval mode, at the image that
    the attack returns, is its label. NaN and +inf logits never survive. Noise is keyed by `seed`
    and the sample, whatever the batch size.

    Args:
        attack: applied as it is; use `at(eps)` for its step size.
        precision: of the search for adversarial images; the verdict is always fp32.
        skip: bool [N], samples that are not attacked because their clean logits are broken.
        ids: int64 [N], which samples these are; their places in `images` when left out.
        on_batch: called with the number of samples and survivors so far.
    """
    setting = Setting(model, eps, norm, seed, precision)
    device = images.device
    ids = torch.arange(len(images), device=device) if ids is None else ids.to(device)
    found: list[Block] = []
    for start in range(0, len(images), batch_size):
        rows = torch.arange(start, min(start + batch_size, len(images)), device=device)
        block = judge_block(
            setting, attack, images.float(rows), images.y[rows], ids[rows],
            None if skip is None else skip[rows],
        )  # fmt: skip
        found.append(block)
        on_batch(int(rows[-1]) + 1, int(sum(b.survived.sum() for b in found)))
    return Verdicts(
        torch.cat([b.survived for b in found]),
        torch.cat([b.broken_logits for b in found]),
        [part for b in found for part in b.by],
    )
