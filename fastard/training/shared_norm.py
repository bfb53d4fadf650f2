"""BatchNorm over the rows of all processes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn


class _Summed(torch.autograd.Function):
    """The sum over all processes, whose gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        total = x.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


class SharedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """`torch.nn.SyncBatchNorm` for tensors on the CPU, which that one refuses.

    In train mode it normalises by the mean and variance of the rows of all processes, which must
    have equally many; in eval mode it communicates nothing.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        half = input.dtype in (torch.float16, torch.bfloat16)
        x = input.float() if half else input
        world = dist.get_world_size()
        dims = [d for d in range(x.dim()) if d != 1]
        wide = [1, -1, *[1] * (x.dim() - 2)]
        mean = _Summed.apply(x.mean(dims)) / world
        # About the common mean: the mean of squares less its square would cancel.
        centred = x - mean.view(wide)
        variance = _Summed.apply(centred.square().mean(dims)) / world
        if self.track_running_stats:
            self._track(mean.detach(), variance.detach(), world * x.numel() // x.shape[1])
        y = centred * (variance + self.eps).rsqrt().view(wide)
        if self.weight is not None:
            y = y * self.weight.view(wide)
        if self.bias is not None:
            y = y + self.bias.view(wide)
        return y.to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: torch.Tensor, variance: torch.Tensor, count: int) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = self.momentum
        if momentum is None:
            momentum = 1 / int(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean), momentum)
        unbiased = variance * (count / max(1, count - 1))
        self.running_var.lerp_(unbiased.to(self.running_var), momentum)


def with_shared_norms(network: nn.Module) -> nn.Module:
    """The same network, its BatchNorm layers over the rows of all processes.

    Parameters and buffers stay the ones that they are; on CUDA the layers are torch's own
    `SyncBatchNorm`.
    """
    first = next(network.parameters(), None)
    if first is not None and first.device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child) in (nn.BatchNorm1d, nn.BatchNorm2d):
                setattr(parent, name, _shared(child))
    return network


def _shared(norm: nn.Module) -> SharedBatchNorm:
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    shared = SharedBatchNorm(
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
    )
    shared.weight, shared.bias = norm.weight, norm.bias
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        setattr(shared, name, getattr(norm, name))
    return shared.train(norm.training)
