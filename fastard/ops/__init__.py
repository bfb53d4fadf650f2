"""The fused operators, functional: each allocates, checks and calls one kernel."""

from fastard.ops import layers
from fastard.ops._backend import Backend, backend, offered
from fastard.ops.counter_noise import counter_noise
from fastard.ops.distill_kl import distill_kl
from fastard.ops.layers import epilogue, epilogue_backward, fold_bn_
from fastard.ops.logit_loss import logit_loss
from fastard.ops.pgd_step import pgd_step_
from fastard.ops.prepare import prepared, round_towards
from fastard.ops.random_start import random_start_

__all__ = [
    "Backend", "backend", "counter_noise", "distill_kl", "epilogue", "epilogue_backward",
    "fold_bn_", "layers", "logit_loss", "offered",
    "pgd_step_", "prepared", "random_start_",
    "round_towards",
]  # fmt: skip
