"""The engine's ops in plain PyTorch: specification, tests' oracle, last fallback."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS = ("none", "relu", "relu6", "silu", "gelu", "gelu_tanh", "hardswish")
_FORWARD = {
    "none": lambda v: v,
    "relu": torch.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda v: F.gelu(v, approximate="tanh"),
    "hardswish": F.hardswish,
}


def _per_channel(values: Tensor | None, like: Tensor) -> Tensor | None:
    if values is None:
        return None
    return values.to(torch.float32).view(1, -1, *[1] * (like.dim() - 2))


def summed(x: Tensor, scale: Tensor | None, shift: Tensor | None, other: Tensor | None) -> Tensor:
    """x * scale + shift + other in fp32."""
    v, scale, shift = x.float(), _per_channel(scale, x), _per_channel(shift, x)
    v = v if scale is None else v * scale
    v = v if shift is None else v + shift
    return v if other is None else v + other.float()


def epilogue(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, other: Tensor | None, act: str
) -> Tensor:
    """act(x * scale + shift + other), computed in fp32."""
    return _FORWARD[act](summed(x, scale, shift, other)).to(x.dtype)


def epilogue_backward(
    grad: Tensor,
    saved: Tensor | None,
    scale: Tensor | None,
    residual: Tensor | None,
    act: str,
    shift: Tensor | None = None,
    extra: Tensor | None = None,
) -> Tensor:
    """(grad + extra) * act'(v) * scale + residual, in saved's dtype; v is saved * scale + shift if
    there is a shift, else saved: act's output for relu and relu6, its input for the others."""
    g, dtype = grad.float(), grad.dtype if saved is None else saved.dtype
    g = g if extra is None else g + extra.float()
    scale, shift = _per_channel(scale, grad), _per_channel(shift, grad)
    if act != "none":
        assert saved is not None
        v = saved.detach().float()
        if shift is not None:
            v = v + shift if scale is None else v * scale + shift
        if act == "relu":
            g = torch.where(v > 0, g, 0.0)
        elif act == "relu6":
            g = torch.where((v > 0) & (v < 6), g, 0.0)
        else:
            with torch.enable_grad():
                v = v.requires_grad_()
                (g,) = torch.autograd.grad(_FORWARD[act](v), v, g)
    g = g if scale is None else g * scale
    g = g if residual is None else g + residual.float()
    return g.to(dtype)


def fold(
    tensors: list[Tensor | None], eps_after: float, eps_before: float, channels: int
) -> tuple[Tensor | None, Tensor, Tensor]:
    """A layer's folded weight, its bias and its scale per channel.

    `tensors`: weight, bias, then gain, shift, mean, var of the normalisation after and of the one
    before; None where the layer has none.
    """
    weight, bias, *norms = (None if t is None else t.detach().double() for t in tensors)
    device = next(t.device for t in tensors if t is not None)
    scale, shift = _normalisation(norms[:4], eps_after, channels, device)
    if weight is None:
        return None, shift, scale
    held = torch.zeros(channels, dtype=torch.float64, device=device) if bias is None else bias
    ones = [1] * (weight.dim() - 2)
    if norms[6] is not None:
        before, offset = _normalisation(norms[4:], eps_before, weight.shape[1], device)
        held = held + (weight * offset.view(1, -1, *ones)).flatten(1).sum(1)
        weight = weight * before.view(1, -1, *ones)
    weight = weight * scale.view(-1, 1, *ones)
    return weight.float(), (shift + held * scale).float(), scale.float()


def _normalisation(
    norm: list[Tensor | None], eps: float, channels: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    gain, shift, mean, var = norm
    zeros = torch.zeros(channels, dtype=torch.float64, device=device)
    if mean is None or var is None:
        return zeros + 1, zeros
    scale = (var + eps).rsqrt()
    scale = scale if gain is None else scale * gain
    return scale, (zeros if shift is None else shift) - mean * scale
