"""The program's intermediate form: a list of layers over numbered values."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import fx, nn


@dataclass(frozen=True)
class Param:
    """A tensor of the model, looked up anew at every refresh: `attribute` of the module `path`."""

    path: str
    attribute: str


@dataclass(frozen=True)
class Norm:
    """Normalisation by running statistics: (x - mean) / sqrt(var + eps) * gain + shift."""

    mean: Param
    var: Param
    gain: Param | None
    shift: Param | None
    eps: float


@dataclass
class Layer:
    """One step: reads the values `inputs`, makes the value `output` (fx nodes name values)."""

    inputs: list[fx.Node]
    output: fx.Node


@dataclass
class Convolution(Layer):
    """act(conv(x) + bias + residual), a normalisation before or after it folded into the weight.

    A linear layer is one with `spatial` False. inputs: x, then the residual if there is one.
    """

    weight: Param
    bias: Param | None
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    spatial: bool = True
    before: Norm | None = None
    after: Norm | None = None
    act: str = "none"
    head: bool = False
    name: str = ""

    @property
    def residual(self) -> bool:
        return len(self.inputs) > 1


@dataclass
class Affine(Layer):
    """act(x * scale + shift) per channel: a normalisation that no convolution can take in."""

    norm: Norm
    act: str = "none"
    name: str = ""


@dataclass
class Sum(Layer):
    """act(a + b)."""

    act: str = "none"


@dataclass
class Activation(Layer):
    """act(x) alone."""

    act: str = "relu"


@dataclass
class Constant(Layer):
    """A parameter or buffer that other layers read as it is."""

    param: Param = Param("", "")


@dataclass
class Segment(Layer):
    """Consecutive nodes that run under local autograd; several values may come out."""

    nodes: list[fx.Node] = field(default_factory=list)
    outputs: list[fx.Node] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)


@dataclass
class Network:
    """The whole program: layers in order, the input and output values, the input's normaliser."""

    layers: list[Layer]
    source: fx.Node
    result: fx.Node
    mean: Param | None = None
    std: Param | None = None
    leaves: dict[str, str] = field(default_factory=dict)
    # The last linear layer's weight where a segment runs it.
    head: Param | None = None


def plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether module is exactly of `kind`, its forward not replaced."""
    return type(module) is kind and "forward" not in module.__dict__
