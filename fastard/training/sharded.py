"""FSDP2: the student in parts, one in each process, beside the whole of it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from fastard.methods import Method
from fastard.models import LogitMap, Normalized


class Sharded:
    """A network whose weights, gradients and momentum are divided between all processes.

    `parts` is a copy under `torch.distributed.fsdp.fully_shard`, to be trained. `whole` stays the
    network that it is, complete in each process: attacks, validation, averages and checkpoints use
    it and communicate nothing; `renew` gives it the weights of a step, in one all-gather. Both
    have the same buffers.

    Equal to DDP on the CPU with gloo and on CUDA with nccl, in torch 2.11 and newer. FSDP2 takes
    contiguous parameters alone, so with channels_last it is the whole that has that layout.

    Args:
        whole: the same in every process, on its device.
    """

    def __init__(self, whole: nn.Module):
        # It is about operations in place on what a network returns, which no method makes.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")
        self.whole = whole
        parts = copy.deepcopy(whole)
        for ours, theirs in zip(whole.modules(), parts.modules(), strict=True):
            for name, buffer in ours.named_buffers(recurse=False):
                setattr(theirs, name, buffer)
        self.parts = sharded(parts)

    @torch.no_grad()
    def renew(self) -> None:
        """Puts the weights that were trained into the whole."""
        pieces = cast(list[DTensor], list(self.parts.parameters()))
        torch._foreach_copy_(list(self.whole.parameters()), gathered(pieces))

    @torch.no_grad()
    def divide(self) -> None:
        """Puts the weights of the whole into the parts."""
        for piece, weight in zip(self.parts.parameters(), self.whole.parameters(), strict=True):
            _fill(cast(DTensor, piece), weight)

    def attack_whole(self, method: Method) -> None:
        """Lets the method attack the whole; its training passes go through the parts.

        Networks of the method's own, which are trained along, are divided as well.
        """
        methods = [part for part in method.modules() if isinstance(part, Method)]
        for one in methods:
            for child in one.children():
                if not isinstance(child, Method) and _has_parameters(child):
                    sharded(child)
        attack = method.attack

        def on_whole(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            for ours, theirs in zip(self.whole.modules(), self.parts.modules(), strict=True):
                ours.training = theirs.training
            try:
                _give(methods, self.whole)
                return attack(x, y)
            finally:
                _give(methods, self.parts)

        vars(method)["attack"] = on_whole


def sharded(network: nn.Module) -> nn.Module:
    """The same network under fully_shard: each of its blocks for itself, then what is left."""
    first = next(network.parameters())
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    mesh = _mesh(first.device.type)
    for block in _blocks(network):
        fully_shard(block, mesh=mesh)
    return cast(nn.Module, fully_shard(network, mesh=mesh))


def gathered(pieces: Iterable[DTensor]) -> list[torch.Tensor]:
    """The whole tensors of which each process has a piece, in one all-gather.

    Equivalent to: ``[piece.full_tensor() for piece in pieces]``.
    """
    pieces = list(pieces)
    if not pieces:
        return []
    world = dist.get_world_size()
    padded = []
    for piece in pieces:
        local = piece.to_local().reshape(-1)
        # Rows are dealt out as torch.chunk does: the last processes may have fewer, or none.
        size = -(-piece.shape[0] // world) * piece.shape[1:].numel()
        padded.append(torch.cat([local, local.new_zeros(size - local.numel())]))
    sizes = [part.numel() for part in padded]
    mine = torch.cat(padded)
    together = mine.new_empty(world * mine.numel())
    dist.all_gather_into_tensor(together, mine)
    columns = together.view(world, -1).split(sizes, 1)
    return [
        column.reshape(-1, *piece.shape[1:])[: piece.shape[0]]
        for column, piece in zip(columns, pieces, strict=True)
    ]


def whole_state(state: Any) -> Any:
    """A state with its divided tensors whole, as a run in one process has it; all have to ask."""
    found: list[DTensor] = list(_divided(state))
    wholes = dict(zip(map(id, found), gathered(found), strict=True))

    def put(value: Any) -> Any:
        if isinstance(value, DTensor):
            return wholes[id(value)]
        if isinstance(value, Mapping):
            return {name: put(one) for name, one in value.items()}
        return [put(one) for one in value] if isinstance(value, list) else value

    return put(state) if found else state


def load_whole(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Loads a state that `whole_state` gave into a module with divided parameters, or without."""
    if not any(isinstance(p, DTensor) for p in module.parameters()):
        module.load_state_dict(state)
        return
    pieces = {name: p for name, p in module.named_parameters() if isinstance(p, DTensor)}
    for name, piece in pieces.items():
        _fill(piece, state[name])
    module.load_state_dict({**state, **pieces})


def divide_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Gives every divided parameter its piece of a momentum that was loaded whole."""
    for parameter, state in optimizer.state.items():
        if isinstance(parameter, DTensor):
            for name, value in state.items():
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                    state[name] = _fill(cast(DTensor, torch.zeros_like(parameter)), value)


@torch.no_grad()
def _fill(piece: DTensor, whole: torch.Tensor) -> DTensor:
    chunks = whole.chunk(dist.get_world_size())
    if (rank := dist.get_rank()) < len(chunks):
        piece.to_local().copy_(chunks[rank])
    return piece


def _divided(state: Any) -> Iterator[DTensor]:
    if isinstance(state, DTensor):
        yield state
    elif isinstance(state, (Mapping, list)):
        for value in state.values() if isinstance(state, Mapping) else state:
            yield from _divided(value)


def _blocks(network: nn.Module) -> list[nn.Module]:
    """The parts of a network that are worth an all-gather of their own."""
    while isinstance(network, (Normalized, LogitMap)):
        network = network.model if isinstance(network, Normalized) else network.backbone
    return [c for c in network.children() if _has_parameters(c) and list(c.children())]


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _mesh(device: str) -> DeviceMesh:
    return init_device_mesh(device, (dist.get_world_size(),))


def _give(methods: Iterable[Method], network: nn.Module) -> None:
    for one in methods:
        # As Method does: a submodule would enter its state_dict.
        object.__setattr__(one, "student", network)
