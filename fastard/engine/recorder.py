"""Recording work on a device and doing it again at once: CUDA graphs, and what keeps from them."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Lane:
    """Where recorded work runs; `side` is a second stream for what may run beside it."""

    side: torch.cuda.Stream | None = None


Recordable = Callable[[Lane], Tensors]


class Recorder(Protocol):
    """What a device needs so that work is recorded once and replayed."""

    def busy(self) -> str | None:
        """Why nothing may be recorded or replayed now, if so."""
        ...

    def warm(self, work: Recordable) -> None:
        """Runs the work as it will be recorded: libraries choose their algorithms here."""
        ...

    def record(self, work: Recordable) -> tuple[Callable[[], None], Tensors]:
        """Records the work; returns what replays it and the tensors that it writes each time."""
        ...

    def ordered(self, used: Iterable[Tensor]) -> AbstractContextManager[None]:
        """Keeps replays apart from each other: they share their memory."""
        ...


_CAPTURE = threading.Lock()


@contextmanager
def _own_random_state(device: torch.device) -> Iterator[Callable[[], None]]:
    """Gives a capture a random state of its own; the block calls what it gets once that has begun.

    A state in capture refuses every draw outside of it, those of other threads too, and in torch
    2.11 for ever where the capture breaks. Recorded work draws nothing.
    """
    generator = torch.cuda.default_generators[device.index]
    kept = generator.graphsafe_get_state()
    generator.graphsafe_set_state(kept.clone_state())

    def restore() -> None:
        generator.graphsafe_set_state(kept)

    try:
        yield restore
    finally:
        restore()


class CudaRecorder:
    """CUDA graphs of one device, all in one memory pool."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()
        # Not the streams of the warm-up: a library's workspace for a stream must lie in the pool.
        self._warm, self._main, self._side, self._warm_side = (
            torch.cuda.Stream(device) for _ in range(4)
        )
        self._last = torch.cuda.Event()

    def busy(self) -> str | None:
        return "the caller records a graph" if torch.cuda.is_current_stream_capturing() else None

    def warm(self, work: Recordable) -> None:
        here = torch.cuda.current_stream(self.device)
        self._warm.wait_stream(here)
        try:
            with torch.cuda.stream(self._warm):
                work(Lane(self._warm_side))
        finally:
            rejoined(self._warm_side)
            here.wait_stream(self._warm)

    def record(self, work: Recordable) -> tuple[Callable[[], None], Tensors]:
        if not self._graphs:
            # A pool whose last graph is gone, but not a library's workspace in it, takes no other,
            # and a workspace must not stay where the next emptying of caches unmaps it.
            self._pool = torch.cuda.graph_pool_handle()
            torch._C._cuda_clearCublasWorkspaces()
        graph = torch.cuda.CUDAGraph()
        # torch knows one capture at a time in a process. The block around puts the stream back
        # also where ending a broken capture raises.
        with _CAPTURE, _own_random_state(self.device) as restored, torch.cuda.stream(self._main):
            try:
                with torch.cuda.graph(
                    graph, pool=self._pool, stream=self._main, capture_error_mode="thread_local"
                ):
                    restored()
                    made = work(Lane(self._side))
            except BaseException:
                # Where ending the capture raises, torch 2.11 goes on allocating in its pool.
                with suppress(RuntimeError):
                    torch._C._cuda_endAllocateToPool(self.device.index, self._pool)
                self._pool = torch.cuda.graph_pool_handle()
                raise
        self._graphs.add(graph)
        return graph.replay, made

    @contextmanager
    def ordered(self, used: Iterable[Tensor]) -> Iterator[None]:
        here = torch.cuda.current_stream(self.device)
        here.wait_event(self._last)
        for t in used:
            # Should the recording be dropped, its buffers are free only after this replay.
            t.record_stream(here)
        try:
            yield
        finally:
            self._last.record(here)


def recorder(device: torch.device) -> Recorder | None:
    """The device's recorder, if it has one."""
    return CudaRecorder(device) if device.type == "cuda" else None


@contextmanager
def beside(side: torch.cuda.Stream | None) -> Iterator[None]:
    """Runs a block on the side stream, after all that the current one has been given so far."""
    if side is None:
        yield
        return
    side.wait_stream(torch.cuda.current_stream(side.device))
    with torch.cuda.stream(side):
        yield


def rejoined(side: torch.cuda.Stream | None) -> None:
    """Makes the current stream wait for the side stream."""
    if side is not None:
        torch.cuda.current_stream(side.device).wait_stream(side)


_aten = torch.ops.aten
# Their results' values or shapes are read by the host.
_READS = {
    _aten._local_scalar_dense, _aten.is_nonzero, _aten.equal, _aten.nonzero, _aten.masked_select,
    _aten._unique2, _aten.unique_dim, _aten.unique_consecutive, _aten.bincount,
}  # fmt: skip
_INDEXED = {_aten.index, _aten.index_put, _aten.index_put_}
_COPIES = {_aten._to_copy, _aten.copy_, _aten.lift_fresh}


class HostRead(RuntimeError):
    """Work to be recorded reads a value back, or takes one from the host: a replay would not."""


class NoHostReads(TorchDispatchMode):
    """Refuses every operator that makes the host wait for a device, or hands it a host's value."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        packet = func.overloadpacket
        if packet in _READS or (packet in _INDEXED and _masked(args[1])):
            raise HostRead(f"{packet} reads a value back to the host")
        result = func(*args, **(kwargs or {}))
        if packet in _COPIES:
            given, made = args[packet is _aten.copy_].device, result.device
            of_host = packet is _aten.lift_fresh and made.type == self.device.type
            if of_host or given.type != made.type:
                raise HostRead(f"{packet} copies between host and device")
        return result


def _masked(indices: Iterable[Tensor | None]) -> bool:
    return any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in indices)
