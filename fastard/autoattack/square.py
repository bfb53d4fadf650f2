"""`SquareAttack` with the official constructor, attributes and `perturb`."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from fastard import checks, ops
from fastard.api.square import asked_of
from fastard.attacks.draws import CounterDraws, require_keys
from fastard.attacks.square import Found, Reads, widened
from fastard.attacks.square_restarts import square_restarts
from fastard.attacks.square_schedule import Squares
from fastard.autoattack.search import EagerSearch, EngineSearch, chosen
from fastard.engine.unwrap import Model
from fastard.kinds import parse_norm, unknown

LOSSES = ("margin", "ce")


class SquareAttack:
    """Square Attack, the random search of AutoAttack that needs no gradient.

    The constructor, its attributes (read at each call) and `perturb` are the official code's.

    Args:
        predict: the model, or any function from images in [0, 1] to logits.
        norm: "Linf", "L2" or "L1".
        n_queries: proposals a restart.
        eps: radius in pixels.
        p_init: the first windows' share of the pixels.
        n_restarts: runs, each on the images that the last ones left.
        seed: of its own generator; None takes the time. torch's global generator stays as it was.
        verbose: prints the share of images broken as it goes.
        targeted: y are the classes to reach.
        loss: "margin" or "ce"; a targeted attack lowers the cross-entropy to its target.
        resc_schedule: shrink the windows as over 10,000 queries (AutoAttack: False).
        device: accepted; images are attacked where they lie.

    Attributes:
        search: how the model is asked; None: made from `predict` at each call.
        compat: "official": the official code's random numbers in its order, and with an
            `EagerSearch` its operations too; None: numbers of each sample's own.

    Andriushchenko et al. 2020 (arXiv 1912.00049), github.com/fra31/auto-attack, square.py.
    """

    def __init__(
        self,
        predict: Model,
        norm: str = "Linf",
        n_queries: int = 5000,
        eps: float | None = None,
        p_init: float = 0.8,
        n_restarts: int = 1,
        seed: float | None = 0,
        verbose: bool = False,
        targeted: bool = False,
        loss: str = "margin",
        resc_schedule: bool = True,
        device: str | torch.device | None = None,
    ) -> None:
        self.predict = predict
        self.norm, self.eps, self.n_queries = norm, eps, n_queries
        self.p_init, self.n_restarts, self.seed = p_init, n_restarts, seed
        self.verbose, self.targeted, self.loss = verbose, targeted, loss
        self.rescale_schedule, self.device = resc_schedule, device
        self.search: EagerSearch | EngineSearch | None = None
        self.compat: str | None = None

    def _setting(self) -> Squares:
        if self.eps is None:
            raise ValueError("eps must be a number, but is None.")
        if self.loss not in LOSSES:
            raise unknown("loss", self.loss, LOSSES)
        checks.radius_values(self.eps, "eps")
        return Squares(
            parse_norm(self.norm), self.eps, checks.steps(self.n_queries, "n_queries"),
            self.p_init, self.loss == "ce", self.targeted, self.rescale_schedule)  # fmt: skip

    def _module(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return widened(self.predict(x))

    def _targets(self, logits: Tensor, ids: Tensor) -> Tensor:
        """Any class but the likeliest, evenly."""
        likeliest, others = logits.max(1)[1], logits.shape[1] - 1
        if self.compat == "official":
            # The official code draws these before it seeds, from torch's global generator.
            generator = torch.Generator().set_state(torch.get_rng_state())
            u = torch.rand(len(logits), generator=generator).to(logits.device)
        else:
            u = CounterDraws(int(self.seed or 0), "square", part=2).rand(ids, ())
        drawn = (others * u).long()
        return drawn + (drawn >= likeliest)

    def perturb(self, x: Tensor, y: Tensor | None = None, ids: Tensor | None = None) -> Tensor:
        """Adversarial images; x itself where no restart changed the model's mind.

        Args:
            x: [B, C, H, W] in [0, 1].
            y: labels [B], or the classes to reach if targeted; None: the model's own, or any other.
            ids: [B] int64, the samples, for the default draws; None: positions.
        """
        setting = self._setting()
        if self.device is None:
            self.device = x.device
        if self.seed is None:
            self.seed = time.time()
        checks.in_box(checks.floating(x, "x"), 0.0, 1.0)
        setting.require_fits(x)
        if self.compat != "official":
            require_keys(self.n_restarts)
        if len(x) == 0:
            return x.clone()
        search = chosen(self.search, self.predict, self.compat)
        if ids is None:
            ids = torch.arange(len(x), device=x.device)
        ids = ids.to(x.device, torch.int64)
        images = x.detach()
        official = None
        if self.compat == "official":
            official = "operations" if search.official else "draws"
        if official != "operations":
            images = images if images.dtype == torch.float64 else images.float()
            images = images.contiguous()
        # What opens the program's running block; a search without one is asked as it is.
        with search.running(images):
            reads = Reads(search.logits, search.logits)
            if isinstance(search, EngineSearch):
                reads = asked_of(search.program, search.logits, search.infer_feed, images)
            if y is None:
                logits = search.logits(images)
                y = self._targets(logits, ids) if self.targeted else logits.max(1)[1]
            y = checks.labels(y, len(x), x.device).to(torch.int64)
            begun = time.perf_counter()

            def told(query: int, found: Found) -> None:
                broken = found.margin <= 0
                if bool(broken.any()):
                    used = found.queries[broken].float()
                    print(
                        f"{query} - success rate={int(broken.sum())}/{len(broken)} "
                        f"({float(broken.float().mean()):.2%}) - avg # queries={used.mean():.1f} "
                        f"- med # queries={used.median():.1f} - loss={found.loss.mean():.3f}"
                    )

            def judged(restart: int, robust: Tensor) -> None:
                print(
                    f"restart {restart} - robust accuracy: {float(robust.float().mean()):.2%} "
                    f"- cum. time: {time.perf_counter() - begun:.1f} s")  # fmt: skip

            outcome = square_restarts(
                reads, images, y, ids, setting, self.seed, self.n_restarts, official,
                search.compacts, self._module if official == "draws" else None,
                told if self.verbose else None, judged if self.verbose else None)  # fmt: skip
        adv = outcome.adv
        return adv if adv.dtype == x.dtype else ops.round_towards(adv, x.detach())
