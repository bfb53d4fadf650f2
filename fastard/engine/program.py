"""`Program`: a model's logits and input gradient, compiled where that is possible."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastard import checks, ops
from fastard.engine import compiled
from fastard.engine.explain import explanation
from fastard.engine.guard import attack_mode, check_mode
from fastard.engine.passes import EagerPasses, Passed, Passes, PlannedPasses
from fastard.engine.plan import Plan
from fastard.engine.precision import Precision, arithmetic, resolve, tf32
from fastard.engine.unwrap import Model, inner_model
from fastard.engine.weights import StaleProgram
from fastard.kinds import unknown
from fastard.shapes import per_channel

CAPTURES = ("auto", "never")
LAYOUTS = ("auto", "channels_last", "contiguous")


@dataclass(frozen=True)
class Feed:
    """What a program reads: (x - mean) / std per channel in `dtype`, or (`is_x`) x as it is.

    mean and std are fp32 [channels] on x's device.
    """

    dtype: torch.dtype
    mean: Tensor | None = None
    std: Tensor | None = None
    is_x: bool = True


class Program:
    """A model as two calls: ``forward(x) -> logits`` and ``vjp(dlogits) -> dx``.

    Equivalent to: ``logits = model(x); dx, = torch.autograd.grad(logits, x, dlogits)``

    An eval-mode fp32 network is traced once: normalisations are folded into copies of the weights,
    bias, residual and activation run in the convolutions' epilogues, nothing is computed for the
    parameters. The copies are renewed from the live parameters whenever an attack begins. What
    cannot be traced runs under local autograd; where nothing can, or in train mode, eager autograd
    runs it all. `explain` says which, and why.

    Passes run inside ``with program.running(x):``, which puts the model into `mode`, enables
    gradients, selects the precision, and leaves no trace: training flags, requires_grad, .grad,
    BN statistics (but those of mode="train") and autocast's cache are as before, also after an
    exception. Outside such a block each call opens one for itself.

    Args:
        model: an nn.Module or any callable from images to logits [B, C]; wrappers (DataParallel,
            DDP, torch.compile) are looked through.
        precision: "fp32", "tf32", "bf16", "fp16", or None for autocast's state at each call. The
            final linear layer and the logits stay fp32.
        mean, std: per channel, for a model that wants normalised input: `forward` takes pixels and
            `vjp` then answers in pixels, `forward_feed` takes (x - mean) / std and answers in that.
        mode, bn_stats: as `attack_mode`.
        engine: False runs eager autograd whatever the model.
        fold: False keeps normalisations as layers of their own.
        layout: "channels_last", "contiguous", or "auto": what the device's convolutions prefer.
        frozen: the model never changes: its weights are copied once.
        capture: "auto": PGD attacks and `Inference` on CUDA run as one recorded graph from their
            second call with equal shapes and settings on, and so does each pass of the evaluation
            attacks; "never". `explain` says which, and why.
    """

    def __init__(
        self,
        model: Model,
        precision: str | None = None,
        *,
        mean: Sequence[float] | Tensor | None = None,
        std: Sequence[float] | Tensor | None = None,
        mode: str = "eval",
        bn_stats: str = "update",
        engine: bool = True,
        fold: bool = True,
        layout: str = "auto",
        frozen: bool = False,
        capture: str = "auto",
    ) -> None:
        if not callable(model):
            raise TypeError(f"model must be callable, but is {checks.describe(model)}.")
        if (mean is None) != (std is None):
            raise ValueError("mean and std go together: give both or neither.")
        if layout not in LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, but is {layout!r}.")
        if capture not in CAPTURES:
            raise unknown("capture", capture, CAPTURES)
        check_mode(mode, bn_stats)
        resolve(precision, "cpu")
        self.model, self.wrappers = inner_model(model)
        self.precision, self.mode, self.bn_stats = precision, mode, bn_stats
        self.engine, self.fold, self.layout, self.frozen = engine, fold, layout, frozen
        self.capture = capture
        self._mean, self._std = mean, std
        self._statistics: dict[Any, tuple[Tensor, Tensor]] = {}
        self._resolved: Precision | None = None
        self._depth, self._lock = 0, threading.RLock()
        self._passes: Passes | None = None
        # A forward outside a running block, until the next: its passes, and pixels' share of it.
        self._single: tuple[Passes, Tensor | None, torch.dtype] | None = None
        self._copied: Plan | None = None
        self._due = False  # whether the running block's copies are yet to be renewed
        self._private, self._own = False, dict[Any, compiled.Compiled]()
        # What explain() tells of the last running block.
        self.made: compiled.Compiled | None = None
        self.captured: str | None = None
        self.seconds: float | None = None
        self.passed = Passed()
        # What a running block's first look at the plan found; the next block looks anew.
        self.known: dict[str, Any] = {}

    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """The mean and std given with the program, on x's device."""
        if self._mean is None or self._std is None:
            return None
        channels = x.shape[1] if x.dim() > 1 else 1
        found = self._statistics.get((x.device, channels))
        if found is None:
            mean, std = (
                _on_device(tuple(checks.channel_values(v, channels, name)), x.device)
                for v, name in ((self._mean, "mean"), (self._std, "std"))
            )
            found = self._statistics[x.device, channels] = mean, std
        return found

    def feed(self, x: Tensor) -> Feed:
        """How images like x must be prepared for `forward_feed`, in the running block."""
        dtype = self._input_dtype(x)
        own, plan = self.statistics(x), self.plan
        mean, std = own if own is not None else (None, None)
        if plan is not None and plan.mean is not None and plan.std is not None:
            # ((x - mean) / std - inner mean) / inner std in one.
            mean = plan.mean if mean is None or std is None else mean + std * plan.mean
            std = plan.std if std is None else std * plan.std
        if mean is None:
            return Feed(dtype, is_x=dtype == x.dtype)
        return Feed(dtype, mean, std, is_x=False)

    def _input_dtype(self, x: Tensor) -> torch.dtype:
        """The plan's dtype; else that of the model's parameters, or x's where autocast casts."""
        if self.plan is not None:
            return self.plan.dtype
        if self.low_dtype is not None or not isinstance(self.model, nn.Module):
            return x.dtype
        floating = (p.dtype for p in self.model.parameters() if p.is_floating_point())
        return next(floating, x.dtype)

    @property
    def is_running(self) -> bool:
        """Whether a running block is open."""
        return self._depth > 0

    @property
    def normalises(self) -> bool:
        """Whether the program was given a mean and std."""
        return self._mean is not None

    @property
    def plan(self) -> Plan | None:
        """The running block's plan, if one runs."""
        return self._passes.plan if isinstance(self._passes, PlannedPasses) else None

    @contextmanager
    def running(self, x: Tensor, renewed: bool = True) -> Iterator[None]:
        """Everything an attack's passes need around them; see the class. With renewed=False the
        caller calls `renew` before the first pass."""
        # One attack at a time: the last forward's record and the model's mode belong to it.
        with self._lock:
            if self._depth:
                yield
                return
            with self._opened(x):
                if renewed:
                    self.renew()
                yield

    @contextmanager
    def _opened(self, x: Tensor) -> Iterator[None]:
        precision = resolve(self.precision, x.device.type)
        self._resolved, self._depth = precision, 1
        begun = time.perf_counter()
        kind = x.device.type
        self.captured = None
        self.known = {}
        try:
            with ExitStack() as around:
                around.enter_context(attack_mode(self.model, self.mode, self.bn_stats))
                around.enter_context(torch.inference_mode(False))
                around.enter_context(torch.enable_grad())
                plan = self._plan(x, precision)
                if plan is not None:
                    around.enter_context(torch.autocast(kind, enabled=False))
                    around.enter_context(tf32(precision.tf32))
                    self._passes = PlannedPasses(plan)
                else:
                    around.enter_context(arithmetic(precision, self.model, kind))
                    # Looked up once an attack: walking the parameters costs a tiny network's pass.
                    run = self.model
                    if isinstance(run, nn.Module):
                        run = compiled.functional(run)
                    self._passes = EagerPasses(run)
                yield
        finally:
            self.passed = Passed() if self._passes is None else self._passes.passed
            self._depth, self._passes, self._resolved = 0, None, None
            self.seconds = time.perf_counter() - begun

    def compilation(self, x: Tensor, precision: Precision) -> compiled.Compiled:
        """The plan for images like x, or why there is none."""
        if self.mode != "eval":
            return compiled.Compiled(None, "train-mode attacks run the module itself")
        if not self.engine:
            return compiled.Compiled(None, "engine=False")
        if len(x) == 0:
            return compiled.Compiled(None, "an empty batch")
        why = compiled.obstacle(self.model, x.dtype if x.dtype.itemsize > 4 else torch.float32,
                                x.device)  # fmt: skip
        if why is not None:
            return compiled.Compiled(None, why)

        def sample() -> Tensor:
            mean, std = self.statistics(x) or (None, None)
            return ops.prepared(x.detach()[:2], mean, std, torch.float32)

        options = (self.fold, self.layout, self.frozen)
        # A lone forward's plan is its own: no other program renews it before the vjp.
        own = self._own if self._private else None
        assert isinstance(self.model, nn.Module)
        with torch.autocast(x.device.type, enabled=False), tf32(False):
            return compiled.compiled(
                self.model, x, sample, precision.dtype or torch.float32, options, own
            )

    def _plan(self, x: Tensor, precision: Precision) -> Plan | None:
        self.made = self.compilation(x, precision)
        plan = self.made.plan
        self._due = plan is not None and not (self.frozen and plan is self._copied)
        if plan is None or not self._due:
            return plan
        try:
            plan.look()
        except StaleProgram:
            assert isinstance(self.model, nn.Module)
            compiled.discard(self.model)
            self._own.clear()
            self.made = self.compilation(x, precision)
            plan = self.made.plan
            self._due = plan is not None
            if plan is None:
                return None
            plan.look()
        return plan

    def renew(self, again: bool = False) -> None:
        """Copies the live weights into the running block's plan, once a block or `again`."""
        plan = self.plan
        if plan is not None and (self._due or (again and not self.frozen)):
            plan.renew()
            self._copied, self._due = plan, False

    @property
    def low_dtype(self) -> torch.dtype | None:
        """The half precision that the running block's passes are in, if any."""
        return self._resolved.dtype if self._resolved is not None else None

    def _now(self) -> Passes:
        if self._passes is None:
            raise RuntimeError("open a running block first: with program.running(x).")
        return self._passes

    def forward_feed(self, feed: Tensor) -> Tensor:
        """Logits [B, C] in fp32 (fp64) of a prepared input; `vjp` then answers for it."""
        return self._now().forward(feed)

    def infer_feed(self, feed: Tensor) -> Tensor:
        """Logits of a prepared input without a gradient to follow."""
        return self._now().infer(feed)

    def vjp(self, dlogits: Tensor, retain: bool = False) -> Tensor:
        """The input gradient for `dlogits` [B, C] of the last forward; retain for several."""
        if self._passes is not None:
            return self._passes.vjp(dlogits, retain)
        return self.pixel_vjp(dlogits, retain)

    def pixel_vjp(self, dlogits: Tensor, retain: bool = False) -> Tensor:
        """The gradient in the pixels given to the last `forward`."""
        if self._single is None:
            raise RuntimeError("vjp needs a forward before it.")
        passes, std, dtype = self._single
        dx = passes.vjp(dlogits, retain).to(dtype)
        return dx if std is None else dx / std

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, C] of images x, in fp32 (fp64 for an fp64 model), detached.

        Followed by `vjp`, which answers in pixels; what it needs is kept until the next forward.
        """
        self._single = None
        with self._lock:
            self._private = not self.is_running
            try:
                return self._forward(x)
            finally:
                self._private = False

    def _forward(self, x: Tensor) -> Tensor:
        with self.running(x):
            passes, fed, std = self._now(), self.feed(x), None
            logits = passes.forward(_prepared(x, fed))
            if fed.std is not None:
                std = per_channel(fed.std.to(x.dtype), x)
            self._single = (passes, std, x.dtype)
        return logits

    @property
    def counted(self) -> Passed:
        """What has passed in the running block so far."""
        return self._now().passed

    def replayed(self, passed: Passed) -> None:
        """Says that a recording ran `passed`: no forward of before answers a `vjp` any more."""
        self._single = None
        self._now().forget()
        self.counted.add(passed)

    def prepared(self, x: Tensor) -> Tensor:
        """Images x as the running block's passes read them."""
        return _prepared(x, self.feed(x))

    def explain(self, device: str | torch.device | None = None) -> str:
        """What runs where, in which precision, and why, as lines of text."""
        return explanation(self, device)

    def __repr__(self) -> str:
        name = type(self.model).__name__
        return f"Program({name}, precision={self.precision!r}, mode={self.mode!r})"


@functools.lru_cache(maxsize=64)
def _on_device(values: tuple[float, ...], device: torch.device) -> Tensor:
    """One tensor for all who ask: an upload synchronises. Never written."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.float32).to(device)


def _prepared(x: Tensor, fed: Feed) -> Tensor:
    x = (x.clone() if x.is_inference() else x).detach()
    return x if fed.is_x else ops.prepared(x, fed.mean, fed.std, fed.dtype)
