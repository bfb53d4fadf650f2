"""The Triton kernels compiled for GPUs without one: nothing spills, the steps move 16 bytes.

Every launch is the operators' own, made for tensors without storage and specialised by Triton's
launcher as on a device.
"""

from __future__ import annotations

import functools
import re
import subprocess
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton", reason="triton is not installed")

from fastard import triton_kernels  # noqa: E402
from fastard.kinds import LossKind, Norm  # noqa: E402
from fastard.triton_kernels import distill_calls, loss_calls, start_calls, step_calls  # noqa: E402
from fastard.triton_kernels.call import OPTIONS  # noqa: E402

pytestmark = pytest.mark.skipif(
    triton_kernels.interpreted(), reason="TRITON_INTERPRET is set: nothing is compiled"
)

TOOL = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
ARCHS = [80, 90]
FP32, BF16, FP64 = torch.float32, torch.bfloat16, torch.float64
# CIFAR; the largest held; read twice; no multiple of 16; more than 2^31 elements.
CIFAR, HELD, TWICE, ODD, HUGE = [
    (128, 3, 32, 32), (64, 4, 32, 32), (32, 3, 64, 64), (32, 3, 61, 61), (800, 3, 1024, 1024),
]  # fmt: skip


def absent(*shape: int, dtype: torch.dtype = FP32) -> torch.Tensor:
    """A tensor without storage, aligned as torch aligns."""
    return torch.empty(shape, dtype=dtype, device="meta")


def step(norm, shape, dtype=FP32, grad=FP32, feed=None, per_sample=False):
    images = absent(*shape, dtype=dtype)
    bound = absent(shape[0], dtype=FP64 if dtype == FP64 else FP32) if per_sample else 0.1
    means = (absent(shape[1]), absent(shape[1])) if feed else (None, None)
    seen = absent(*shape, dtype=feed) if feed else None
    gradient = absent(*shape, dtype=grad)
    return step_calls(images, gradient, images, bound, bound, norm, 0.0, 1.0, 0.2, seen, *means)


def start(norm, kind, shape=CIFAR, dtype=FP32):
    images, noise, radius = absent(*shape, dtype=dtype), absent(*shape), absent(shape[0])
    return start_calls(images, images, noise, radius, 0.1, norm, kind, 0.001, True, 0.0, 1.0)


def loss(kind, classes, dtype=FP32, targeted=False, rows=8192):
    z = absent(rows, classes, dtype=dtype)
    y, kl = absent(rows, dtype=torch.int64), kind == LossKind.kl
    soft = kl or kind == LossKind.mixture
    return loss_calls(
        z, z if soft else None, None if kl else y, y if targeted else None, kind, targeted,
        1.0, 0.0, 0.5, 1.0, absent(rows, dtype=FP64 if dtype == FP64 else FP32), z,
        z if kl else None)  # fmt: skip


def distill(classes, dtype=FP32):
    z, d = absent(256, classes, dtype=dtype), absent(256, classes)
    return distill_calls(z, z, 4.0, 1e-5, 1.0, absent(), d, d, absent(256, dtype=FP64), None)


# The images' type, the gradient's, the second output's.
TYPES = {"fp32": (FP32, FP32, None), "feed": (FP32, BF16, BF16), "bf16": (BF16, BF16, None)}
CASES = {
    **{
        f"step-{norm.name}-{'x'.join(map(str, shape))}-{types}": functools.partial(
            step, norm, shape, *TYPES[types], per_sample=shape == ODD
        )
        for norm in Norm
        for shape in (CIFAR, HELD, TWICE, ODD)
        for types in TYPES
    },
    "step-Linf-huge": functools.partial(step, Norm.Linf, HUGE, FP32, BF16, BF16, True),
    "step-L2-fp64": functools.partial(step, Norm.L2, CIFAR, FP64, FP64),
    "start-Linf": functools.partial(start, Norm.Linf, 0),
    "start-Gaussian": functools.partial(start, Norm.Linf, 1, dtype=BF16),
    "start-L2": functools.partial(start, Norm.L2, 0),
    "start-L1": functools.partial(start, Norm.L1, 0),
    **{
        f"loss-{kind.name}-{classes}-{str(dtype)[6:]}": functools.partial(
            loss, kind, classes, dtype
        )
        for kind in LossKind
        for classes in (10, 1000, 21843)
        for dtype in (FP32, BF16)
    },
    "loss-dlr-targeted": functools.partial(loss, LossKind.dlr, 1000, FP32, True),
    "loss-dlr-fp64": functools.partial(loss, LossKind.dlr, 100, FP64, True),
    "loss-kl-fp64": functools.partial(loss, LossKind.kl, 1000, FP64),
    "loss-kl-huge": functools.partial(loss, LossKind.kl, 1000, FP32, rows=3_000_000),
    "distill-1000": functools.partial(distill, 1000, BF16),
    "distill-21843": functools.partial(distill, 21843),
}


class Stub:
    """As much of a CUDA driver as Triton's launcher asks before it compiles."""

    def __init__(self, arch: int):
        self.arch = arch

    def get_current_device(self) -> int:
        return self.arch

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self):
        return triton.backends.compiler.GPUTarget("cuda", self.arch, 32)


@pytest.fixture(params=ARCHS, ids=lambda arch: f"sm_{arch}")
def compiled(request, tmp_path, monkeypatch):
    """Compiles a call; returns its cubin's path."""
    if not TOOL.exists():
        pytest.skip(f"this triton has no {TOOL}")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    triton.runtime.driver.set_active(Stub(request.param))

    def compile_one(call) -> Path:
        made = call.kernel.warmup(
            **call.arguments, **call.constants, num_warps=call.warps, grid=(call.programs,),
            **OPTIONS)  # fmt: skip
        assert made.metadata.num_warps == call.warps
        assert made.metadata.enable_fp_fusion is False
        cubin = tmp_path / f"{call.kernel.__name__}.cubin"
        cubin.write_bytes(made.asm["cubin"])
        return cubin

    yield compile_one
    triton.runtime.driver.set_active(None)  # found anew where it is wanted


def cuobjdump(option: str, cubin: Path) -> str:
    done = subprocess.run([TOOL, option, cubin], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("case", CASES)
def test_no_kernel_spills(compiled, case):
    for call in CASES[case]():
        usage = cuobjdump("-res-usage", compiled(call))
        stacks = re.findall(r"\bSTACK:(\d+)", usage)
        assert stacks == ["0"], f"{call.kernel.__name__}: {usage}"


@pytest.mark.parametrize("norm", [Norm.Linf, Norm.L2])
@pytest.mark.parametrize("shape", [CIFAR, TWICE])
def test_steps_move_16_bytes(compiled, norm, shape):
    for call in step(norm, shape):
        assembly = cuobjdump("-sass", compiled(call))
        assert assembly.count("LDG.E.128") >= 3, call.kernel.__name__
        if call.kernel.__name__ != "l2_sums":
            assert assembly.count("STG.E.128") >= 1, call.kernel.__name__


def test_every_kernel_is_compiled_here():
    """Each says how many bytes it moves; no other function is launched."""
    sources = Path(triton_kernels.__file__).parent.glob("*.py")
    found = {
        name
        for source in sources
        for name in re.findall(r"^# Bytes .*?^def (\w+)", source.read_text(), re.M | re.S)
    }
    assert found == {call.kernel.__name__ for case in CASES.values() for call in case()}
