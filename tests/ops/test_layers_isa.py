"""The engine's kernels of every instruction set this CPU has, each in a process of its own."""

from __future__ import annotations

import pytest
import torch

from fastard import ops, reference_layers
from tests.ops import test_bits, test_depthwise, test_fold, test_layers
from tests.ops.cases import assert_close, native_only
from tests.ops.forcing import forced, isas

pytestmark = native_only


def check_epilogues() -> None:
    for act in reference_layers.ACTIVATIONS:
        for dtype in test_layers.DTYPES:
            for shape in ((2, 5, 7, 3), (3, 17), (2, 1030)):
                x, other, scale, shift = test_layers.inputs(shape, dtype)
                plain = reference_layers.epilogue(x, scale, shift, other, act)
                exact = test_layers.exact_epilogue(x, scale, shift, other, act)
                assert_close(ops.epilogue(x, scale, shift, other, act), exact, plain)
                saved = test_layers.FUNCTIONS[act](x) if act in ("relu", "relu6") else x
                for given in ((saved, scale, other, act), (saved, None, None, act)):
                    plain = reference_layers.epilogue_backward(other, *given)
                    exact = test_layers.exact_backward(other, x, *given[1:])
                    assert_close(ops.epilogue_backward(other, *given), exact, plain)
    for act in test_layers.KEPT:
        for dtype in test_layers.DTYPES:
            test_layers.test_errors_beside_torchs(act, dtype, None)
            test_layers.test_far_out(act, dtype)
        test_layers.test_the_bias_is_added_again(act, torch.float32, None, None)


def check_depthwise() -> None:
    for kernel in (3, 5, 7):
        for stride in (1, 2):
            for dtype in (torch.float32, torch.bfloat16):
                given = (kernel, stride, dtype, (3, 16, 33), ((5, 7), (4, 13)))
                for case in test_depthwise.sweep(*given):
                    test_depthwise.check(case)


def check_bits() -> None:
    for dtype in test_bits.DTYPES:
        for act in ("relu", "relu6"):
            test_bits.check(dtype, act)


def check_folds() -> None:
    for dtype in test_fold.DTYPES:
        for shape in test_fold.SHAPES[:2]:
            test_fold.test_against_reference(shape, dtype, None)


EVERYTHING = """
from fastard import native
from tests.ops import test_layers_isa as t

t.check_epilogues(), t.check_depthwise(), t.check_folds(), t.check_bits()
print(native.module.cpu_isa())
"""


@pytest.mark.parametrize("isa", isas())
def test_every_kernel_matches_reference(isa):
    assert forced(isa, EVERYTHING) == [isa]


def test_threads_give_the_same_bits():
    """Work split among threads: results do not depend on how many there are."""

    def everything():
        x, other, scale, shift = test_layers.inputs((8, 33, 32, 31), torch.float32, "channels_last")
        y = ops.epilogue(x, scale, shift, other, "silu")
        weight = torch.randn(3, 3, 33, generator=torch.Generator().manual_seed(0))
        return y, *ops.layers.depthwise(x, weight, None, 1, 1, "relu", "relu")

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = everything()
        torch.set_num_threads(3)
        assert all(torch.equal(a, b) for a, b in zip(alone, everything(), strict=True))
    finally:
        torch.set_num_threads(threads)
