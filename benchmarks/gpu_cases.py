"""What `make gpu-check` times, with the targets: each op at the sizes that matter."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastard import ops, reference

from . import gpu_rivals, published
from .gpu_case import Case, Chain, Outputs, Set
from .gpu_cases_apgd import ApgdStepCase
from .gpu_square import SquareCase

BOUNDS = {"Linf": (8 / 255, 2 / 255), "L2": (0.5, 0.1), "L1": (12.0, 3.0)}
STEPS = {"Linf": published.linf_step, "L2": published.l2_step, "L1": gpu_rivals.l1_step}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class StepCase(Case):
    """`pgd_step_` in fp32."""

    norm: str = "Linf"
    reads = ("x_adv", "grad", "x")

    @property
    def name(self) -> str:
        return f"pgd_step_ {self.norm} {self.size}{' cached' if self.resident else ''}"

    def bytes(self) -> int:
        """12 read + 4 written an element."""
        return 16 * math.prod(self.shape)

    def inputs(self, device: str, generator: torch.Generator) -> Set:
        def drawn(make: Callable[..., Tensor]) -> Tensor:
            return make(self.shape, device=device, generator=generator)

        x, offset, eps = drawn(torch.rand), drawn(torch.randn), BOUNDS[self.norm][0]
        # An iterate as in the midst of an attack: on the ball's surface, in Linf anywhere inside.
        if self.norm == "Linf":
            offset = offset.clamp(-1, 1) * eps
        else:
            length = offset.flatten(1).norm(2 if self.norm == "L2" else 1, dim=1)
            offset = offset * reference.per_sample(eps / length, x)
        x_adv = (x + offset).clamp(0, 1)
        return {"x": x, "x_adv": x_adv, "own": x_adv.clone(), "grad": drawn(torch.randn) * 1e-3}

    def reset(self, s: Set) -> None:
        s["own"].copy_(s["x_adv"])

    def fastard(self, s: Set) -> Outputs:
        return (ops.pgd_step_(s["own"], s["grad"], s["x"], *BOUNDS[self.norm], self.norm),)

    def chain(self) -> Chain:
        (eps, alpha), step = BOUNDS[self.norm], STEPS[self.norm]
        return lambda x_adv, grad, x: step(x_adv, grad, x, eps, alpha)

    def exact(self, s: Set) -> Outputs:
        wide = (s[name].double() for name in ("x_adv", "grad", "x"))
        return (reference.pgd_step(*wide, *BOUNDS[self.norm], self.norm),)


@dataclass(frozen=True)
class FedStepCase(StepCase):
    """The Linf step on a bf16 gradient that also writes the next input, normalised, in bf16."""

    reads = ("x_adv", "grad", "x", "mean", "std")
    low = True

    @property
    def name(self) -> str:
        return f"{super().name} bf16 gradient and feed"

    def bytes(self) -> int:
        """10 read + 6 written an element, and the channels' mean and std."""
        return 16 * math.prod(self.shape) + 8 * self.shape[1]

    def inputs(self, device: str, generator: torch.Generator) -> Set:
        s = super().inputs(device, generator)
        s["grad"] = s["grad"].bfloat16()
        s["mean"], s["std"] = (torch.tensor(v, device=device) for v in (MEAN, STD))
        s["feed"] = torch.empty_like(s["x"], dtype=torch.bfloat16)
        return s

    def reset(self, s: Set) -> None:
        super().reset(s)
        s["feed"].fill_(float("nan"))

    def fastard(self, s: Set) -> Outputs:
        extra = {name: s[name] for name in ("feed", "mean", "std")}
        own = ops.pgd_step_(s["own"], s["grad"], s["x"], *BOUNDS[self.norm], self.norm, **extra)
        return own, s["feed"]

    def chain(self) -> Chain:
        eps, alpha = BOUNDS[self.norm]
        return lambda x_adv, grad, x, mean, std: gpu_rivals.linf_with_feed(
            x_adv, grad, x, eps, alpha, mean, std
        )

    def exact(self, s: Set) -> Outputs:
        (moved,) = super().exact(s)
        return moved, reference.feed(moved, torch.float64, s["mean"].double(), s["std"].double())


@dataclass(frozen=True)
class StartCase(Case):
    """`random_start_`, uniform in the Linf ball."""

    reads = ("x", "noise")

    @property
    def name(self) -> str:
        return f"random_start_ uniform Linf {self.size}"

    def bytes(self) -> int:
        """8 read + 4 written an element."""
        return 12 * math.prod(self.shape)

    def inputs(self, device: str, generator: torch.Generator) -> Set:
        x, noise = (torch.rand(self.shape, device=device, generator=generator) for _ in range(2))
        return {"x": x, "noise": noise, "own": torch.empty_like(x)}

    def reset(self, s: Set) -> None:
        s["own"].fill_(float("nan"))

    def fastard(self, s: Set) -> Outputs:
        return (ops.random_start_(s["own"], s["x"], s["noise"], BOUNDS["Linf"][0]),)

    def chain(self) -> Chain:
        return lambda x, noise: gpu_rivals.uniform_start(x, noise, BOUNDS["Linf"][0])

    def exact(self, s: Set) -> Outputs:
        return (reference.random_start(s["x"].double(), s["noise"].double(), BOUNDS["Linf"][0]),)


@dataclass(frozen=True)
class LossCase(Case):
    """`logit_loss` kl: a loss a row and its gradient in the logits."""

    dtype: str = "float32"
    reads = ("logits", "teacher")
    scalar_loss = True

    @property
    def low(self) -> bool:  # type: ignore[override]
        return self.dtype != "float32"

    @property
    def name(self) -> str:
        return f"logit_loss kl {self.size} {self.dtype}"

    def bytes(self) -> int:
        """Two logits read and one gradient written a class, a loss in fp32 written a row."""
        width = getattr(torch, self.dtype).itemsize
        return 3 * width * math.prod(self.shape) + 4 * self.shape[0]

    def inputs(self, device: str, generator: torch.Generator) -> Set:
        def drawn() -> Tensor:
            z = 4 * torch.randn(self.shape, device=device, generator=generator)
            return z.to(getattr(torch, self.dtype))

        return {"logits": drawn(), "teacher": drawn()}

    def fastard(self, s: Set) -> Outputs:
        return ops.logit_loss(s["logits"], s["teacher"])

    def chain(self) -> Chain:
        return gpu_rivals.attack_kl

    def formula(self) -> Chain:
        return gpu_rivals.attack_kl_formula

    def exact(self, s: Set) -> Outputs:
        return reference.logit_loss(s["logits"].double(), s["teacher"].double())[:2]


@dataclass(frozen=True)
class DistillCase(LossCase):
    """`distill_kl`: the outer loss and the student's gradient, through autograd."""

    reads = ("student", "teacher")
    scalar_loss = False

    @property
    def name(self) -> str:
        return f"distill_kl {self.size} {self.dtype}"

    def bytes(self) -> int:
        """Two logits read and one gradient written a class, one loss written."""
        return 3 * getattr(torch, self.dtype).itemsize * math.prod(self.shape) + 4

    def inputs(self, device: str, generator: torch.Generator) -> Set:
        s = super().inputs(device, generator)
        return {"student": s["logits"], "teacher": s["teacher"]}

    def fastard(self, s: Set) -> Outputs:
        student = s["student"].detach().requires_grad_()
        with torch.enable_grad():
            loss = ops.distill_kl(student, s["teacher"])
        return loss.detach(), torch.autograd.grad(loss, student)[0]

    def chain(self) -> Chain:
        return gpu_rivals.outer_kl

    def formula(self) -> Chain:
        return gpu_rivals.outer_kl_formula

    def exact(self, s: Set) -> Outputs:
        rows, dstudent, _ = reference.distill_kl(s["student"].double(), s["teacher"].double())
        return rows.sum() / len(rows), dstudent / len(rows)


STREAMED = {"copy": 0.90, "compile": 1.0, "eager": 4.0}
L2, L1, ROWS = ({"copy": share, "compile": 1.2, "eager": 4.0} for share in (0.80, 0.50, 0.85))
SAMPLES = ((512, 3, 32, 32), (128, 3, 64, 64), (64, 3, 224, 224))

# Those with targets first: what the time is short of is the end of the list.
CASES: tuple[Case, ...] = (
    StepCase((32, 3, 224, 224), STREAMED),
    StepCase((128, 3, 224, 224), STREAMED),
    StepCase((128, 3, 32, 32), {"launch": 1.2, "compile": 1.0, "eager": 4.0}, resident=True),
    LossCase((8192, 1000), ROWS),
    LossCase((8192, 1000), ROWS, dtype="bfloat16"),
    *(StepCase(shape, L2, norm="L2") for shape in SAMPLES),
    *(StepCase(shape, L1, norm="L1") for shape in SAMPLES),
    FedStepCase((32, 3, 224, 224)),
    FedStepCase((128, 3, 224, 224)),
    StartCase((128, 3, 224, 224)),
    DistillCase((8192, 1000)),
    DistillCase((128, 10)),
    LossCase((128, 10)),
    LossCase((128, 1000)),
    LossCase((512, 21843)),
    SquareCase((512, 3, 32, 32)),
    ApgdStepCase((128, 3, 224, 224)),
)
