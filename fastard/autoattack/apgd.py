"""`APGDAttack` and `APGDAttack_targeted`: Auto-PGD by the official names."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastard import checks
from fastard import reference_apgd as marks
from fastard.attacks.apgd import Walk
from fastard.attacks.apgd_losses import check_classes
from fastard.attacks.apgd_runs import Outcome, Rows, Runs, Setting, all_runs
from fastard.attacks.apgd_schedule import large_radii, windows
from fastard.attacks.draws import CounterDraws, Draws, OfficialDraws, require_keys
from fastard.attacks.places import Place, places
from fastard.autoattack.inputs import attacked_dtype
from fastard.autoattack.search import EagerSearch, EngineSearch, chosen
from fastard.autoattack.zero_gradients import warn_of_zero_gradients
from fastard.engine.unwrap import Model
from fastard.kinds import Norm, parse_norm, unknown

LOSSES = ("ce", "dlr", "ce-targeted-cfts")
TARGETED = ("dlr-targeted", "ce-targeted")
STREAMS = {"ce": "apgd-ce", "dlr": "apgd-dlr", "ce-targeted-cfts": "apgd-ce"}


class APGDAttack:
    """Auto-PGD, each run over the samples that still withstand.

    Attributes bear the official names and are read at each call. `search` is what is searched, an
    `EagerSearch` or `EngineSearch`; None makes one of the model. `compat` "official" draws as the
    official code does, from a generator of the seed made anew at each call, on the CPU; None draws
    numbers keyed by (seed, sample id, attack, restart, target), the same for any batch. Solved
    samples leave an engine's batch between blocks of iterations.

    Args:
        predict: the model, an nn.Module or a callable from images in [0, 1] to logits.
        n_iter: iterations a run.
        norm: "Linf", "L2", "L1" (aliases accepted).
        n_restarts: runs, each from its own random start.
        eps: radius in pixels.
        seed: of the draws; None takes the time.
        loss: "ce", "dlr" (at least 3 classes), or "ce-targeted-cfts": towards y, with best_loss.
        eot_iter: gradients averaged at each point, for a random model.
        rho: the share of rises in the loss up to which a step size halves; `thr_decr`.
        topk: kept as an attribute; the official code does not read it either.
        verbose: print what the official code prints; each line waits for the device.
        device: where to run; None: x's.
        use_largereps: L1's schedule of radii 3 eps, 2 eps and eps.
        is_tf_model: must be False.
        logger: told by its `warning` of gradients that are zero; None: a Python warning.
        compat: "official": without a `search` the module itself runs, operation for operation.
    Raises:
        TypeError, ValueError: bad input, in one sentence.

    Croce & Hein 2020 (arXiv 2003.01690), 2021 (L1, arXiv 2103.01208),
    github.com/fra31/auto-attack, autopgd_base.py.
    """

    losses: tuple[str, ...] = LOSSES

    def __init__(
        self,
        predict: Model,
        n_iter: int = 100,
        norm: str = "Linf",
        n_restarts: int = 1,
        eps: float | None = None,
        seed: float | None = 0,
        loss: str = "ce",
        eot_iter: int = 1,
        rho: float = 0.75,
        topk: float | None = None,
        verbose: bool = False,
        device: str | torch.device | None = None,
        use_largereps: bool = False,
        is_tf_model: bool = False,
        logger: Any = None,
        *,
        compat: str | None = None,
    ) -> None:
        if is_tf_model:
            raise ValueError("is_tf_model must be False: models are PyTorch's.")
        if eps is None:
            raise ValueError("eps must be given.")
        checks.radius(eps, None, "eps")
        self.model, self.n_iter = predict, checks.steps(n_iter, "n_iter")
        self.norm, self.eps = parse_norm(norm).name, float(eps)
        self.n_restarts, self.seed, self.loss = n_restarts, seed, loss
        self.eot_iter, self.thr_decr, self.topk = eot_iter, rho, topk
        self.verbose, self.device, self.use_largereps = verbose, device, use_largereps
        self.is_tf_model, self.logger, self.use_rs = False, logger, True
        self.n_iter_orig, self.eps_orig = self.n_iter, self.eps
        self.n_iter_2, self.size_decr, self.n_iter_min = windows(self.n_iter)
        self.search: EagerSearch | EngineSearch | None = None
        self.compat = compat

    def _search(self) -> EagerSearch | EngineSearch:
        return chosen(self.search, self.model, self.compat)

    def _stream(self) -> str:
        return STREAMS[self.loss]

    def _draws(self, device: torch.device) -> tuple[Draws, Draws | None]:
        """The numbers, and those that the official code draws on x's device."""
        seed = int(time.time() if self.seed is None else self.seed)
        if self.compat != "official":
            require_keys(self.n_restarts)
            return CounterDraws(seed, self._stream()), None
        draws = OfficialDraws(seed)
        return draws, OfficialDraws(seed, device) if device.type != "cpu" else None

    def _setting(self, best_loss: bool) -> tuple[Setting, float]:
        """What a run does, and its radius."""
        if self.loss not in self.losses:
            raise unknown("loss", self.loss, self.losses)
        if not 0 < checks.number(self.thr_decr, "rho") <= 1:
            raise ValueError(f"rho must lie in (0, 1], but is {self.thr_decr}.")
        norm = parse_norm(self.norm)
        large = bool(self.use_largereps) and not best_loss
        if large and norm != Norm.L1:
            raise ValueError(f"use_largereps goes with norm 'L1', but norm is {self.norm}.")
        steps = checks.steps(self.n_iter_orig if large else self.n_iter, "n_iter")
        if large and steps < 3:
            raise ValueError(f"n_iter must be at least 3 with use_largereps, but is {steps}.")
        sizes = self.n_iter_2, self.size_decr, self.n_iter_min
        setting = Setting(
            norm, steps, self.loss, float(self.thr_decr), checks.steps(self.eot_iter, "eot_iter"),
            windows=sizes, large_eps=large)  # fmt: skip
        return setting, float(self.eps_orig if large else self.eps)

    def _places(self, classes: int) -> list[Place]:
        return list(places(checks.steps(self.n_restarts, "n_restarts")))

    def perturb(
        self,
        x: Tensor,
        y: Tensor | None = None,
        best_loss: bool = False,
        x_init: Tensor | None = None,
        *,
        ids: Tensor | None = None,
    ) -> Tensor:
        """Images that the model errs on, x itself where none was found; on `device`, float32
        (float64 for an x and a model of it).

        Args:
            x: [B, C, H, W] in [0, 1].
            y: labels [B]; None: what the model says.
            best_loss: the images of highest loss instead, of all runs on all samples.
            x_init: where every run starts; the official code takes and ignores it, and so does
                compat="official", with a warning.
            ids: int64 [B], the samples' numbers for the draws; None: their positions.
        """
        if self.loss == "ce-targeted-cfts" and not best_loss:
            raise ValueError("loss 'ce-targeted-cfts' goes with best_loss=True: y is its target.")
        return self._perturb(x, y, best_loss, x_init, ids)

    def _perturb(
        self, x: Tensor, y: Tensor | None, best_loss: bool, x_init: Tensor | None,
        ids: Tensor | None,
    ) -> Tensor:  # fmt: skip
        checks.floating(x, "x")
        setting, eps = self._setting(best_loss)
        if y is not None and y.dim() == 0:
            x, y = x[None], y[None]
        if x.dim() < 2:
            raise ValueError(f"x must be a batch of images [B, C, H, W], but is {list(x.shape)}.")
        device = checks.device(self.device, "device") or x.device
        x = x.detach().to(device, attacked_dtype(self.model, x)).contiguous()
        # "cuda" names the device of the tensor, which bears a number, but does not equal it.
        device = x.device
        checks.in_box(x, 0.0, 1.0)
        if x_init is not None:
            checks.same_shape(x_init, x, "x_init", "x")
            if self.compat == "official":
                warnings.warn("x_init is ignored, as the official code ignores it.", stacklevel=3)
                x_init = None
        ids = torch.arange(len(x)) if ids is None else ids
        if ids.dtype != torch.int64 or ids.shape != (len(x),):
            raise ValueError(
                f"ids must be one int64 per sample [{len(x)}], but are {checks.describe(ids)} of "
                f"shape {list(ids.shape)}."
            )
        if len(x) == 0:
            return x.clone()
        search = self._search()
        with torch.autocast(device.type, enabled=False), search.running(x):
            logits = search.logits(x)
            check_classes(self.loss, logits.shape[1])
            y = logits.argmax(1) if y is None else checks.labels(y.to(device), len(x), device)
            y = y.to(torch.int64)
            checks.labels_below(y, logits.shape[1], "y")
            draws, device_draws = self._draws(device)
            runs = Runs(search, draws, setting, device_draws)
            runs.on_start = self._told if self.loss in ("dlr", "dlr-targeted") else None
            if self.verbose:
                self._announce(setting, eps, (logits.argmax(1) == y).float().mean())
                runs.on_step = self._step_line
            rows = Rows(x, y, ids.to(device), eps, x_init=x_init)
            where = self._places(logits.shape[1])
            done = all_runs(runs, rows, logits, where, best_loss, self._report(best_loss))
        return done.adv

    def _told(self, grad: Tensor) -> None:
        warn_of_zero_gradients(grad, self.logger)

    def _announce(self, setting: Setting, eps: float, accuracy: Tensor) -> None:
        line = "--------------------------"
        print(f"{line}  running {self.norm}-attack with epsilon {eps:.5f} {line}")
        print(f"initial accuracy: {accuracy:.2%}")
        if setting.large_eps:
            radii, steps = zip(*large_radii(eps, setting.steps), strict=True)
            print(f"using schedule [{'+'.join(map(str, radii))}x{'+'.join(map(str, steps))}]")

    def _step_line(self, i: int, walk: Walk) -> None:
        sparse = ""
        if walk.sparse:
            moved = walk.marks[marks.SHARE].mean() * walk.x[0].numel()
            size = walk.marks[marks.SIZE].mean()
            sparse = f" - step size: {size:.5f} - topk: {moved:.2f}"
        loss, robust = walk.found.loss.sum(), walk.robust.float().mean()
        print(f"[m] iteration: {i} - best loss: {loss:.6f} - robust accuracy: {robust:.2%}{sparse}")

    def _report(self, best_loss: bool) -> Callable[[Place, Outcome], None] | None:
        if not self.verbose:
            return None
        begun = time.time()

        def report(place: Place, done: Outcome) -> None:
            target = "" if place.rank is None else f"target class {place.rank} - "
            what = f"robust accuracy: {done.robust.float().mean():.2%}"
            if best_loss:
                what = f"loss: {done.loss.sum():.5f}"
            spent = f"cum. time: {time.time() - begun:.1f} s"
            print(f"{target}restart {place.restart} - {what} - {spent}")

        return report


class APGDAttack_targeted(APGDAttack):
    """Auto-PGD towards one class at a time: the second likeliest, the third, and so on.

    As `APGDAttack`, with the targeted DLR loss (at least 4 classes) or, set as the attribute
    `loss`, "ce-targeted".

    Args:
        n_target_classes: how many classes; at most those of the model but one.
    """

    losses = TARGETED

    def __init__(
        self,
        predict: Model,
        n_iter: int = 100,
        norm: str = "Linf",
        n_restarts: int = 1,
        eps: float | None = None,
        seed: float | None = 0,
        eot_iter: int = 1,
        rho: float = 0.75,
        topk: float | None = None,
        n_target_classes: int = 9,
        verbose: bool = False,
        device: str | torch.device | None = None,
        use_largereps: bool = False,
        is_tf_model: bool = False,
        logger: Any = None,
        *,
        compat: str | None = None,
    ) -> None:
        super().__init__(
            predict, n_iter, norm, n_restarts, eps, seed, "dlr-targeted", eot_iter, rho, topk,
            verbose, device, use_largereps, is_tf_model, logger, compat=compat)  # fmt: skip
        self.n_target_classes = n_target_classes

    def _stream(self) -> str:
        return "apgd-t"

    def _places(self, classes: int) -> list[Place]:
        targets = checks.steps(self.n_target_classes, "n_target_classes")
        if targets >= classes:
            raise ValueError(
                f"n_target_classes must be below the model's {classes} classes, but is {targets}."
            )
        return list(places(checks.steps(self.n_restarts, "n_restarts"), targets))

    def perturb(  # type: ignore[override]
        self,
        x: Tensor,
        y: Tensor | None = None,
        x_init: Tensor | None = None,
        *,
        ids: Tensor | None = None,
    ) -> Tensor:
        """As `APGDAttack.perturb`."""
        return self._perturb(x, y, False, x_init, ids)
