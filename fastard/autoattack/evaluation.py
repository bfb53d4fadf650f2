"""One run of AutoAttack: who is still robust, what each attack sees, and what it broke."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastard.autoattack import checks
from fastard.autoattack.judge import distance, drawn_in, inside, verdict
from fastard.autoattack.report import CLEAN, RESTORED, ROBUST, Report
from fastard.autoattack.state import Adversarials, EvaluationState, Found
from fastard.autoattack.versions import plan, settings
from fastard.checks import labels_below
from fastard.engine import attack_mode
from fastard.engine.precision import arithmetic, resolve
from fastard.kinds import parse_norm

if TYPE_CHECKING:
    from fastard.autoattack.driver import AutoAttack


class Evaluation:
    """The images, their labels, and what is known of them so far."""

    def __init__(
        self, owner: AutoAttack, x: Tensor, y: Tensor, bs: int, path: Path | None, ids: Tensor
    ) -> None:
        self.owner, self.x, self.y, self.bs, self.ids = owner, x.detach(), y, bs, ids
        self.norm, self.device = parse_norm(owner.norm), owner.device_of(x)
        self.state, self.adversarials = self._opened(path)
        self.x_adv, self.y_adv = x.detach().clone(), y.detach().clone()
        self.robust = torch.zeros(len(x), dtype=torch.bool)
        self.tried: dict[str, Tensor] = {}
        self.search = owner.make_search()
        # One seed a run: each sample's draws are its own, however it is batched.
        self.seed = int(owner.get_seed())
        told = self.seed if owner.compat is None else owner.seed
        self.report = Report(
            owner.version, (), owner.norm, owner.epsilon, told, owner.compat, owner.engine,
            owner.precision, self.robust, [ROBUST] * len(x))  # fmt: skip
        # The attacks have the logger too: what they flag belongs to this report.
        owner.logger.flags = self.report.flags
        self._forwards = 0

    def _opened(self, path: Path | None) -> tuple[EvaluationState, Adversarials | None]:
        owner = self.owner
        kept = None if path is None else Adversarials(path)
        if path is None or not path.exists():
            return EvaluationState(path, set(owner.attacks_to_run)), kept
        state = EvaluationState.load(path)
        if set(owner.attacks_to_run) != state.attacks_to_run:
            raise ValueError(
                "The state was created with a different set of attacks to run. You are probably "
                "using the wrong state file."
            )
        if state.robust_flags is not None and len(state.robust_flags) != len(self.x):
            raise ValueError(
                f"state_path must hold a flag for each of the {len(self.x)} samples of x, but "
                f"{path} has {len(state.robust_flags)}."
            )
        owner.say(f"Restored state from {path}")
        return state, kept

    def run(self) -> tuple[Tensor, Tensor]:
        """Everything; returns x_adv and the classes that the model sees in it."""
        owner, cuda = self.owner, self.device.type == "cuda"
        with ExitStack() as around:
            around.enter_context(torch.random.fork_rng([self.device] if cuda else []))
            around.enter_context(torch.inference_mode(False))
            around.enter_context(torch.no_grad())
            around.enter_context(attack_mode(owner.model))
            around.enter_context(
                arithmetic(resolve("fp32", self.device.type), owner.model, self.device.type)
            )
            around.enter_context(owner.attacking(self.search))
            left = [a for a in owner.attacks_to_run if a not in self.state.run_attacks]
            owner.say(f"using {owner.version} version including {', '.join(left)}.")
            if self.state.run_attacks:
                owner.say(f"{', '.join(self.state.run_attacks)} was/were already run.")
            classes = self._check_model()
            self._clean(classes)
            self._attack_all(classes)
        return self.x_adv, self.y_adv

    def _flag(self, message: str | None) -> None:
        if message is not None:
            self.owner.logger.warning(message)

    def _batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        rows = rows.to(self.x.device)
        return self.x[rows].to(self.device), self.y[rows].to(self.device)

    def _logits(self, x: Tensor) -> Tensor:
        self._forwards += len(x)
        logits = self.owner.get_logits(x)
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(x):
            raise ValueError(
                f"the model must answer logits [{len(x)}, classes], but answered "
                f"{list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__}."
            )
        return logits

    def _check_model(self) -> int:
        owner = self.owner
        x, y = self._batch(torch.arange(min(self.bs, len(self.x))))
        output = self._logits(x)
        classes = output.shape[1]
        labels_below(self.y, classes, "y_orig")
        if owner.version != "rand":
            self._flag(checks.randomized(self._logits, x, y))
        self._flag(checks.range_output(output))
        self._flag(checks.dynamic(owner.get_logits, x))
        targets = owner.apgd_targeted.n_target_classes, owner.fab.n_target_classes
        self._flag(checks.n_classes(classes, owner.attacks_to_run, *targets))
        return classes

    def _clean(self, classes: int) -> None:
        report, state = self.report, self.state
        for rows in torch.arange(len(self.x)).split(self.bs):
            x, y = self._batch(rows)
            found = verdict(self._logits(x), y)
            self.y_adv[rows] = found.predicted.to(self.y_adv)
            self.robust[rows] = ~found.wrong.cpu()
            report.unusable += int(found.unusable.sum())
        for row in (~self.robust).nonzero()[:, 0].tolist():
            report.broken_by[row] = CLEAN
        accuracy = self._accuracy()
        if state.robust_flags is None:
            state.robust_flags, state.clean_accuracy = self.robust, accuracy
            report.accuracy["clean"] = accuracy
            if self.adversarials is not None:
                self.adversarials.clear()
                self.owner.say(f"Created state in {state.path}")
            state.save(force=True)
            self.owner.say(f"initial accuracy: {accuracy:.2%}")
        else:
            report.accuracy["clean"] = state.clean_accuracy
            self._restore(state.robust_flags)
            state.robust_flags = self.robust
            self.owner.say(f"initial clean accuracy: {state.clean_accuracy:.2%}")
            self.owner.say(
                f"robust accuracy at the time of restoring the state: {self._accuracy():.2%}"
            )

    def _restore(self, flags: Tensor) -> None:
        """What an earlier run broke: its adversarials where they were kept, else its flags."""
        report = self.report
        for found in self.adversarials.read() if self.adversarials else []:
            if found.attack not in self.state.run_attacks:
                before = self.tried.get(found.attack, found.rows[:0])
                self.tried[found.attack] = torch.cat((before, found.rows))
            self._break(found)
        lost = self.robust & ~flags
        for row in lost.nonzero()[:, 0].tolist():
            report.broken_by[row] = RESTORED
        self.robust &= flags
        if lost.any():
            self.owner.say(
                f"The state says only that {int(lost.sum())} samples were broken: their clean "
                "images are returned."
            )
            return
        robust = len(self.robust) - report.broken_by.count(CLEAN)
        for attack in self.state.run_attacks:
            robust -= report.broken_by.count(attack)
            report.accuracy[attack] = robust / len(self.robust)

    def _break(self, found: Found) -> None:
        rows = found.rows[found.broken]
        self.robust[rows] = False
        self.x_adv[rows.to(self.x_adv.device)] = found.adv.to(self.x_adv)
        self.y_adv[rows.to(self.y_adv.device)] = found.predicted.to(self.y_adv)
        for row in rows.tolist():
            self.report.broken_by[row] = found.attack

    def _accuracy(self) -> float:
        return int(self.robust.sum()) / len(self.robust)

    def _attack_all(self, classes: int) -> None:
        owner, report, state = self.owner, self.report, self.state
        chosen = plan(
            owner.attacks_to_run, classes, owner.apgd_targeted.n_target_classes,
            owner.fab.n_target_classes)  # fmt: skip
        report.attacks, report.targets = chosen.attacks, chosen.most_targets
        if chosen.reductions:
            report.version, report.reductions = "reduced", chosen.reductions
            owner.say(f"reduced version: {'; '.join(chosen.reductions)}")
        begun = time.perf_counter()
        for attack in chosen.attacks:
            if attack in state.run_attacks:
                continue
            if owner.epsilon == 0 or not self.robust.any():
                owner.say("eps is 0: no image to search" if self.robust.any() else
                          "no robust datapoints left, skipping remaining attacks")  # fmt: skip
                break
            self._attack(attack)
            report.accuracy[attack] = self._accuracy()
            state.run_attacks.append(attack)
            state.save()
            owner.say(
                f"robust accuracy after {attack.upper()}: {self._accuracy():.2%} (total time "
                f"{time.perf_counter() - begun:.1f} s)"
            )
        self._flag(checks.square_success(report.accuracy))
        state.save(force=True)
        largest = float(distance(self.x_adv, self.x, self.norm).max())
        owner.say(
            f"max {owner.norm} perturbation: {largest:.5f}, nan in tensor: "
            f"{int(self.x_adv.isnan().sum())}, max: {float(self.x_adv.max()):.5f}, min: "
            f"{float(self.x_adv.min()):.5f}"
        )
        owner.say(f"robust accuracy: {self._accuracy():.2%}")

    def _attack(self, attack: str) -> None:
        """One attack on all that are robust, regrouped into full batches."""
        report, begun = self.report, time.perf_counter()
        counted = self._counts()
        left = self.robust.clone()
        # Every sample's draws are its own: what an interrupted run has tried needs no second try.
        if self.owner.compat is None and attack in self.tried:
            left[self.tried[attack]] = False
        rows_left = left.nonzero()[:, 0]
        # Splitting nothing makes one empty batch.
        batches = rows_left.split(self.bs) if len(rows_left) else ()
        done = 0
        for number, rows in enumerate(batches, 1):
            broken = self._attack_batch(attack, rows)
            done += len(rows)
            self.owner.say(
                f"{attack} - {number}/{len(batches)} - {broken} out of {len(rows)} successfully "
                "perturbed"
            )
            if self.owner.on_batch is not None:
                self.owner.on_batch(attack, done, int(left.sum()), self._accuracy())
        forwards, gradients = self._counts()
        report.seconds[attack] = time.perf_counter() - begun
        report.forwards[attack] = forwards - counted[0]
        report.gradients[attack] = gradients - counted[1]

    def _counts(self) -> tuple[int, int]:
        return self._forwards + self.search.forwards, self.search.gradients

    def _attack_batch(self, name: str, rows: Tensor) -> int:
        owner = self.owner
        x, y = self._batch(rows)
        with settings(owner, name, self.report.targets) as attack:
            attack.seed = owner.get_seed() if owner.compat else self.seed
            adv = attack.perturb(x, y, ids=self.ids[rows].to(self.device))
        adv, said = self._judged(adv, x, y)
        broken = said.wrong.nonzero()[:, 0]
        self.report.unusable += int(said.unusable.sum())
        found = Found(
            name, rows, broken.cpu(), adv[broken].to(self.x_adv), said.predicted[broken].cpu()
        )
        self._break(found)
        if self.adversarials is not None:
            self.adversarials.add(found)
        self.state.save(force=True)
        return len(broken)

    def _judged(self, adv: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Any]:
        """The images whose verdict counts, and it; the official code looks at no norm."""
        owner, report = self.owner, self.report
        said = verdict(self._logits(adv), y)
        if owner.compat is not None:
            return adv, said
        outside = said.wrong & ~inside(adv, x, owner.epsilon, self.norm)
        if not outside.any():
            return adv, said
        adv = adv.clone()
        # NaN pixels are no image at all: the clean one takes their place.
        whole = adv.isfinite().flatten(1).all(1).view(-1, *[1] * (x.dim() - 1))
        moved = drawn_in(torch.where(whole, adv, x), x, owner.epsilon, self.norm)
        adv[outside] = moved[outside]
        again = verdict(self._logits(adv), y)
        still = again.wrong & inside(adv, x, owner.epsilon, self.norm)
        report.drawn_in += int(outside.sum())
        report.rejected += int((outside & ~still).sum())
        again.wrong = torch.where(outside, still, again.wrong)
        return adv, again
