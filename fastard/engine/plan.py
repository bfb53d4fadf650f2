"""A compiled model: its steps, its folded weights, one device, one dtype, any batch size."""

from __future__ import annotations

import itertools
import weakref
from typing import Any

import torch
from torch import Tensor, fx, nn

from fastard.engine.convolve import Aten, OneDNN, depthwise, onednn
from fastard.engine.fingerprint import Fingerprint
from fastard.engine.layers import (
    Activation,
    Affine,
    Constant,
    Convolution,
    Network,
    Param,
    Segment,
    Sum,
)
from fastard.engine.masks import MASKED
from fastard.engine.parts import Parts
from fastard.engine.segment import SegmentStep
from fastard.engine.steps import (
    ConvolutionStep,
    DepthwiseStep,
    EpilogueStep,
    LinearStep,
    Step,
)
from fastard.engine.unwrap import made_in_inference
from fastard.engine.values import Gradients
from fastard.engine.weights import StaleProgram, Weights, live

Record = list[Any]
_SERIALS = itertools.count()


class Plan:
    """Runs a network's logits and input gradients without autograd where it has steps for it.

    Weights are copies of the model's: call `refresh` after they may have changed. The model itself
    is held weakly, its modules are checked to be the same ones.
    """

    def __init__(
        self, network: Network, model: nn.Module, device: torch.device,
        dtype: torch.dtype = torch.float32, layout: str = "auto",
    ) -> None:  # fmt: skip
        self.network, self.device, self.dtype, self.layout = network, device, dtype, layout
        self.serial = next(_SERIALS)  # unlike an id, no later plan's
        self.shapes: dict[int, tuple[int, ...]] = {}  # of each convolution's weight, by layer id
        self.model = weakref.ref(model)
        self._fingerprint = Fingerprint(model)
        self.weights = Weights(device)
        self.steps: list[Step] = []
        self.constants: list[tuple[int, Param]] = []
        self.mean: Tensor | None = None
        self.std: Tensor | None = None
        self._numbers: dict[fx.Node, int] = {network.source: 0}
        self._fixed: set[fx.Node] = set()
        self.kernels: list[Any] = []
        # Whether a segment calls modules that hold parameters.
        self.opaque = False
        # The modules with tensors that segments call: these are read where they lie.
        self._called: list[str] = []
        modules = dict(model.named_modules())
        for layer in network.layers:
            self._add(layer, model, modules)
        self.weights.allocate()
        self._result = self._number(network.result)
        self._frees = self._last_uses()
        self.parts = Parts(self)
        self._constant_values: list[tuple[int, Tensor]] = []

    def _number(self, node: fx.Node) -> int:
        return self._numbers.setdefault(node, len(self._numbers))

    def _add(self, layer: Any, model: nn.Module, modules: dict[str, nn.Module]) -> None:
        reads = [self._number(node) for node in layer.inputs]
        if isinstance(layer, Constant):
            self._fixed.add(layer.output)
            self.constants.append((self._number(layer.output), layer.param))
        elif isinstance(layer, Segment):
            low = None if self.dtype == torch.float32 else self.dtype
            makes = [self._number(node) for node in layer.outputs]
            fixed = [node in self._fixed for node in layer.inputs]
            head = self._head if self.network.head is not None else None
            self.steps.append(SegmentStep(layer, modules, reads, makes, fixed, low, head))
            called = {str(n.target) for n in layer.nodes if n.op == "call_module"}
            self.opaque |= any(True for name in called for _ in modules[name].parameters())
            self._called += sorted(name for name in called if _tensors(modules[name]))
        elif isinstance(layer, Convolution):
            self._add_convolution(layer, model, reads)
        elif isinstance(layer, Affine):
            channels = live(model, layer.norm.mean).shape[0]
            folded = self.weights.affine(layer.norm, channels)
            made = self._number(layer.output)
            self.steps.append(EpilogueStep(layer.act, reads, made, folded))
        elif isinstance(layer, (Sum, Activation)):
            made = self._number(layer.output)
            self.steps.append(EpilogueStep(layer.act, reads, made, None))
        else:
            raise TypeError(f"no step for a {type(layer).__name__}")

    def _head(self) -> Tensor:
        model = self.model()
        assert model is not None and self.network.head is not None
        return live(model, self.network.head)

    def _add_convolution(self, layer: Convolution, model: nn.Module, reads: list[int]) -> None:
        shape = self.shapes[id(layer)] = tuple(live(model, layer.weight).shape)
        if self.device.type == "cpu" and self.layout != "contiguous" and depthwise(layer, shape):
            self._add_depthwise(layer, shape, reads)
            return
        dtype = torch.float32 if layer.head else self.dtype
        last = layer.spatial and self.layout != "contiguous"
        fused = last and self.device.type == "cpu" and onednn()[0]
        folded = self.weights.convolution(
            layer.weight, layer.bias, layer.before, layer.after, shape, dtype,
            last and not fused)  # fmt: skip
        made = self._number(layer.output)
        if not layer.spatial:
            self.steps.append(LinearStep(folded, layer.act, reads, made))
            return
        kernel: Any = OneDNN(layer, folded) if fused else Aten(layer, folded)
        self.kernels.append(kernel)
        self.steps.append(ConvolutionStep(kernel, layer.act, reads, made, dtype))

    def _add_depthwise(self, layer: Convolution, shape: tuple[int, ...], reads: list[int]) -> None:
        folded = self.weights.convolution(
            layer.weight, layer.bias, None, layer.after, shape, torch.float32, False)  # fmt: skip
        maker = next((s for s in self.steps if s.makes == reads), None)
        in_act = "none"
        alone = isinstance(maker, ConvolutionStep) and len(layer.inputs[0].users) == 1
        if isinstance(maker, ConvolutionStep) and alone and maker.act in MASKED:
            in_act, maker.covered = maker.act, True
        step = DepthwiseStep(layer, folded, reads, self._number(layer.output), in_act, self.dtype)
        self.steps.append(step)
        self.kernels.append(step)

    def _last_uses(self) -> list[list[int]]:
        """After each step, the values that no later step reads."""
        left = {self._result, *(at for at, _ in self.constants)}
        frees: list[list[int]] = []
        for step in reversed(self.steps):
            now = {*step.reads, *step.makes} - left
            frees.append(sorted(now))
            left |= now
        return frees[::-1]

    def refresh(self) -> None:
        """Copies the model's weights as they are now: `look`, then `renew`."""
        self.look()
        self.renew()

    def _live(self) -> nn.Module:
        model = self.model()
        if model is None:
            raise StaleProgram("the model is gone")
        return model

    def look(self) -> None:
        """Finds the model's tensors as they are now; reads none of them.

        Raises:
            StaleProgram: the model is no longer built as it was.
        """
        model = self._live()
        changed = self._fingerprint.change(model)
        if changed is not None:
            raise StaleProgram(changed)
        if self.opaque and made_in_inference(model):
            raise StaleProgram("modules with parameters made under inference_mode")
        self.weights.look(model)

    def renew(self) -> None:
        """Copies what the last look found; on a device nothing but launches."""
        model = self._live()
        self.weights.renew()
        for kernel in self.kernels:
            kernel.renewed()
        self._constant_values = [(at, _usable(live(model, param))) for at, param in self.constants]
        if self.network.mean is not None and self.network.std is not None:
            self.mean = _kept(self.mean, live(model, self.network.mean))
            self.std = _kept(self.std, live(model, self.network.std))

    def reads(self) -> list[Tensor]:
        """The model's tensors that passes read where they lie, not from a folded copy."""
        model, network = self._live(), self.network
        params = [param for _, param in self.constants]
        params += [p for p in (network.mean, network.std, network.head) if p is not None]
        found = [live(model, param) for param in params]
        for name in self._called:
            found += _tensors(model.get_submodule(name))
        return found

    def unrecordable(self) -> str | None:
        """Why passes of this plan may not be recorded and replayed, if so."""
        leaves = self.network.leaves
        if leaves:
            name, why = next(iter(leaves.items()))
            return f"{name or 'the model'} runs as it is ({why})"
        if any(t.is_inference() for t in self.reads()):
            return "it reads tensors made under inference_mode"
        return self.weights.unrecordable()

    def forward(self, feed: Tensor) -> tuple[Tensor, Record]:
        """Logits in fp32, and what `backward` needs."""
        record: Record = []
        return self._run(feed, record), record

    def infer(self, feed: Tensor) -> Tensor:
        """Logits in fp32 with no gradient to follow."""
        return self._run(feed, None)

    @torch.no_grad()
    def _run(self, feed: Tensor, record: Record | None) -> Tensor:
        values: list[Any] = [None] * len(self._numbers)
        values[0] = feed
        for at, value in self._constant_values:
            values[at] = value
        for step, free in zip(self.steps, self._frees, strict=True):
            saved = step.forward(values, record is not None)
            if record is not None:
                record.append(saved)
            for at in free:
                values[at] = None
        return values[self._result].float()

    @torch.no_grad()
    def backward(self, record: Record, dlogits: Tensor, retain: bool = False) -> Tensor | None:
        """The gradient in the feed for one in the logits, None where there is no way to it; the
        record is used up unless `retain`."""
        grads = Gradients(len(self._numbers))
        grads.add(self._result, dlogits, False)
        for at in reversed(range(len(self.steps))):
            self.steps[at].backward(record[at], grads, retain)
            if not retain:
                record[at] = None
        return grads.take(0)[0]


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _kept(buffer: Tensor | None, value: Tensor) -> Tensor:
    """The value per channel in fp32, in a buffer that stays where it is."""
    value = value.detach().reshape(-1)
    if buffer is None or buffer.shape != value.shape:
        buffer = torch.empty(value.shape, dtype=torch.float32, device=value.device)
    return buffer.copy_(value)


def _usable(t: Tensor) -> Tensor:
    """A constant that autograd may save."""
    return t.clone() if t.is_inference() else t.detach()
