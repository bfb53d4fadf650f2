"""Which backend is chosen, with which words; the Triton operators against the compiled ones."""

from __future__ import annotations

import re
import warnings

import pytest
import torch

from fastard import kinds, native, ops
from fastard.ops import _backend
from tests.ops.cases import native_only

triton_kernels = pytest.importorskip("fastard.triton_kernels", exc_type=ImportError)
OLD_DRIVER = "the driver supports CUDA 12.4, fastard._C needs 13"


@pytest.fixture
def machine(monkeypatch):
    """A CUDA device in name; returns what sets it up."""
    _backend.backend.cache_clear()
    monkeypatch.delenv("FASTARD_BACKEND", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(triton_kernels, "interpreted", lambda: False)

    def set_up(native_cuda=(False, OLD_DRIVER), capability=(8, 0)):
        monkeypatch.setattr(native, "cuda", lambda: native_cuda)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)

    yield set_up
    _backend.backend.cache_clear()


def chosen(op: str, device: str) -> tuple[str, str, list[str]]:
    """The backend, its reason and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = [ops.backend(op, device) for _ in range(2)][0]
    return found.name, found.reason, [str(w.message) for w in caught]


@native_only
def test_compiled_kernels_first(machine):
    machine((True, "fastard._C, CUDA code for 90"))
    assert chosen("pgd_step_", "cuda") == ("native", "fastard._C, CUDA code for 90", [])


@native_only
def test_triton_where_the_compiled_kernels_cannot_run(machine):
    machine()
    sentence = f"fastard.ops.pgd_step_ runs in Triton on cuda: {OLD_DRIVER}."
    assert chosen("pgd_step_", "cuda") == ("triton", OLD_DRIVER, [sentence])


@native_only
def test_an_op_without_a_cuda_kernel(machine, monkeypatch):
    monkeypatch.setitem(_backend._COMPILED, "cuda", set())
    machine((True, ""))
    name, reason, _ = chosen("logit_loss", "cuda")
    assert (name, reason) == ("triton", "fastard._C has no cuda kernel of logit_loss")


def test_plain_pytorch_last(machine, monkeypatch):
    monkeypatch.setattr(native, "module", None)
    monkeypatch.setattr(native, "reason", "fastard._C could not be loaded")
    machine(capability=(6, 1))
    reason = "fastard._C could not be loaded, and compute capability 6.1 is below Triton's 7.0"
    sentence = f"fastard.ops.distill_kl runs in plain PyTorch on cuda: {reason}."
    assert chosen("distill_kl", "cuda") == ("reference", reason, [sentence])


def test_without_triton(machine, monkeypatch):
    monkeypatch.setattr(native, "module", None)
    monkeypatch.setattr(native, "reason", "no module")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    machine()
    found = chosen("pgd_step_", "cuda")
    assert found[:2] == ("reference", "no module, and triton is not installed")


def test_triton_asked_for(machine, monkeypatch):
    machine((True, ""))
    monkeypatch.setenv("FASTARD_BACKEND", "triton")
    assert chosen("pgd_step_", "cuda") == ("triton", "FASTARD_BACKEND=triton", [])
    with pytest.raises(RuntimeError, match="set TRITON_INTERPRET=1.$") as caught:
        ops.backend("pgd_step_", "cpu")
    assert "\n" not in str(caught.value)
    with pytest.raises(RuntimeError, match="^FASTARD_BACKEND=triton, but Triton has no mps device"):
        ops.backend("pgd_step_", "mps")
    monkeypatch.setattr(triton_kernels, "interpreted", lambda: True)
    assert chosen("pgd_step_", "cpu") == ("triton", "FASTARD_BACKEND=triton", [])


def test_compiled_kernels_asked_for(machine, monkeypatch):
    machine((False, OLD_DRIVER))
    monkeypatch.setenv("FASTARD_BACKEND", "native")
    monkeypatch.setattr(native, "module", native)
    with pytest.raises(RuntimeError, match=f"^FASTARD_BACKEND=native, but {OLD_DRIVER}.$"):
        ops.backend("pgd_step_", "cuda")


@pytest.mark.skipif(native.module is None, reason=f"no compiled module: {native.reason}")
def test_rocm_has_no_compiled_kernels(monkeypatch):
    native.cuda.cache_clear()
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert native.cuda() == (False, "torch is built for ROCm, fastard._C for CUDA")
    native.cuda.cache_clear()


@native_only
@pytest.mark.parametrize("name", triton_kernels.OPERATORS)
def test_both_operators_have_one_schema(name):
    op, _, overload = name.partition(".")
    overload = overload or "default"
    compiled, in_triton = (
        str(getattr(getattr(space, op), overload)._schema)
        for space in (torch.ops.fastard, torch.ops.fastard_triton)
    )
    assert in_triton.replace("fastard_triton::", "fastard::") == compiled


@native_only
def test_every_compiled_operator_is_in_triton():
    schemas = [str(s) for s in torch._C._jit_get_all_schemas() if s.name.startswith("fastard::")]
    names = {re.match(r"fastard::([\w.]+)", schema)[1] for schema in schemas}
    engines = {"fold_bn_", "epilogue", "epilogue_backward", "depthwise", "depthwise_backward",
               "make_bits", "apply_bits"}  # fmt: skip
    evaluations = {"apgd_keep_", "apgd_step_", "counter_noise", "fab_step_", "square_step_"}
    assert engines | evaluations <= names
    own = {name for name in names - engines - evaluations if not name.startswith("_")}
    assert own == set(triton_kernels.OPERATORS)


def test_codes_are_those_of_the_enums():
    """The kernels import nothing of ours, the enums' module neither."""
    from fastard.triton_kernels import images, rows

    assert [int(norm) for norm in kinds.Norm] == [images.LINF, images.L2, images.L1]
    assert [int(start) for start in kinds.StartKind] == [images.UNIFORM, images.GAUSSIAN]
    names = ("KL", "CE", "MIXTURE", "MARGIN", "DLR")
    codes = {name: getattr(rows, name).value for name in names}
    assert codes == {kind.name.upper(): int(kind) for kind in kinds.LossKind}
