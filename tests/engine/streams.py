"""Stand-ins for torch.cuda's streams, events and graphs on the CPU, and a look-out for races.

Work runs at once whatever its stream; every tensor remembers on which stream it was last written
and read, and a later use on another stream must have waited for that.
"""

from __future__ import annotations

import functools
import itertools
import types
from collections import defaultdict
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastard.engine import capture
from fastard.engine import recorder as recorders
from tests.engine.tape import Tape, stand_in, tensors

_numbers = itertools.count()


class Stream:
    def __init__(self, device=None) -> None:
        self.device, self.name = device, next(_numbers)
        # How far this stream has seen every other one.
        self.seen = defaultdict(int)

    def wait_stream(self, other) -> None:
        for name, at in other.seen.items():
            self.seen[name] = max(self.seen[name], at)

    def wait_event(self, event) -> None:
        self.wait_stream(event)


class Event:
    def __init__(self) -> None:
        self.seen = {}

    def record(self, stream) -> None:
        self.seen = dict(stream.seen)


class Races(TorchDispatchMode):
    """Notes each operator that uses memory which another stream may still be using."""

    def __init__(self, cuda) -> None:
        super().__init__()
        self.cuda, self.found, self.used = cuda, [], set()
        self.writes, self.reads, self.kept = {}, defaultdict(dict), []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        here = self.cuda.now[-1]
        here.seen[here.name] += 1
        self.used.add(here.name)
        names = [a.name for a in func._schema.arguments]
        given = dict(zip(names, args, strict=False)) | kwargs
        written = {a.name for a in func._schema.arguments
                   if a.alias_info is not None and a.alias_info.is_write}  # fmt: skip
        views = any(r.alias_info is not None for r in func._schema.returns)
        for name, value in given.items():
            for t in tensors(value):
                self.use(t, name in written, func, here)
        for t in [] if written or views else tensors(made):
            self.use(t, True, func, here)
        # Memory that is used again would look like a race.
        self.kept.append((args, kwargs, made))
        return made

    def use(self, t, writes, func, here) -> None:
        at = t.untyped_storage().data_ptr()
        before = [self.writes[at]] if at in self.writes else []
        before += list(self.reads[at].items()) if writes else []
        if any(here.seen[name] < when for name, when in before):
            self.found.append(f"{func} on stream {here.name}")
        if writes:
            self.writes[at], self.reads[at] = (here.name, here.seen[here.name]), {}
        else:
            self.reads[at][here.name] = here.seen[here.name]


class Cuda:
    """What the recorder takes from torch.cuda; `log` says what it did."""

    def __init__(self) -> None:
        self.streams, self.log, self.breaks = [], [], False
        self.now = [self.new_stream()]
        self.races = Races(self)

    def new_stream(self, device=None) -> Stream:
        self.streams.append(Stream(device))
        return self.streams[-1]

    @contextmanager
    def stream(self, stream):
        self.now.append(stream)
        try:
            yield
        finally:
            self.now.pop()

    @contextmanager
    def graph(self, graph, pool, stream, capture_error_mode):
        self.log.append((pool, stream.name, capture_error_mode))
        # torch.cuda.graph waits for the device.
        stream.wait_stream(self.now[0])
        with Tape() as graph.tape:
            self.now.append(stream)
            yield
        unjoined = [s.name for s in self.streams if stream.seen[s.name] < s.seen[s.name]]
        if unjoined:
            self.races.found.append(f"streams {unjoined} were not joined")
        # A recording runs nothing; a replay is in the order of the stream that it is launched on.
        for other in self.streams:
            self.now[0].wait_stream(other)
        if self.breaks:  # and torch then leaves its stream the current one
            raise RuntimeError("operation failed due to a previous error during capture")
        self.now.pop()


def stand_in_cuda(monkeypatch) -> Cuda:
    """The engine's own CUDA recorder, on the CPU."""
    recorder = recorders.CudaRecorder
    stand_in(monkeypatch)
    cuda = Cuda()

    class Graph:
        tape: Tape

        def replay(self) -> None:
            cuda.log.append("replay")
            self.tape.replay()

    class Generator:
        """The device's: which of its states is current."""

        state = "the caller's"

        def graphsafe_get_state(self) -> Any:
            return types.SimpleNamespace(name=self.state, clone_state=lambda: "a capture's")

        def graphsafe_set_state(self, state: Any) -> None:
            self.state = getattr(state, "name", state)
            cuda.log.append(f"random state: {self.state}")

    cuda.generator = Generator()
    for name in ("_cuda_clearCublasWorkspaces", "_cuda_endAllocateToPool"):
        log = functools.partial(lambda name, *_: cuda.log.append(name), name)
        monkeypatch.setattr(torch._C, name, log, raising=False)
    monkeypatch.setattr(torch.cuda, "default_generators", {None: cuda.generator})
    for name, value in {
        "Stream": cuda.new_stream, "Event": Event, "CUDAGraph": Graph, "stream": cuda.stream,
        "graph": cuda.graph, "current_stream": lambda device=None: cuda.now[-1],
        "graph_pool_handle": lambda: f"pool {next(_numbers)}",
        "is_current_stream_capturing": lambda: False,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda t, s: cuda.log.append("kept"))
    monkeypatch.setattr(recorders, "recorder", recorder)
    monkeypatch.setattr(capture, "_GRAPHS", {})
    return cuda
