"""`Program`: a model's logits and input gradient, on eager autograd."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastard import checks
from fastard.engine.guard import attack_mode, check_mode
from fastard.engine.precision import Precision, arithmetic, resolve
from fastard.engine.unwrap import Model, inner_model


@dataclass(frozen=True)
class Feed:
    """What a program reads: (x - mean) / std per channel in `dtype`, or (`is_x`) x as it is."""

    dtype: torch.dtype
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    is_x: bool = True


class Program:
    """A model as two calls: ``forward(x) -> logits`` and ``vjp(dlogits) -> dx``.

    Equivalent to: ``logits = model(x); dx, = torch.autograd.grad(logits, x, dlogits)``

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
    ) -> None:
        if not callable(model):
            raise TypeError(f"model must be callable, but is {checks.describe(model)}.")
        if (mean is None) != (std is None):
            raise ValueError("mean and std go together: give both or neither.")
        check_mode(mode, bn_stats)
        resolve(precision, "cpu")
        self.model, self.wrappers = inner_model(model)
        self.precision, self.mode, self.bn_stats = precision, mode, bn_stats
        self._mean, self._std = mean, std
        self._resolved: Precision | None = None
        self._depth, self._lock = 0, threading.RLock()
        self._run: Model | None = None
        self._leaf: Tensor | None = None
        self._logits: Tensor | None = None

    def feed(self, x: Tensor) -> Feed:
        """How images like x must be prepared for `forward_feed`."""
        dtype = self._input_dtype(x)
        if self._mean is None or self._std is None:
            return Feed(dtype, is_x=dtype == x.dtype)
        channels = x.shape[1] if x.dim() > 1 else 1
        return Feed(
            dtype,
            tuple(checks.channel_values(self._mean, channels, "mean")),
            tuple(checks.channel_values(self._std, channels, "std")),
            is_x=False,
        )

    def _input_dtype(self, x: Tensor) -> torch.dtype:
        """The dtype of the model's parameters; x's where autocast casts or there are none."""
        if self.low_dtype is not None or not isinstance(self.model, nn.Module):
            return x.dtype
        floating = (p.dtype for p in self.model.parameters() if p.is_floating_point())
        return next(floating, x.dtype)

    @contextmanager
    def running(self, x: Tensor) -> Iterator[None]:
        """Everything an attack's passes need around them; see the class."""
        # One attack at a time: the last forward's graph and the model's mode belong to it.
        with self._lock:
            if self._depth:
                yield
                return
            with self._opened(x):
                yield

    @contextmanager
    def _opened(self, x: Tensor) -> Iterator[None]:
        precision = resolve(self.precision, x.device.type)
        self._resolved, self._depth = precision, 1
        try:
            with (
                attack_mode(self.model, self.mode, self.bn_stats),
                torch.inference_mode(False),
                torch.enable_grad(),
                arithmetic(precision, self.model, x.device.type),
            ):
                # Looked up once an attack: walking the parameters costs a tiny network's forward.
                self._run = self._functional()
                yield
        finally:
            self._depth, self._run, self._resolved = 0, None, None
            self._leaf = self._logits = None

    @property
    def low_dtype(self) -> torch.dtype | None:
        """The half precision that the running block's passes are in, if any."""
        return self._resolved.dtype if self._resolved is not None else None

    def _call(self, x: Tensor) -> Tensor:
        run = self._functional() if self._run is None else self._run
        logits = run(x)
        if not isinstance(logits, Tensor):
            raise TypeError(
                f"the model must return a tensor of logits [batch, classes], but returned "
                f"{checks.describe(logits)}."
            )
        if logits.dim() != 2 or len(logits) != len(x):
            raise ValueError(
                f"the model must return logits [{len(x)}, classes], but returned shape "
                f"{list(logits.shape)}."
            )
        return logits

    def _functional(self) -> Model:
        """The model, with clones in place of parameters that were made under inference_mode."""
        if not isinstance(self.model, nn.Module):
            return self.model
        tensors = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        if not any(t.is_inference() for t in tensors.values()):
            return self.model
        clones = {name: t.clone() for name, t in tensors.items()}
        module = self.model
        return lambda x: torch.func.functional_call(module, clones, (x,))

    def forward_feed(self, feed: Tensor) -> Tensor:
        """Logits [B, C] in fp32 (fp64) of a prepared input; `vjp` then answers for it."""
        # The last graph goes before the next is built: peak memory is one pass.
        self._leaf = self._logits = None
        leaf = feed.detach().requires_grad_()
        self._leaf, self._logits = leaf, self._call(leaf)
        return _widened(self._logits.detach())

    def infer_feed(self, feed: Tensor) -> Tensor:
        """Logits of a prepared input without a gradient to follow."""
        with torch.no_grad():
            return _widened(self._call(feed.detach()))

    def vjp(self, dlogits: Tensor, retain: bool = False) -> Tensor:
        """The input gradient for `dlogits` [B, C] of the last forward; retain for several."""
        if self._leaf is None or self._logits is None:
            raise RuntimeError("vjp needs a forward before it, in the same running block.")
        dx = None
        if self._logits.requires_grad:
            (dx,) = torch.autograd.grad(
                self._logits, self._leaf, dlogits.to(self._logits.dtype), retain_graph=retain,
                allow_unused=True)  # fmt: skip
        if dx is None:
            raise ValueError(
                "the model's logits do not depend on x through autograd (a detached tensor, "
                "torch.no_grad or an integer in its forward?); a gradient attack cannot judge it."
            )
        return dx

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, C] of images x, in fp32 (fp64 for an fp64 model), detached.

        Followed by `vjp` outside a `running` block, the gradient's graph is kept until the next
        forward.
        """
        if self._depth:
            leaf, logits = self._pixels_forward(x)
        else:
            with self.running(x):
                leaf, logits = self._pixels_forward(x)
        self._leaf, self._logits = leaf, logits
        return _widened(logits.detach())

    def _pixels_forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self._leaf = self._logits = None
        leaf = (x.clone() if x.is_inference() else x).detach().requires_grad_()
        feed, ready = self.feed(x), leaf
        if feed.mean is not None and feed.std is not None:
            shape = (1, -1, *[1] * (x.dim() - 2))
            mean, std = (x.new_tensor(v).view(shape) for v in (feed.mean, feed.std))
            ready = (leaf - mean) / std
        return leaf, self._call(ready.to(feed.dtype))

    def explain(self, device: str | torch.device | None = None) -> str:
        """What runs where, in which precision, and why, as lines of text."""
        where = torch.device(device) if device is not None else _device_of(self.model)
        precision = resolve(self.precision, where.type)
        name = type(self.model).__name__
        lines = [
            f"model      {name}"
            + (f" inside {' > '.join(self.wrappers)}" if self.wrappers else ""),
            "program    eager autograd (forward, then torch.autograd.grad in the input alone)",
            f"mode       {self.mode}"
            + (f", BN statistics {self.bn_stats}" if self.mode == "train" else ""),
            f"precision  {precision.name} on {where.type}: {precision.reason}",
        ]
        if precision.dtype is not None:
            lines.append("head       final linear layer, logits and loss in fp32")
        if self._mean is not None:
            lines.append("input      normalised by the step's second output")
        return "\n".join(lines)

    def __repr__(self) -> str:
        name = type(self.model).__name__
        return f"Program({name}, precision={self.precision!r}, mode={self.mode!r})"


def _widened(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _device_of(model: Any) -> torch.device:
    if isinstance(model, nn.Module):
        for t in (*model.parameters(), *model.buffers()):
            return t.device
    return torch.device("cpu")
