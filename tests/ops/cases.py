"""The case table that ties every backend to `reference` in fp64 on the same rounded inputs."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
import torch

from fastard import native

# 3 channels odd and even, one pixel, one sample, one channel, sizes that fill no block and several.
SHAPES = [(4, 3, 8, 8), (1, 3, 5, 7), (3, 1, 1, 1), (2, 3, 33, 31), (5, 2, 16, 16), (7, 12)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
LAYOUTS = ["contiguous", "channels_last"]
NORMS = {"Linf": (8 / 255, 2 / 255), "L2": (0.5, 0.1), "L1": (2.0, 0.7)}
CLASSES = [4, 10, 16, 17, 100, 1000, 1030]
LONG_ROW = 21843
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-13}

backends = pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
            ],
        ),
    ],
)


@dataclass(frozen=True)
class StepCase:
    """One row of the step's table."""

    norm: str
    dtype: torch.dtype
    layout: str
    shape: tuple[int, ...]

    @property
    def id(self) -> str:
        size = "x".join(map(str, self.shape))
        return f"{self.norm}-{str(self.dtype)[6:]}-{self.layout}-{size}"


def laid_out(t: torch.Tensor, layout: str) -> torch.Tensor:
    if layout == "channels_last" and t.dim() == 4:
        return t.contiguous(memory_format=torch.channels_last)
    return t.contiguous()


STEP_CASES = [
    StepCase(*row)
    for row in itertools.product(NORMS, DTYPES, LAYOUTS, SHAPES)
    if not (row[2] == "channels_last" and len(row[3]) != 4)
]
step_cases = pytest.mark.parametrize("case", STEP_CASES, ids=lambda c: c.id)


def step_inputs(case: StepCase, device: str = "cpu", grad_dtype: torch.dtype | None = None):
    """x_adv inside ball and box (or nearly), a gradient of mixed scale, x; seeded."""
    g = torch.Generator().manual_seed(7)
    x = torch.rand(case.shape, generator=g)
    x_adv = (x + 0.05 * torch.randn(case.shape, generator=g)).clamp(0, 1)
    grad = torch.randn(case.shape, generator=g) * 1e-3
    # Both zeros: masks and underflow make -0, whose bits order above every number's.
    grad.view(-1)[:: max(grad.numel() // 3, 1)] = 0
    grad.view(-1)[1 :: max(grad.numel() // 5, 1)] = -0.0
    return tuple(
        laid_out(t.to(device, d), case.layout)
        for t, d in ((x_adv, case.dtype), (grad, grad_dtype or case.dtype), (x, case.dtype))
    )


def assert_close(out: torch.Tensor, exact: torch.Tensor, plain: torch.Tensor | None = None):
    """Within the dtype's tolerance of the fp64 oracle, or, in half precision, within twice the
    error of the same formula in plain PyTorch in that dtype (and one unit in the last place)."""
    assert out.shape == exact.shape
    if out.dtype in TOLERANCE:
        scale = exact.abs().amax().clamp(min=1.0) if exact.numel() else 1.0
        torch.testing.assert_close(
            out.double(), exact, rtol=TOLERANCE[out.dtype], atol=float(TOLERANCE[out.dtype] * scale)
        )
        return
    assert plain is not None
    own = (plain.double() - exact).abs().amax() if exact.numel() else torch.zeros(())
    unit = torch.finfo(out.dtype).eps * exact.abs().amax().clamp(min=1e-3) if exact.numel() else 0.0
    error = (out.double() - exact).abs().amax() if exact.numel() else torch.zeros(())
    assert error <= 2 * own + unit, f"error {error:g}, PyTorch's own {own:g}"


native_only = pytest.mark.skipif(
    native.module is None, reason=f"no compiled kernels: {native.reason}"
)
