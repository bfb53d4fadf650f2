"""The processes that train one student together, as torchrun starts them."""

from __future__ import annotations

import contextlib
import inspect
import os
import re
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from fastard import rows
from fastard.methods import Method
from fastard.methods.base import Logs
from fastard.models.wideresnet import WideResNet
from fastard.training.config import Resolved
from fastard.training.shared_norm import with_shared_norms

_LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_LOSS_OF_A_PEER = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe", re.I)


def restarts() -> int:
    """How often torchrun has started the processes anew."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def job() -> str | None:
    """What names this job of torchrun in all its starts; None outside of one."""
    # The id is "none" unless one is given; the agent's folder of logs has a name of its own.
    folder, found, _ = os.environ.get("TORCHELASTIC_ERROR_FILE", "").partition("/attempt_")
    return f"{os.environ.get('TORCHELASTIC_RUN_ID', '')} {folder}" if found else None


class Ranks:
    """This process's rank among `world` equal ones; alone, every call gives back what it gets.

    All of them draw the same numbers and hold the same student, and each trains on its rows of
    every global batch. The one of rank 0 writes and prints.

    Args:
        timeout: how long one waits for the others to agree; half an hour when left out.
    """

    def __init__(self, timeout: timedelta | None = None) -> None:
        self.rank, self.world, self.local = 0, 1, 0
        self._made = False
        # What processes agree on must not wait for a device.
        self._agreement: dist.ProcessGroup | None = None
        launched = all(name in os.environ for name in _LAUNCHED)
        if not dist.is_available() or not (dist.is_initialized() or launched):
            return
        if not dist.is_initialized():
            if int(os.environ["WORLD_SIZE"]) == 1:
                return
            both = "cpu:gloo,cuda:nccl"
            store, rank, world = next(rendezvous("env://"))
            # torchrun keeps its store over restarts, with the addresses of the dead in it.
            dist.init_process_group(
                both if torch.cuda.is_available() else "gloo",
                store=dist.PrefixStore(f"start {restarts()}", store),
                rank=rank,
                world_size=world,
            )
            self._made = True
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.local = int(os.environ.get("LOCAL_RANK", str(self.rank)))
        if self.world > 1:
            group = dist.new_group(backend="gloo", timeout=timeout)
            self._agreement = cast(dist.ProcessGroup, group)

    @property
    def part(self) -> tuple[int, int]:
        """Which of how many parts of every batch this process has."""
        return self.rank, self.world

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def device(self, device: str) -> str:
        """The device of this process where the run's is `device`."""
        if self.world == 1 or not device.startswith("cuda"):
            return device
        count = torch.cuda.device_count()
        if self.local >= count:
            raise ValueError(
                f"--nproc-per-node must be at most the {count} CUDA devices that torch sees here, "
                f"but process {self.local}, counted from 0, was started."
            )
        torch.cuda.set_device(self.local)
        return f"cuda:{self.local}"

    def require_divisible(self, config: Resolved) -> None:
        """Raises ValueError for settings that do not fit the number of processes."""
        if self.world == 1 and config.parallel == "fsdp":
            raise ValueError(
                "parallel must be ddp in one process, but is fsdp, which divides the student "
                "between several: torchrun --nproc-per-node N starts them."
            )
        if config.batch_size % self.world:
            raise ValueError(
                f"batch_size is the whole batch's and must be a multiple of the {self.world} "
                f"processes, but is {config.batch_size}."
            )

    def synced(self, network: nn.Module) -> nn.Module:
        """The network with BatchNorm statistics of the whole batch."""
        return network if self.world == 1 else with_shared_norms(network)

    def parallel(self, method: Method) -> nn.Module:
        """The method as a module whose backward pass averages every gradient over the processes.

        The attack inside works on the bare student and communicates nothing in eval mode.
        """
        if self.world == 1:
            return method
        # The buffers are equal already; newer versions of torch have another name for that.
        names = inspect.signature(DistributedDataParallel).parameters
        name = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
        settings: dict[str, Any] = {name: False}
        # One stage of it exists for its checkpoints' sake alone: DDP would wait for its gradients.
        networks = (*method.student.modules(), *method.modules())
        settings["find_unused_parameters"] = any(isinstance(m, WideResNet) for m in networks)
        return DistributedDataParallel(_Whole(method), **settings)

    def noise(self) -> contextlib.AbstractContextManager[None]:
        """For the block, attacks draw the whole batch's noise and take their rows."""
        return rows.part_of_batch(*self.part)

    def mine(self, count: int) -> torch.Tensor | None:
        """Every how-manieth of `count` images this process judges; None: all of them."""
        if self.world == 1 or count < self.world:
            return None
        return torch.arange(self.rank, count, self.world)

    def total(self, numbers: Sequence[int]) -> list[int]:
        """The sums over the processes."""
        if self.world == 1:
            return list(numbers)
        together = torch.tensor(numbers, dtype=torch.int64)
        dist.all_reduce(together, group=self._agreement)
        return together.tolist()

    def any(self, wish: bool) -> bool:
        """Whether one of the processes wishes it; all have to ask."""
        return bool(self.total([int(wish)])[0])

    def averaged(self, logs: Logs) -> Logs:
        """The means over the processes; they stay on the device."""
        if self.world == 1:
            return logs
        together = torch.stack([value.double() for value in logs.values()])
        self.average_([together])
        pairs = zip(logs.items(), together.unbind(), strict=True)
        return {name: mean.to(value.dtype) for (name, value), mean in pairs}

    def average_(self, tensors: Sequence[torch.Tensor]) -> None:
        """Puts the means over the processes in place."""
        if self.world == 1:
            return
        for tensor in tensors:
            dist.all_reduce(tensor)
            tensor /= self.world

    @contextlib.contextmanager
    def first_alone(self) -> Iterator[None]:
        """The block runs in the first process and then in the others."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()

    def wait(self) -> None:
        """Returns when every process has called it."""
        self.total([0])

    @contextlib.contextmanager
    def surviving(self, state: Path) -> Iterator[None]:
        """What the end of another process breaks in the block becomes one sentence.

        Raises ConnectionError naming the state to go on from.
        """
        try:
            yield
        except RuntimeError as error:
            if self.world == 1 or not _lost(error):
                raise
            left = f"--resume continues from {state}" if state.exists() else "no state was saved"
            reason = str(error).strip().split("\n")[0]
            raise ConnectionError(
                f"process {self.rank} of {self.world} (from 0) has lost another one, which ended "
                f"or cannot be reached; training stopped, {left} ({reason})."
            ) from error

    def close(self) -> None:
        """Waits for the others and leaves the group that this object has made."""
        if self._made:
            self.wait()
            dist.destroy_process_group()
            self._made = False


def _lost(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or bool(_LOSS_OF_A_PEER.search(str(error)))


class _Whole(nn.Module):
    """A method with its student as a submodule, so that DDP finds all that is trained."""

    def __init__(self, method: Method):
        super().__init__()
        self.method, self.student = method, method.student

    def forward(self, *batch: torch.Tensor) -> tuple[torch.Tensor, Logs]:
        return self.method(*batch)
