"""One run of AutoAttack: who is still robust, what each attack sees, and what it broke."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastard.autoattack import checks
from fastard.autoattack.judge import Verdict, distance, drawn_in, inside, verdict
from fastard.autoattack.report import CLEAN, RESTORED, ROBUST, Report
from fastard.autoattack.search import EagerSearch, EngineSearch, missing_gradient
from fastard.autoattack.state import Adversarials, EvaluationState, Found, identity
from fastard.autoattack.versions import Plan, plan, settings, without_gradients
from fastard.checks import labels_below
from fastard.engine import attack_mode
from fastard.engine.precision import arithmetic, resolve
from fastard.kinds import parse_norm
from fastard.shapes import per_sample

# A logit's lead, over the largest logit, that no rounding of another batch explains.
_CLEAR = 1e-3

if TYPE_CHECKING:
    from fastard.autoattack.driver import AutoAttack


class Evaluation:
    """The images, their labels, and what is known of them so far."""

    def __init__(
        self, owner: AutoAttack, x: Tensor, y: Tensor, bs: int, path: Path | None, ids: Tensor
    ) -> None:
        self.owner, self.x, self.y, self.bs, self.ids = owner, x.detach(), y, bs, ids
        self.norm, self.device = parse_norm(owner.norm), owner.device_of(x)
        self.identity: dict[str, Any] = {}
        if path is not None:
            self.identity = identity(self.x, y, owner.epsilon, owner.norm, owner.seed)
        self.state, self.adversarials = self._opened(path)
        self.x_adv, self.y_adv = x.detach().clone(), y.detach().clone()
        self.robust = torch.zeros(len(x), dtype=torch.bool)
        self.tried: dict[str, Tensor] = {}
        self.search: EagerSearch | EngineSearch
        self.random = owner.version == "rand"
        # One seed a run: each sample's draws are its own, however it is batched.
        self.seed = int(owner.get_seed())
        told = self.seed if owner.compat is None else owner.seed
        self.report = Report(
            owner.version_name, (), owner.norm, owner.epsilon, told, owner.compat, owner.engine,
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
        if kept is not None and state.robust_flags is not None:
            kept.require_of(self.identity)
        owner.say(f"Restored state from {path}")
        return state, kept

    def run(self) -> tuple[Tensor, Tensor]:
        """Everything; returns x_adv and the classes that the model sees in it."""
        owner, cuda = self.owner, self.device.type == "cuda"
        with ExitStack() as around:
            around.enter_context(torch.random.fork_rng([self.device] if cuda else []))
            around.enter_context(torch.no_grad())
            around.enter_context(attack_mode(owner.model))
            around.enter_context(
                arithmetic(resolve("fp32", self.device.type), owner.model, self.device.type)
            )
            left = [a for a in owner.attacks_to_run if a not in self.state.run_attacks]
            owner.say(f"using {owner.version} version including {', '.join(left)}.")
            if self.state.run_attacks:
                owner.say(f"{', '.join(self.state.run_attacks)} was/were already run.")
            for sentence in owner.misspelt():
                self._flag(sentence)
            classes = self._check_model()
            self.search = self._made_search()
            chosen = self._planned(classes)
            around.enter_context(owner.attacking(self.search))
            self._clean()
            self._attack_all(chosen)
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
            flag = checks.randomized(self._logits, x, y)
            self._flag(flag)
            self.random = flag is not None
        self._flag(checks.range_output(output))
        self._flag(checks.dynamic(owner.get_logits, x))
        targets = owner.apgd_targeted.n_target_classes, owner.fab.n_target_classes
        self._flag(checks.n_classes(classes, owner.attacks_to_run, *targets))
        return classes

    def _made_search(self) -> EagerSearch | EngineSearch:
        if self.random and self.report.engine:
            self.report.engine = False
            self.owner.say("A random model: the search runs it as it is, without the engine.")
        return self.owner.make_search(self.random)

    def _planned(self, classes: int) -> Plan:
        """What runs; says why where that is less than was asked for."""
        owner, report = self.owner, self.report
        chosen = plan(
            owner.attacks_to_run, classes, owner.apgd_targeted.n_target_classes,
            owner.fab.n_target_classes)  # fmt: skip
        if any(attack != "square" for attack in chosen.attacks):
            why = missing_gradient(self.search, self._batch(torch.arange(min(2, len(self.x))))[0])
            if why is not None:
                chosen = without_gradients(chosen, why)
                self._flag(chosen.reductions[-1])
        report.attacks, report.targets = chosen.attacks, chosen.most_targets
        report.classes = classes
        if chosen.reductions:
            changed = report.version.partition(", changed ")
            report.version = f"reduced{''.join(changed[1:])}"
            report.reductions = chosen.reductions
            owner.say(f"reduced version: {'; '.join(chosen.reductions)}")
        return chosen

    def _clean(self) -> None:
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
                self.adversarials.begin(self.identity)
                self.owner.say(f"Created state in {state.path}")
            state.save(force=True)
            self.owner.say(f"initial accuracy: {accuracy:.2%}")
        else:
            report.accuracy["clean"], report.resumed = state.clean_accuracy, True
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
            self._require_broken(found)
            self._break(found)
        lost = self.robust & ~flags
        for row in lost.nonzero()[:, 0].tolist():
            report.broken_by[row] = RESTORED
        self.robust &= flags
        if lost.any():
            self._flag(
                f"{self.state.path} says of {int(lost.sum())} samples only that they were broken, "
                "and their images are not beside it: the clean ones are returned for them."
            )
            return
        robust = len(self.robust) - report.broken_by.count(CLEAN)
        for attack in self.state.run_attacks:
            robust -= report.broken_by.count(attack)
            report.accuracy[attack] = robust / len(self.robust)

    def _require_broken(self, found: Found) -> None:
        """Raises ValueError for restored images that do not break this model at these images."""
        rows = found.rows[found.broken]
        if not len(rows):
            return
        fits = int(rows.max()) < len(self.x) and found.adv.shape[1:] == self.x.shape[1:]
        if fits:
            x, y = self._batch(rows)
            adv = found.adv.to(x)
            if self.owner.compat is None:
                fits = bool(inside(adv, x, self.owner.epsilon, self.norm).all())
            if fits and not self.random:
                logits = self._logits(adv)
                own = logits.gather(1, y[:, None])
                lead = own - logits.scatter(1, y[:, None], -torch.inf).amax(1, True)
                clear = lead > _CLEAR * logits.abs().amax(1, True)
                fits = not bool(clear.any())
        if not fits:
            raise ValueError(
                f"state_path must be a file of this evaluation, but an image that {found.attack} "
                f"found, restored from {self.state.path}, does not break this model in this ball."
            )

    def _break(self, found: Found) -> None:
        rows = found.rows[found.broken]
        self.robust[rows] = False
        self.x_adv[rows.to(self.x_adv.device)] = found.adv.to(self.x_adv)
        self.y_adv[rows.to(self.y_adv.device)] = found.predicted.to(self.y_adv)
        for row in rows.tolist():
            self.report.broken_by[row] = found.attack

    def _accuracy(self) -> float:
        return int(self.robust.sum()) / len(self.robust)

    def _attack_all(self, chosen: Plan) -> None:
        owner, report, state = self.owner, self.report, self.state
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
            adv = attack.perturb(x, y, ids=self.ids[rows].to(self.device)).to(x.dtype)
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

    def _judged(self, adv: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Verdict]:
        """The images whose verdict counts, and it; the official code looks at no norm."""
        owner, report = self.owner, self.report
        said = verdict(self._logits(adv), y)
        if owner.compat is not None:
            return self._clipped(adv, y, said)
        outside = said.wrong & ~inside(adv, x, owner.epsilon, self.norm)
        if not outside.any():
            return adv, said
        adv = adv.clone()
        # NaN pixels are no image at all: the clean one takes their place.
        whole = per_sample(adv.isfinite().flatten(1).all(1), x)
        moved = drawn_in(torch.where(whole, adv, x), x, owner.epsilon, self.norm)
        adv[outside] = moved[outside]
        again = verdict(self._logits(adv), y)
        still = again.wrong & inside(adv, x, owner.epsilon, self.norm)
        report.drawn_in += int(outside.sum())
        report.rejected += int((outside & ~still).sum())
        again.wrong = torch.where(outside, still, again.wrong)
        return adv, again

    def _clipped(self, adv: Tensor, y: Tensor, said: Verdict) -> tuple[Tensor, Verdict]:
        """Official images in the box, where they break the model there too."""
        clipped = adv.clamp(0, 1)
        over = said.wrong & (clipped != adv).flatten(1).any(1)
        if not over.any():
            return adv, said
        again = verdict(self._logits(clipped), y)
        over &= again.wrong
        said.predicted = torch.where(over, again.predicted, said.predicted)
        return torch.where(per_sample(over, adv), clipped, adv), said
