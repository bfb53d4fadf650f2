"""`AutoAttack`: the official evaluation, its constructor and its methods."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from fastard import checks
from fastard.attacks.draws import require_keys
from fastard.autoattack.attack_set import make_attacks
from fastard.autoattack.evaluation import Evaluation
from fastard.autoattack.inputs import (
    checked_images,
    checked_seed,
    require_place,
    require_square_fits,
)
from fastard.autoattack.judge import verdict
from fastard.autoattack.log import Logger
from fastard.autoattack.report import Report
from fastard.autoattack.search import EagerSearch, EngineSearch
from fastard.autoattack.versions import (
    VERSIONS,
    changed,
    check_attacks,
    configure,
    settings_of,
)
from fastard.engine import Program, attack_mode
from fastard.engine.passes import NoGradient
from fastard.engine.precision import arithmetic, resolve
from fastard.engine.unwrap import Model
from fastard.kinds import nearest, parse_norm, unknown

COMPATS = (None, "official")


class AutoAttack:
    """The official AutoAttack: the same attacks, schedules and verdicts, in less time.

    Equivalent to: ``autoattack.AutoAttack(model, norm, eps, seed, verbose, attacks_to_run, version,
    is_tf_model, device, log_path)``, whose arguments stand in the same places.

    Every verdict is the argmax of the model itself, unmodified, in eval mode and fp32; the search
    runs on the engine. Samples are dropped once broken, and each attack sees only those still
    robust, regrouped into batches of `bs`. Training flags, `requires_grad`, `.grad` and the global
    random state are as before afterwards; the weights must not change while it runs.

    Args:
        model: images [B, C, H, W] in [0, 1] to logits [B, classes]; a module or a callable.
        norm: "Linf", "L2" or "L1". eps: the radius.
        seed: of the draws; None takes the time.
        verbose: print what the official code prints.
        attacks_to_run: with version="custom": of apgd-ce, apgd-dlr, apgd-t, fab, fab-t, square.
        version: "standard", "plus", "rand", or "custom", which keeps the constructors' settings (5
            restarts of APGD and FAB) until attributes such as ``apgd.n_restarts`` are set.
        is_tf_model: False.
        device: where the model is; None is x's device.
        log_path: a file that what is said is appended to.
        compat: None draws from numbers keyed by (seed, sample, attack, restart, target, iteration),
            so that no batch size, order or number of processes changes them. "official" draws in
            the official order, from a generator of its own, and accepts what it accepts (without a
            look at the norm); on the CPU its verdicts are the official code's.
        engine: whether the search runs on the compiled program; None: unless compat="official". A
            random model, and version="rand", is searched as it is: a program has one of its paths.
        precision: of the search on the engine; verdicts are fp32.

    Attributes:
        apgd, apgd_targeted, fab, square: the attacks, whose settings may be changed.
        report: what the last evaluation found, a `Report`; reports: those of the last
            `run_standard_evaluation_individual`, by attack.
        on_batch: called after each batch with (attack, samples done, samples in all, accuracy).

    Raises:
        TypeError, ValueError: bad arguments, in one sentence.

    Croce & Hein 2020 (arXiv 2003.01690), github.com/fra31/auto-attack.
    """

    def __init__(
        self,
        model: Model,
        norm: str = "Linf",
        eps: float = 0.3,
        seed: float | None = None,
        verbose: bool = True,
        attacks_to_run: Sequence[str] = (),
        version: str = "standard",
        is_tf_model: bool = False,
        device: str | torch.device | None = None,
        log_path: str | Path | None = None,
        *,
        compat: str | None = None,
        engine: bool | None = None,
        precision: str = "fp32",
    ) -> None:
        if is_tf_model:
            raise ValueError("is_tf_model must be False: fastard attacks PyTorch models alone.")
        if not callable(model):
            raise TypeError(f"model must be callable, but is {checks.describe(model)}.")
        checks.radius(eps, None, "eps")
        if isinstance(eps, Tensor):
            raise TypeError("eps must be one number for all samples, but is a tensor.")
        if version not in (*VERSIONS, "custom"):
            raise unknown("version", version, (*VERSIONS, "custom"))
        if version != "custom" and len(attacks_to_run):
            raise ValueError("attacks_to_run will be overridden unless you use version='custom'")
        if compat not in COMPATS:
            raise ValueError(f"compat must be None or 'official', but is {compat!r}.")
        resolve(precision, "cpu")
        self.engine = compat is None if engine is None else engine
        if precision != "fp32" and not self.engine:
            raise ValueError(f"precision must be 'fp32' without the engine, but is {precision!r}.")
        self.model, self.norm, self.epsilon = model, parse_norm(norm).name, float(eps)
        self.seed = checked_seed(seed)
        self.verbose, self.version, self.compat = verbose, version, compat
        self.attacks_to_run = check_attacks(attacks_to_run)
        self.device, self.precision = checks.device(device, "device"), precision
        self.logger = Logger(log_path)
        self.report: Report | None = None
        self.reports: dict[str, Report] = {}
        self.on_batch: Callable[[str, int, int, float], None] | None = None
        self.apgd, self.apgd_targeted, self.fab, self.square = make_attacks(
            model, self.norm, self.epsilon, self.seed, self.device, self.logger, compat
        )
        self._made = settings_of(self._attacks())
        self._names = {id(attack): set(vars(attack)) for attack in self._attacks().values()}
        if version != "custom":
            self.set_version(version)

    def _attacks(self) -> dict[str, Any]:
        return {
            "apgd": self.apgd, "apgd_targeted": self.apgd_targeted, "fab": self.fab,
            "square": self.square,
        }  # fmt: skip

    def set_version(self, version: str = "standard") -> None:
        """Sets attacks and settings of "standard", "plus" or "rand"."""
        if version not in VERSIONS:
            raise unknown("version", version, VERSIONS)
        if self.verbose:
            print(f"setting parameters for {version} version")
        self.version, self.attacks_to_run = version, list(VERSIONS[version])
        configure(version, self.norm, self.apgd, self.apgd_targeted, self.fab, self.square)
        if version == "plus" and self.norm == "L1" and self.verbose:
            print(f'"{version}" version is used with {self.norm} norm: please check')

    @property
    def version_name(self) -> str:
        """The version, and what was changed of it since."""
        if self.version not in VERSIONS:
            return self.version
        asked = {name: SimpleNamespace(**vars(made)) for name, made in self._made.items()}
        configure(self.version, self.norm, *asked.values())
        said = changed(
            asked, settings_of(self._attacks()), VERSIONS[self.version], self.attacks_to_run
        )
        return f"{self.version}, changed ({', '.join(said)})" if said else self.version

    def cheap(self) -> None:
        """One restart of each attack and 1,000 queries of Square, as the official code had it."""
        self.apgd.n_restarts = self.fab.n_restarts = self.apgd_targeted.n_restarts = 1
        self.square.n_queries = 1000

    def get_logits(self, x: Tensor) -> Tensor:
        """The model's answer, by which verdicts are given."""
        return self.model(x)

    def get_seed(self) -> float:
        """The seed, or the time where there is none."""
        return time.time() if self.seed is None else self.seed

    def say(self, text: str) -> None:
        """Prints and logs where verbose."""
        if self.verbose:
            self.logger.log(text)

    def device_of(self, x: Tensor) -> torch.device:
        """Where to run, by the name that tensors there bear: "cuda" is "cuda:0" there."""
        return x.device if self.device is None else torch.empty(0, device=self.device).device

    def make_search(self, random: bool = False) -> EagerSearch | EngineSearch:
        """How this evaluation's attacks see the model: its weights as they are now.

        Args:
            random: the model answers anew each time, which a program would not.
        """
        if self.compat == "official" and not self.engine:
            return EagerSearch(self.model)
        engine = self.engine and not random
        return EngineSearch(Program(self.model, self.precision, engine=engine, frozen=True))

    @contextmanager
    def attacking(self, search: EagerSearch | EngineSearch) -> Iterator[None]:
        """The attacks search by `search` in the block, and by models of their own outside."""
        attacks = self._attacks().values()
        kept = [(attack.search, attack.compat) for attack in attacks]
        for attack in attacks:
            attack.search, attack.compat = search, self.compat
        try:
            yield
        finally:
            for attack, (own, compat) in zip(attacks, kept, strict=True):
                attack.search, attack.compat = own, compat

    def run_standard_evaluation(
        self,
        x_orig: Tensor,
        y_orig: Tensor,
        bs: int = 250,
        return_labels: bool = False,
        state_path: str | Path | None = None,
        *,
        ids: Tensor | None = None,
    ) -> Any:
        """Runs the attacks in order, each on the samples that are still robust.

        Args:
            x_orig: [N, C, H, W] in [0, 1], fp32 (fp64 for an fp64 model), on any device.
            y_orig: integer labels [N].
            bs: samples at a time.
            return_labels: return the classes that the model sees in the images as well.
            state_path: a JSON file as the official code writes it. Where it exists, the run goes on
                from it; the adversarials found lie beside it in `state_path`.adversarials.
            ids: int64 [N], what the draws of each sample are keyed by: positions in x unless
                given; dataset indices where several processes share a dataset.
        Returns:
            x_adv, the clean image where none was found; or (x_adv, y_adv). `report` holds the rest.
        Raises:
            TypeError, ValueError: bad input, in one sentence.
        """
        # What is made under the caller's inference mode could be neither written nor followed.
        with torch.inference_mode(False):
            y, ids = checked_images(self.model, x_orig, y_orig, bs, ids)
            self._require_ready(x_orig, state_path)
            path = None if state_path is None else Path(state_path)
            evaluation = Evaluation(self, x_orig, y, bs, path, ids)
            self.report = evaluation.report
            x_adv, y_adv = evaluation.run()
        return (x_adv, y_adv) if return_labels else x_adv

    def _require_ready(self, x: Tensor, state_path: str | Path | None) -> None:
        """Refuses what an attack would fail on when its turn comes."""
        if not len(self.attacks_to_run):
            raise ValueError(
                "attacks_to_run must name at least one attack, of apgd-ce, apgd-dlr, apgd-t, fab, "
                "fab-t and square, but is empty."
            )
        check_attacks(self.attacks_to_run)
        if "square" in self.attacks_to_run:
            require_square_fits(x, self.norm, self.epsilon)
        if self.compat is None:
            for attack in self._attacks().values():
                require_keys(attack.n_restarts)
        require_place(state_path, "state_path")
        require_place(self.logger.log_path, "log_path")

    def misspelt(self) -> Iterator[str]:
        """A sentence for each attribute that an attack was given and does not have."""
        for name, attack in self._attacks().items():
            known = self._names.get(id(attack), set(vars(attack)))  # all of an attack of the user's
            for other in sorted(set(vars(attack)) - known):
                near = nearest(other, sorted(known))
                hint = f": did you mean {near[0]!r}?" if near else "."
                yield f"{name} has no setting {other!r}, which does nothing{hint}"

    def run_standard_evaluation_individual(
        self,
        x_orig: Tensor,
        y_orig: Tensor,
        bs: int = 250,
        return_labels: bool = False,
        *,
        ids: Tensor | None = None,
    ) -> dict[str, Any]:
        """Each attack on all samples that are right when clean; x_adv (and y_adv) by attack."""
        checked_images(self.model, x_orig, y_orig, bs, ids)
        self._require_ready(x_orig, None)
        names, verbose = self.attacks_to_run, self.verbose
        self.say(f"using {self.version} version including {', '.join(names)}")
        found, reports = {}, {}
        try:
            for name in names:
                begun = time.perf_counter()
                self.attacks_to_run, self.verbose = [name], False
                try:
                    x_adv, y_adv = self.run_standard_evaluation(x_orig, y_orig, bs, True, ids=ids)
                except NoGradient as error:
                    # Square may be among the others, and needs none.
                    if "square" not in names:
                        raise
                    self.logger.warning(str(error))
                    continue
                finally:
                    self.verbose = verbose
                found[name] = (x_adv, y_adv) if return_labels else x_adv
                assert self.report is not None
                reports[name] = self.report
                space = "\t \t" if name == "fab" else "\t"
                self.say(
                    f"robust accuracy by {name.upper()} {space} "
                    f"{self.report.robust_accuracy:.2%} \t (time attack: "
                    f"{time.perf_counter() - begun:.1f} s)"
                )
        finally:
            self.attacks_to_run, self.verbose = names, verbose
        self.reports = reports
        return found

    def clean_accuracy(self, x_orig: Tensor, y_orig: Tensor, bs: int = 250) -> float:
        """The share of samples that the model, in eval mode and fp32, is right on."""
        y, _ = checked_images(self.model, x_orig, y_orig, bs, None)
        device, right = self.device_of(x_orig), 0
        precise = resolve("fp32", device.type)
        with torch.no_grad(), attack_mode(self.model), arithmetic(precise, self.model, device.type):
            for images, labels in zip(x_orig.split(bs), y.split(bs), strict=True):
                said = verdict(self.get_logits(images.to(device)), labels.to(device))
                right += int((~said.wrong).sum())
        if self.verbose:
            print(f"clean accuracy: {right / len(y):.2%}")
        return right / len(y)
