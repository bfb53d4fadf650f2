"""One op at one size, as the GPU benchmark sees it: inputs, bytes, rivals, oracle, targets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

Set = dict[str, Tensor]  # the tensors of one call
Outputs = tuple[Tensor, ...]
Chain = Callable[..., "Outputs | Tensor"]


@dataclass(frozen=True)
class Case(ABC):
    """Targets: `copy` is the least share of the copy bandwidth, `compile` and `eager` the least
    ratios of their time to fastard's, `launch` the factor on a cached copy's time that, with an
    empty graph node's, bounds fastard's.
    """

    shape: tuple[int, ...]
    targets: dict[str, float] = field(default_factory=dict)
    resident: bool = False  # one set of tensors, so that all of it stays in the L2 cache

    reads = ()  # type: tuple[str, ...]
    scalar_loss = False  # rivals sum the loss, so that only its sum can be compared
    low = False  # an output is in half precision

    @property
    def size(self) -> str:
        return "x".join(map(str, self.shape))

    @property
    @abstractmethod
    def name(self) -> str:
        """Tells the case from every other one."""

    @abstractmethod
    def bytes(self) -> int:
        """Each input read once and each output written once."""

    @abstractmethod
    def inputs(self, device: str, generator: torch.Generator) -> Set:
        """Fresh tensors for one call; `reads` names what it reads."""

    def reset(self, s: Set) -> None:  # noqa: B027
        """Undoes what a call wrote over its own input and poisons what it must write."""

    @abstractmethod
    def fastard(self, s: Set) -> Outputs:
        """The public op."""

    @abstractmethod
    def chain(self) -> Chain:
        """The plain PyTorch of published code, a function of the tensors that `reads` names."""

    def formula(self) -> Chain:
        """What torch.compile gets: the chain, or its formula where that calls autograd."""
        return self.chain()

    @abstractmethod
    def exact(self, s: Set) -> Outputs:
        """The oracle in fp64."""

    def arguments(self, s: Set) -> tuple[Tensor, ...]:
        return tuple(s[name] for name in self.reads)

    def allowed(self, rival: bool) -> float:
        """The largest error against fp64, as a share of the output's largest value."""
        if rival:
            return 0.1 if self.low else 1e-3
        return 4e-3 if self.low else 2e-5


def outputs(result: Outputs | Tensor) -> Outputs:
    return result if isinstance(result, tuple) else (result,)
