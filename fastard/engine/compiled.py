"""Plans by model and circumstance: made once, checked against autograd, kept beside the model."""

from __future__ import annotations

import copy
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastard import ops
from fastard.engine import capture
from fastard.engine.fingerprint import HOOKS, Snapshot, hooked
from fastard.engine.fuse import fuse
from fastard.engine.plan import Plan
from fastard.engine.trace import Untraceable, first_line, trace
from fastard.engine.unwrap import made_in_inference
from fastard.engine.weights import StaleProgram
from fastard.shapes import per_channel

# How far a right program may be from the module, relatively: rounding alone moves the logits, but a
# kink that it crosses moves a gradient. Beyond that, fp64 judges.
CLOSE = {"logits": 2e-5, "gradient": 2e-2}
SAMPLES, RANDOM = 4, 1e-2
NOT_FINITE = "its logits are not finite"


class Compiled(NamedTuple):
    """A plan, or None and why there is none."""

    plan: Plan | None
    reason: str
    # Whether another attempt would end alike; a model of NaN may be mended.
    final: bool = True


_PLANS: weakref.WeakKeyDictionary[nn.Module, dict[Any, Compiled]] = weakref.WeakKeyDictionary()
_LOCK = threading.RLock()


def obstacle(model: Any, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why this model is not compiled at all, if so."""
    if not isinstance(model, nn.Module):
        return "a function is not traced, only an nn.Module is"
    if device.type not in ("cpu", "cuda"):
        return f"there are no kernels for {device.type}"
    kinds = {t.dtype for t in model.parameters() if t.is_floating_point()} | {dtype}
    if kinds != {torch.float32}:
        return f"{', '.join(sorted(str(k)[6:] for k in kinds))} input or parameters, not float32"
    if any(t.is_meta for t in model.parameters()):
        return "parameters on the meta device"
    return None


def compiled(
    model: nn.Module,
    x: Tensor,
    sample: Callable[[], Tensor],
    dtype: torch.dtype,
    options: tuple[Any, ...],
    own: dict[Any, Compiled] | None = None,
) -> Compiled:
    """The plan of an eval-mode model for images like x; `sample` makes some of them as the model
    takes them, in fp32. `own`: a caller's plans, in place of those that all share."""
    key = (tuple(x.shape[1:]), x.device, dtype, options)
    with _LOCK:
        known = _PLANS.setdefault(model, {}) if own is None else own
        found = known.get(key)
        if found is None:
            found = make(model, sample(), dtype, options)
            if found.final:
                known[key] = found
        return found


def discard(model: nn.Module) -> None:
    """Forgets the model's plans: it is no longer built as it was."""
    with _LOCK:
        plans = [found.plan for found in _PLANS.pop(model, {}).values()]
    for plan in plans:
        if plan is not None:
            capture.discarded(plan)


def make(
    model: nn.Module, sample: Tensor, dtype: torch.dtype, options: tuple[Any, ...]
) -> Compiled:
    """Traces, folds and fuses anew, without a look at what is there."""
    devices = [sample.device] if sample.is_cuda else []
    snapshot = Snapshot(model)
    with torch.random.fork_rng(devices=devices):
        generator = torch.Generator().manual_seed(0)
        # Not the caller's images: flat ones put activations exactly on their kinks. Several, so
        # that nothing of the batch's shape is mistaken for a channel's or a constant's.
        low, high = float(sample.min()), float(sample.max())
        if not low < high < float("inf"):
            low, high = 0.0, 1.0
        shape = (SAMPLES, *sample.shape[1:])
        x = (torch.rand(shape, generator=generator) * (high - low) + low).to(sample.device)
        try:
            made = _make(model, x, dtype, options)
        except Untraceable as error:
            made = Compiled(None, str(error), error.final)
        except StaleProgram as error:
            made = Compiled(None, str(error))
        except (RuntimeError, TypeError, ValueError, AttributeError, KeyError) as error:
            made = Compiled(None, f"it could not be compiled ({first_line(error)})")
        finally:
            changed = snapshot.restore()
    if changed:
        return Compiled(None, "its forward changes the model's attributes or buffers")
    return made


def _make(model: nn.Module, x: Tensor, dtype: torch.dtype, options: tuple[Any, ...]) -> Compiled:
    fold, layout, _ = options
    traced = trace(model)
    with unhooked(model):
        network = fuse(traced, model, x, fold)
        plan = Plan(network, model, x.device, torch.float32, layout)
        wrong = disagreement(model, plan, x)
    if wrong is not None:
        return Compiled(None, wrong, wrong != NOT_FINITE)
    if dtype != torch.float32 or any(hooked(m) for m in model.modules()):
        checked, plan = plan, Plan(network, model, x.device, dtype, layout)
        plan.parts.possible = checked.parts.possible
    return Compiled(plan, "traced, folded, fused")


def _gradient(model: Any, x: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        # A copy, since some models write into their input.
        logits = model(leaf.clone())
        (dx,) = torch.autograd.grad(logits, leaf, seed.to(logits.dtype))
    return logits.detach(), dx


def _distance(a: Tensor, b: Tensor) -> float:
    """The median over rows of the relative error."""
    a, b = a.double().flatten(1), b.double().flatten(1)
    return float(((a - b).norm(dim=1) / b.norm(dim=1).clamp(min=1e-30)).median())


def disagreement(model: nn.Module, plan: Plan, x: Tensor) -> str | None:
    """What the plan gets wrong beside the module's own autograd, if anything."""
    plan.refresh()
    feed = ops.prepared(x, plan.mean, plan.std, plan.dtype)
    plan.parts.look(plan, feed)
    logits, record = plan.forward(feed)
    generator = torch.Generator().manual_seed(1)
    if logits.dim() != 2 or len(logits) != len(x):
        return None  # the caller refuses such logits with a sentence of its own
    seed = torch.randn(logits.shape, generator=generator).to(x.device)
    dx = plan.backward(record, seed)
    own = functional(model)
    try:
        exact = _gradient(own, x, seed)
    except RuntimeError as error:
        return f"autograd refuses it ({first_line(error)})"
    if not bool(torch.isfinite(exact[0]).all()):
        return NOT_FINITE
    if dx is None:
        return "its logits do not depend on the input through autograd"
    if plan.std is not None:
        dx = dx / per_channel(plan.std, x)
    pair = (logits, dx)
    distances = (_distance(a, b) for a, b in zip(pair, exact, strict=True))
    if all(d <= close for d, close in zip(distances, CLOSE.values(), strict=True)):
        return None
    wide = copy.deepcopy(model).double()
    truth = _gradient(wide, x.double(), seed.double())
    for name, a, b, c in zip(CLOSE, pair, exact, truth, strict=True):
        ours, eager = _distance(a, c), _distance(b, c)
        if name == "logits" and eager > RANDOM:
            return f"its forward is random, or fp32 is too coarse for it (error {eager:.1e})"
        if not ours <= 4 * eager + CLOSE[name]:
            return (
                f"the traced {name} differ from the module's own (relative error {ours:.1e}, "
                f"autograd's {eager:.1e}): random or stateful forward?"
            )
    return None


def functional(model: nn.Module) -> Any:
    """The model, with clones in place of tensors that were made under inference_mode."""
    if not made_in_inference(model):
        return model
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    clones = {name: t.clone() for name, t in tensors.items()}
    return lambda x: torch.func.functional_call(model, clones, (x,))


@contextmanager
def unhooked(model: nn.Module) -> Iterator[None]:
    """Runs a block without the modules' hooks: they fire in attacks, not while a plan is made."""
    kept = [(m, name, getattr(m, name)) for m in model.modules() for name in HOOKS if hooked(m)]
    try:
        for module, name, _ in kept:
            setattr(module, name, OrderedDict())
        yield
    finally:
        for module, name, hooks in kept:
            setattr(module, name, hooks)
