"""A suite over a set of images, block by block, by one process or several."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress, TaskID
from torch import Tensor, nn

from fastard import checks
from fastard.data import ImageSet
from fastard.evaluation.attacks import AutoAttackParts, Setting, SuiteAttack
from fastard.evaluation.journal import Journal, column
from fastard.evaluation.judge import judge_block
from fastard.evaluation.pictures import examples
from fastard.evaluation.results import result_of
from fastard.evaluation.suites import SUITES
from fastard.kinds import parse_norm, unknown
from fastard.progress import QUIET, progress_bar
from fastard.radius import REFERENCE_EPS

CLEAN = "clean"


def evaluate(
    model: nn.Module,
    images: ImageSet,
    *,
    eps: float = REFERENCE_EPS,
    norm: str = "Linf",
    suite: str = "basic",
    n: int | None = None,
    batch_size: int = 256,
    seed: int = 0,
    precision: str = "fp32",
    surrogate: nn.Module | None = None,
    console: Console = QUIET,
) -> dict[str, Any]:
    """Attacks a model with every attack of a suite and counts the survivors.

    Each verdict is the argmax of the model itself, in fp32 and eval mode, at the image that the
    attack returns (its last iterate, for PGD); "worst" counts the samples that are right when clean
    and survive every attack. NaN and +inf logits count as broken and are reported. Step sizes are
    the suite's at eps = 8/255 and follow eps in proportion. Random numbers belong to (seed,
    sample): they do not change with the batch size.

    Args:
        model: takes images in [0, 1]; its modes and statistics stay as they are.
        images: the images and labels, on the model's device.
        eps: radius of the attacks. norm: "Linf", "L2" or "L1".
        suite: name of the suite.
        n: only the first n images.
        seed: of the random starts.
        precision: of the search; the verdicts are always fp32.
        surrogate: the network that transfer attacks are made on.
        console: shows progress; silent by default.

    Returns: a dict that JSON can hold: `accuracy` by attack in [0, 1], `weighted_robust_accuracy`
        (the mean of clean and worst), `weighted` (that of clean and each attack), per-sample
        `verdicts` by attack (1 survived, 0 broken), `broken_by` (the first attack that broke a
        sample, None where none did), `broken_logits` (counts), `reduced` (the attacks that too few
        classes left incomplete), `seconds`, and the protocol.

    Raises ValueError for an unknown suite, n out of range, a negative or infinite eps, a missing
        surrogate, or logits of another shape; TypeError for a model that does not return one
        tensor.
    """
    run = Evaluation(
        Setting(model, eps, norm, seed, precision, surrogate), images, suite, n, batch_size
    )
    run.go(console)
    return run.result()


class Evaluation:
    """One suite on one network: what is done, and what is left to do.

    Args:
        journal: keeps the verdicts on disk; without one they live in memory.
        rank, world: this process takes every `world`-th block, from the rank-th on; blocks are
            then as small as gives every process as many.
    """

    def __init__(
        self, setting: Setting, images: ImageSet, suite: str, n: int | None = None,
        batch_size: int = 256, journal: Journal | None = None, rank: int = 0, world: int = 1,
    ) -> None:  # fmt: skip
        if suite not in SUITES:
            raise unknown("suite", suite, SUITES)
        parse_norm(setting.norm)
        if not 0 <= setting.eps < math.inf:
            raise ValueError(f"eps must be at least 0 and finite, but is {setting.eps}.")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, but is {batch_size}.")
        checks.seed(setting.seed)
        if n is not None and not 1 <= n <= len(images):
            raise ValueError(
                f"n must lie between 1 and {len(images)}, the images there, but is {n}."
            )
        self.setting, self.suite, self.journal = setting, suite, journal
        self.images = images.first(n) if n is not None else images
        self.batch_size, self.rank, self.world = batch_size, rank, world
        self._block = batch_size
        if world > 1:
            rounds = math.ceil(len(self.images) / (batch_size * world))
            self._block = math.ceil(len(self.images) / (rounds * world))
        self.attacks: list[SuiteAttack] = [attack.at(setting.eps) for attack in SUITES[suite]]
        transferred = any(getattr(attack, "transferred", False) for attack in self.attacks)
        if transferred and setting.surrogate is None:
            raise ValueError(
                f"surrogate (--surrogate) must be given for the suite {suite!r}: its attacks are "
                "made on one."
            )
        self._blocks: list[dict[str, Any]] = []

    @property
    def blocks(self) -> list[dict[str, Any]]:
        """What has been found so far."""
        return self._blocks if self.journal is None else self.journal.blocks

    def _mine(self, done: set[int]) -> Iterable[Tensor]:
        """The samples of each block that is this process's and has no verdict yet."""
        device, count = self.images.device, len(self.images)
        for number, start in enumerate(range(0, count, self._block)):
            if number % self.world == self.rank:
                rows = [i for i in range(start, min(start + self._block, count))
                        if i not in done]  # fmt: skip
                if rows:
                    yield torch.tensor(rows, device=device)

    def _survived(self, key: str) -> dict[int, bool]:
        """Each sample's verdict under an attack, as far as it is known."""
        return {
            sample: bool(survived)
            for block in self.blocks
            if block["attack"] == key
            for sample, survived in zip(block["ids"], block["survived"], strict=True)
        }

    def go(self, console: Console = QUIET) -> None:
        """Judges what has no verdict yet, attack after attack."""
        fields = "accuracy {task.fields[accuracy]}  worst so far {task.fields[worst]}"
        fields += "  {task.fields[inside]}"
        with progress_bar(console, fields) as progress:
            worst: dict[int, bool] = {}
            for attack in (None, *self.attacks):
                key, title = (CLEAN, CLEAN) if attack is None else (attack.key, attack.title)
                kept = self._survived(key)
                left = list(self._mine(set(kept)))
                total = len(kept) + sum(len(rows) for rows in left)
                task = progress.add_task(
                    f"{title:<18}", total=total, accuracy="-", worst="-", inside=""
                )
                self.setting = replace(self.setting, on_part=_shown(progress, task))
                for rows in [None, *left]:
                    if rows is not None:
                        self._judge(attack, key, rows)
                        kept = self._survived(key)
                    if kept:
                        now = [alive and worst.get(i, True) for i, alive in kept.items()]
                        progress.update(
                            task,
                            completed=len(kept),
                            inside="",
                            accuracy=f"{100 * sum(kept.values()) / len(kept):5.2f}%",
                            worst=f"{100 * sum(now) / len(now):5.2f}%",
                        )
                worst = {i: alive and worst.get(i, True) for i, alive in kept.items()}

    def _judge(self, attack: SuiteAttack | None, key: str, rows: Tensor) -> None:
        begun = time.perf_counter()
        x, y = self.images.float(rows), self.images.y[rows]
        broken = {i for b in self.blocks if b["attack"] == CLEAN
                  for i, bad in zip(b["ids"], b["broken_logits"], strict=True) if bad}  # fmt: skip
        ids = rows.tolist()
        skip = torch.tensor([i in broken for i in ids], device=x.device)
        path = None if self.journal is None else self.journal.state_path(key, ids)
        setting = replace(self.setting, notes=set(), reduced=set(), state_path=path)
        found = judge_block(setting, attack, x, y, rows, skip)
        block = {
            "attack": key,
            "ids": ids,
            "survived": found.survived.int().tolist(),
            "broken_logits": found.broken_logits.int().tolist(),
            "by": found.by,
            "seconds": round(time.perf_counter() - begun, 3),
            "notes": sorted(setting.notes),
            "reduced": key in setting.reduced,
            "examples": [] if attack is None else examples(found, y, rows, attack.title),
        }
        if self.journal is None:
            self._blocks.append(block)
        else:
            self.journal.add(block)
            self.journal.forget_state(key, ids)

    def result(self) -> dict[str, Any]:
        """The whole evaluation as a dict; every sample must have its verdicts."""
        keys = [CLEAN, *(attack.key for attack in self.attacks)]
        n = len(self.images)
        survived = {key: column(self.blocks, key, "survived", n) for key in keys}
        reduced = {block["attack"] for block in self.blocks if block["reduced"]}
        attacks: list[SuiteAttack] = [
            replace(attack, version="reduced")
            if isinstance(attack, AutoAttackParts) and attack.key in reduced
            else attack
            for attack in self.attacks
        ]
        return result_of(
            self.setting, self.suite, attacks, self.batch_size, survived,
            by={key: column(self.blocks, key, "by", n) for key in keys},
            broken={key: column(self.blocks, key, "broken_logits", n) for key in keys},
            reduced=sorted(reduced),
            notes=sorted({note for block in self.blocks for note in block["notes"]}),
            seconds={
                key: round(sum(b["seconds"] for b in self.blocks if b["attack"] == key), 3)
                for key in keys
            },
        )  # fmt: skip


def _shown(progress: Progress, task: TaskID) -> Callable[[str, float], None]:
    """Shows what an attack of several parts has done of a block."""

    def show(part: str, accuracy: float) -> None:
        progress.update(task, inside=f"of this block {part} leaves {100 * accuracy:.2f}%")

    return show
