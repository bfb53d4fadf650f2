"""The engine's operators as the benchmarks see them: epilogues, depthwise convolutions, folding,
the other losses and starts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastard import ops, reference

from .gpu_case import Case, Chain, Outputs, Set
from .gpu_cases import BOUNDS, LossCase


@dataclass(frozen=True)
class LabelLossCase(LossCase):
    """`logit_loss` against labels: cross entropy, margin and DLR."""

    kind: str = "ce"
    reads = ("logits", "labels")

    @property
    def name(self) -> str:
        return f"logit_loss {self.kind} {self.size} {self.dtype}"

    def bytes(self) -> int:
        """Logits read, a gradient written a class, a label read and a loss written a row."""
        width = getattr(torch, self.dtype).itemsize
        return 2 * width * math.prod(self.shape) + 12 * self.shape[0]

    def inputs(self, device: str, generator: torch.Generator) -> Set:
        s = super().inputs(device, generator)
        labels = torch.randint(self.shape[1], (self.shape[0],), device=device, generator=generator)
        return {"logits": s["logits"], "labels": labels}

    def fastard(self, s: Set) -> Outputs:
        return ops.logit_loss(s["logits"], s["labels"], self.kind)

    def chain(self) -> Chain:
        loss = {"ce": _ce, "margin": _margin, "dlr": _dlr}[self.kind]

        def run(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            leaf = logits.detach().requires_grad_()
            with torch.enable_grad():
                total = loss(leaf, labels).sum()
            return total.detach(), torch.autograd.grad(total, leaf)[0]

        return run

    def formula(self) -> Chain:
        # Compiled as its users would: the loss, with the gradient that inductor derives.
        loss = {"ce": _ce, "margin": _margin, "dlr": _dlr}[self.kind]
        return lambda logits, labels: torch.func.grad_and_value(
            lambda z: loss(z, labels).sum()
        )(logits)[::-1]  # fmt: skip

    def exact(self, s: Set) -> Outputs:
        return reference.logit_loss(s["logits"].double(), kind=self.kind, labels=s["labels"])[:2]


def _ce(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z, y, reduction="none")


def _margin(z: Tensor, y: Tensor) -> Tensor:
    own = z.gather(1, y[:, None])[:, 0]
    rest = z.masked_fill(F.one_hot(y, z.shape[1]).bool(), -float("inf"))
    return -(own - rest.amax(1)).clamp(min=0)


def _dlr(z: Tensor, y: Tensor) -> Tensor:
    """The DLR loss of AutoAttack."""
    ordered, index = z.sort(dim=1)
    first = (index[:, -1] == y).to(z.dtype)
    own = z.gather(1, y[:, None])[:, 0]
    best = ordered[:, -2] * first + ordered[:, -1] * (1 - first)
    return -(own - best) / (ordered[:, -1] - ordered[:, -3] + 1e-12)


@dataclass(frozen=True)
class NormStartCase(Case):
    """`random_start_`, uniform in the L2 ball: a Gaussian direction and a radius."""

    reads = ("x", "noise", "radius")

    @property
    def name(self) -> str:
        return f"random_start_ uniform L2 {self.size}"

    def bytes(self) -> int:
        """8 read + 4 written an element, a radius a sample."""
        return 12 * math.prod(self.shape) + 4 * self.shape[0]

    def inputs(self, device: str, generator: torch.Generator) -> Set:
        x = torch.rand(self.shape, device=device, generator=generator)
        noise = torch.randn(self.shape, device=device, generator=generator)
        radius = torch.rand(self.shape[0], device=device, generator=generator)
        return {"x": x, "noise": noise, "radius": radius, "own": torch.empty_like(x)}

    def reset(self, s: Set) -> None:
        s["own"].fill_(float("nan"))

    def fastard(self, s: Set) -> Outputs:
        eps = BOUNDS["L2"][0]
        return (ops.random_start_(s["own"], s["x"], s["noise"], eps, radius=s["radius"],
                                  norm="L2"),)  # fmt: skip

    def chain(self) -> Chain:
        eps = BOUNDS["L2"][0]

        def run(x: Tensor, noise: Tensor, radius: Tensor) -> Tensor:
            length = noise.flatten(1).norm(dim=1)
            step = (radius * eps / length).view(-1, *[1] * (x.dim() - 1))
            return torch.clamp(x + noise * step, 0.0, 1.0)

        return run

    def exact(self, s: Set) -> Outputs:
        x, noise, radius = (s[name].double() for name in self.reads)
        return (self.chain()(x, noise, radius),)  # type: ignore[return-value]


@dataclass(frozen=True)
class EpilogueCase(Case):
    """`epilogue`: relu(x * scale + shift + other), channels_last."""

    reads = ("x", "scale", "shift", "other")

    @property
    def name(self) -> str:
        return f"epilogue {self.size}"

    def bytes(self) -> int:
        """8 read + 4 written an element, two numbers a channel."""
        return 12 * math.prod(self.shape) + 8 * self.shape[1]

    def inputs(self, device: str, generator: torch.Generator) -> Set:
        def drawn() -> Tensor:
            made = torch.randn(self.shape, device=device, generator=generator)
            return made.contiguous(memory_format=torch.channels_last)

        scale, shift = torch.rand(2, self.shape[1], device=device, generator=generator)
        x = drawn()
        return {"x": x, "scale": scale, "shift": shift, "other": drawn(),
                "own": torch.empty_like(x)}  # fmt: skip

    def reset(self, s: Set) -> None:
        s["own"].fill_(float("nan"))

    def fastard(self, s: Set) -> Outputs:
        return (ops.epilogue(s["x"], s["scale"], s["shift"], s["other"], "relu", out=s["own"]),)

    def chain(self) -> Chain:
        return lambda x, scale, shift, other: F.relu(
            x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1) + other
        )

    def exact(self, s: Set) -> Outputs:
        return (self.chain()(*(s[name].double() for name in self.reads)),)  # type: ignore[return-value]


@dataclass(frozen=True)
class EpilogueBackwardCase(EpilogueCase):
    """`epilogue_backward`: the mask, the scale and the residual's gradient in one pass."""

    reads = ("x", "other", "scale", "residual")

    @property
    def name(self) -> str:
        return f"epilogue_backward {self.size}"

    def bytes(self) -> int:
        """12 read + 4 written an element, a number a channel."""
        return 16 * math.prod(self.shape) + 4 * self.shape[1]

    def inputs(self, device: str, generator: torch.Generator) -> Set:
        s = super().inputs(device, generator)
        s["other"] = s["other"].relu_()
        return {**s, "residual": torch.randn_like(s["x"])}

    def fastard(self, s: Set) -> Outputs:
        return (ops.epilogue_backward(s["x"], s["other"], s["scale"], s["residual"], "relu",
                                      out=s["own"]),)  # fmt: skip

    def chain(self) -> Chain:
        return lambda grad, saved, scale, residual: (
            torch.where(saved > 0, grad, 0.0) * scale.view(1, -1, 1, 1) + residual
        )


@dataclass(frozen=True)
class DepthwiseCase(Case):
    """`depthwise`, 3x3 at stride 1: the CPU's own kernel, channels_last."""

    reads = ("x", "weight", "bias")

    @property
    def name(self) -> str:
        return f"depthwise {self.size}"

    def bytes(self) -> int:
        """4 read + 4 written an element, ten numbers a channel."""
        return 8 * math.prod(self.shape) + 40 * self.shape[1]

    def inputs(self, device: str, generator: torch.Generator) -> Set:
        channels = self.shape[1]
        x = torch.randn(self.shape, device=device, generator=generator)
        weight = torch.randn(channels, 1, 3, 3, device=device, generator=generator)
        bias = torch.randn(channels, device=device, generator=generator)
        taps = weight[:, 0].permute(1, 2, 0).contiguous()
        return {"x": x.contiguous(memory_format=torch.channels_last), "weight": weight,
                "bias": bias, "taps": taps}  # fmt: skip

    def fastard(self, s: Set) -> Outputs:
        return ops.layers.depthwise(s["x"], s["taps"], s["bias"], 1, 1, "relu6", bits=False)[:1]

    def chain(self) -> Chain:
        return lambda x, weight, bias: F.relu6(F.conv2d(x, weight, bias, 1, 1, 1, self.shape[1]))

    def exact(self, s: Set) -> Outputs:
        return (self.chain()(*(s[name].double() for name in self.reads)),)  # type: ignore[return-value]
