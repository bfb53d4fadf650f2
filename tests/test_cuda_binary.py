"""What the built module holds for GPUs, read from the binary itself: no device is needed."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch

_C = pytest.importorskip("fastard._C", exc_type=ImportError)

pytestmark = pytest.mark.skipif(
    not _C.has_cuda,
    reason=f"built without CUDA: {getattr(_C, 'cuda_reason', '')}",
)

KERNELS = (
    "linf_kernel", "l2_resident", "l2_streamed", "l1_kernel", "start_kernel", "l2_start_resident",
    "l2_start_streamed", "l1_start_kernel", "warp_rows", "block_rows", "distill_warps",
    "distill_block", "epilogue_kernel", "fold_kernel", "fab_kernel",
    "apgd_linf_kernel", "apgd_l2_resident", "apgd_l2_streamed", "apgd_keep_kernel", "noise_kernel",
    "square_linf", "square_pair",
)  # fmt: skip

# Kernels of images that move groups, and the loads of 16 bytes that each has at least.
WIDE = {
    "linf_kernel": 3, "l2_resident": 3, "l2_streamed": 3, "start_kernel": 2,
    "l2_start_resident": 2, "l2_start_streamed": 2,
    "apgd_linf_kernel": 4, "apgd_l2_resident": 4, "apgd_l2_streamed": 4,
}  # fmt: skip


def architectures() -> list[str]:
    """'75-real', ..., '120', as CMake names them."""
    return [arch for arch in re.split("[;,]", _C.cuda_archs) if arch]


def with_machine_code() -> list[str]:
    """The numbers of those that promise machine code, '90a' among them."""
    return [arch.removesuffix("-real") for arch in architectures() if not arch.endswith("-virtual")]


@pytest.fixture(scope="module")
def cuobjdump():
    """Runs the tool that the triton wheel carries on the module."""
    spec = importlib.util.find_spec("triton")
    if spec is None:
        pytest.skip("triton, whose wheel carries cuobjdump, is not installed")
    tool = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.exists():
        pytest.skip(f"this triton has no {tool}")

    def run(*options: str) -> str:
        command = [str(tool), *options, _C.__file__]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    return run


@pytest.fixture(scope="module")
def resources(cuobjdump):
    """{architecture: {mangled kernel name: stack bytes}}."""
    found: dict[str, dict[str, int]] = {}
    arch = kernel = ""
    for line in cuobjdump("-res-usage").splitlines():
        if match := re.match(r"arch = sm_(\w+)", line.strip()):
            arch = match[1]
        elif match := re.match(r"Function (\S+):", line.strip()):
            kernel = match[1]
        elif match := re.search(r"\bSTACK:(\d+)", line):
            found.setdefault(arch, {})[kernel] = int(match[1])
    return found


def test_machine_code_for_every_architecture(cuobjdump):
    cubins = set(re.findall(r"\.sm_(\w+)\.cubin", cuobjdump("--list-elf")))
    assert with_machine_code()
    assert cubins == set(with_machine_code())


@pytest.mark.skipif(
    "FASTARD_CUDA_ARCH" in os.environ or architectures() == ["90-real"],
    reason=f"built for chosen architectures, {architectures()}",
)
def test_every_promised_architecture_is_there():
    assert set(with_machine_code()) == {"75", "80", "86", "89", "90", "100", "120"}
    assert architectures()[-1] == "120"


def test_ptx_for_newer_devices(cuobjdump):
    wanted = {arch.removesuffix("-virtual") for arch in architectures() if "-real" not in arch}
    if not wanted:
        pytest.skip(f"built for {_C.cuda_archs} only, which asks for no PTX")
    assert set(re.findall(r"\.sm_(\w+)\.ptx", cuobjdump("--list-ptx"))) == wanted


# The L1 step that counts what it moved wants one register more than 1,024 threads leave it there:
# bytes of stack a thread.
SPILLED = {("86", "l1_kernelIf"): 8, ("89", "l1_kernelIf"): 8}


@pytest.mark.parametrize("arch", with_machine_code() if _C.has_cuda else [])
def test_kernels_keep_everything_in_registers(resources, arch):
    for kernel in KERNELS:
        assert any(kernel in name for name in resources[arch]), f"sm_{arch} has no {kernel}"
    for name, stack in resources[arch].items():
        known = [most for (at, kernel), most in SPILLED.items() if at == arch and kernel in name]
        assert stack <= max(known, default=0), name


@pytest.mark.parametrize("arch", with_machine_code()[-3:] if _C.has_cuda else [])
@pytest.mark.parametrize("kernel", WIDE)
def test_images_move_16_bytes_at_once(kernel, arch, cuobjdump, resources):
    pattern = rf"\d{kernel}INS0_5ShapeIffLi4E"
    (name,) = (name for name in resources[arch] if re.search(pattern, name))
    assembly = cuobjdump("-sass", "-arch", f"sm_{arch}", "-fun", name)
    assert assembly.count("LDG.E.128") >= WIDE[kernel]
    assert assembly.count("STG.E.128") >= 1


OPS = (
    "pgd_step_.Scalar", "pgd_step_.Tensor", "random_start_.Scalar", "random_start_.Tensor",
    "logit_loss", "distill_kl", "fold_bn_", "epilogue", "epilogue_backward",
    "fab_step_",
    "apgd_step_", "apgd_keep_", "counter_noise",
)  # fmt: skip


@pytest.mark.parametrize("op", OPS)
def test_cuda_kernels_are_registered(op):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"fastard::{op}", "CUDA")
