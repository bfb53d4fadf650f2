"""`distill_kl`: the outer distillation loss, differentiable in both logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastard import checks, reference
from fastard.ops._backend import implementation

REDUCTIONS = ("batchmean", "mean", "sum", "none")

# One for each device and stream: a kernel leaves its ticket at zero, and those of a stream take
# turns.
_tickets: dict[tuple[torch.device, int], Tensor] = {}


def _ticket(like: Tensor) -> Tensor | None:
    """The zero from which a CUDA kernel's blocks count, so that the last one knows it is last."""
    if not like.is_cuda:
        return None
    # Shared, it would race with a graph's replay on another stream; a traced tensor has no stream.
    if (
        torch.compiler.is_compiling()
        or type(like) is not Tensor
        or torch.cuda.is_current_stream_capturing()
    ):
        return torch.zeros(1, dtype=torch.int32, device=like.device)
    key = like.device, torch.cuda.current_stream(like.device).cuda_stream
    if key not in _tickets:
        # A tensor made in inference mode could not be mutated outside.
        with torch.inference_mode(False):
            _tickets[key] = torch.zeros(1, dtype=torch.int32, device=like.device)
    return _tickets[key]


def _gradients(
    student: Tensor, teacher: Tensor, temperature: float, log_floor: float, scale: float,
    per_row: bool, need_student: bool, need_teacher: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    operator = implementation("distill_kl", student)
    if operator is None:
        rows, ds, dt = reference.distill_kl(student, teacher, temperature, log_floor)
        rows = rows * scale
        return (
            rows if per_row else rows.sum(),
            ds * scale if need_student else None,
            dt * scale if need_teacher else None,
        )
    student, teacher = student.contiguous(), teacher.contiguous()
    accumulated = torch.float64 if student.dtype == torch.float64 else torch.float32
    loss = student.new_empty((len(student),) if per_row else (), dtype=accumulated)
    dstudent = torch.empty_like(student, dtype=accumulated) if need_student else None
    dteacher = torch.empty_like(teacher, dtype=accumulated) if need_teacher else None
    partials = None if per_row else student.new_empty(len(student), dtype=torch.float64)
    operator.default(
        student, teacher, temperature, log_floor, scale, loss, dstudent, dteacher, partials,
        None if per_row else _ticket(student))  # fmt: skip
    return loss, dstudent, dteacher


class _DistillKL(torch.autograd.Function):
    """Both gradients are made in the forward pass, where the softmaxes are at hand.

    They stay in fp32 until the upstream gradient is on them: a GradScaler's factor is there to
    keep them from underflowing in half precision.
    """

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, temperature: float, log_floor: float,
        scale: float, per_row: bool,
    ) -> Tensor:  # fmt: skip
        loss, ds, dt = _gradients(
            student.detach(), teacher.detach(), temperature, log_floor, scale, per_row,
            ctx.needs_input_grad[0], ctx.needs_input_grad[1])  # fmt: skip
        ctx.save_for_backward(ds, dt)
        ctx.per_row, ctx.dtypes = per_row, (student.dtype, teacher.dtype)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        factor = grad[:, None] if ctx.per_row else grad
        ds, dt = (
            None if d is None else (d * factor).to(dtype)
            for d, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return ds, dt, None, None, None, None


def distill_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 1.0,
    reduction: str = "batchmean",
    *,
    log_floor: float = 0.0,
    scale: float = 1.0,
) -> Tensor:
    """KL(teacher || student) of the tempered softmaxes, differentiable in both logits.

    Equivalent to: ``scale * F.kl_div((student_logits / temperature).log_softmax(1),
    (teacher_logits / temperature).softmax(1), reduction=reduction)``

    The usual factor temperature**2 of Hinton et al. 2015 is not included: pass it as `scale`.
    `log_floor` is the 1e-5 of RSLAD's published code: sum p * (log(p + log_floor) - log q). The
    gradient in the teacher's logits stays finite where a probability underflows (the NaN of
    F.kl_div with a target that is not detached).

    Args:
        student_logits, teacher_logits: [B, C] fp32, fp64, bf16 or fp16; computed in fp32 (fp64).
        reduction: "batchmean" divides the sum by B, "mean" by B * C, "sum" by nothing; "none"
            gives the sum over classes of each row, [B] (F.kl_div would give [B, C]).
    Returns:
        The loss in fp32 (fp64 for fp64 logits).
    Raises:
        TypeError, ValueError: an argument that does not fit, in one sentence.
    """
    checks.floating(student_logits, "student_logits")
    checks.floating(teacher_logits, "teacher_logits")
    if student_logits.dim() != 2:
        raise ValueError(
            f"student_logits must be [batch, classes], but have shape {list(student_logits.shape)}."
        )
    checks.same_shape(teacher_logits, student_logits, "teacher_logits", "student_logits")
    checks.same_device(teacher_logits, student_logits, "teacher_logits", "student_logits")
    for value, name in ((temperature, "temperature"), (log_floor, "log_floor"), (scale, "scale")):
        checks.number(value, name)
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, but is {temperature}.")
    if log_floor < 0:
        raise ValueError(f"log_floor must not be negative, but is {log_floor}.")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, not {reduction!r}.")
    rows, classes = student_logits.shape
    divisor = {"batchmean": rows, "mean": rows * classes}.get(reduction, 1)
    return _DistillKL.apply(
        student_logits, teacher_logits, temperature, log_floor,
        scale / divisor if divisor else 0.0, reduction == "none")  # fmt: skip
