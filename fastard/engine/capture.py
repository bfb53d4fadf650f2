"""Whole attacks as one recorded graph: which are recorded, how long each is kept, and why not."""

from __future__ import annotations

import functools
import sys
import threading
import warnings
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastard.engine import recorder as recorders
from fastard.engine.passes import Passed
from fastard.engine.plan import Plan
from fastard.engine.recorder import Lane, NoHostReads, Recorder, Tensors
from fastard.engine.trace import first_line

if TYPE_CHECKING:
    from fastard.engine.program import Program

# Recordings of all programs of one device; the least recently used makes way. Each holds buffers of
# some five batches, and all share one pool of what the largest needs in between.
MOST_RECORDINGS = 32
# Keys that are remembered without a recording: seen once, or refused.
MOST_KEYS = 512
FIRST = "recorded at the second call of this shape and these settings"

Values = dict[str, Any]
# From inputs by name (tensors, numbers, None) to outputs by name. Lane None: as it is, unrecorded.
Work = Callable[[Values, Lane | None], Tensors]


@dataclass
class Recording:
    """A recorded work with the tensors it reads and writes where they lie."""

    inputs: Values
    outputs: Tensors
    replay: Callable[[], None]
    kept: tuple[Tensor | None, ...]  # whatever else the replay reads
    passed: tuple[Passed, ...]  # through each program in one replay

    def __call__(self, inputs: Values) -> Tensors:
        for name, value in inputs.items():
            _fill(self.inputs[name], value)
        self.replay()
        return {name: t.clone() for name, t in self.outputs.items()}


@dataclass
class State:
    """What is known of one key: its plans, and a recording or why there is none."""

    plans: tuple[int, ...]
    recording: Recording | None = None
    refused: str | None = None


class Graphs:
    """One device's recordings."""

    def __init__(self, recorder: Recorder, most: int = MOST_RECORDINGS) -> None:
        self.recorder, self.most = recorder, most
        self.lock = threading.RLock()
        self._known: OrderedDict[Hashable, State] = OrderedDict()
        self._watched: dict[int, weakref.ref[Plan]] = {}
        self._gone: deque[int] = deque()
        self._recording = False

    @property
    def count(self) -> int:
        """How many recordings are held."""
        return sum(s.recording is not None for s in list(self._known.values()))

    def run(
        self, programs: Sequence[Program], key: Hashable, work: Work, inputs: Values,
        not_now: str | None = None, renews: bool = True,
    ) -> Tensors:  # fmt: skip
        """work(inputs): replayed, or recorded and replayed, or as it is."""
        device = inputs["x"].device
        plans = [p.plan for p in programs if p.plan is not None]
        whole = (
            key, renews, device, _signature(inputs), _flags(),
            tuple(
                _circumstance(p, q, inputs["x"], renews)
                for p, q in zip(programs, plans, strict=True)
            ),
        )  # fmt: skip
        with self.lock:
            self._forget_gone()
            state = self._known.get(whole)
            if state is None:
                self._remember(whole, plans)
                why = not_now or FIRST
            elif not_now is not None:
                why = not_now
            elif state.refused is not None:
                why = state.refused
            else:
                self._known.move_to_end(whole)
                for p in programs:
                    # A frozen model's copies are made once, outside of every recording.
                    if p.frozen:
                        p.renew()
                renewed = programs if renews else ()
                return self._replayed(state, programs, renewed, work, inputs, device)
        _tell(programs, f"no: {why}")
        return self._alone(work, inputs, renews)

    def _alone(self, work: Work, inputs: Values, whole: bool) -> Tensors:
        """The work as it is. A pass that finds no memory gets what recordings hold: unlike a whole
        attack it may begin again."""
        if whole or not self.count:
            return work(inputs, None)
        try:
            return work(inputs, None)
        except torch.OutOfMemoryError:
            with self.lock:
                for state in self._known.values():
                    state.recording = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return work(inputs, None)

    def _replayed(
        self, state: State, programs: Sequence[Program], renewed: Sequence[Program], work: Work,
        inputs: Values, device: torch.device,
    ) -> Tensors:  # fmt: skip
        recording = state.recording
        if recording is None:
            outer, why = sys.exc_info()[1], None
            try:
                recording = self._record(programs, renewed, work, inputs, device)
            except RuntimeError as error:
                why = first_line(_cause(error, outer))
            # Outside of the handler, which holds the failed attempt's memory.
            if recording is None:
                # Raises by itself where the work, not its recording, is at fault.
                found = self._alone(work, inputs, bool(renewed))
                state.refused = f"it could not be recorded ({why})"
                warnings.warn(
                    f"an attack runs without a graph: {state.refused}.", RuntimeWarning,
                    stacklevel=2)  # fmt: skip
                _tell(programs, f"no: {state.refused}")
                return found
            state.recording = recording
        held = [t for t in (*recording.inputs.values(), *recording.kept) if t is not None]
        with self.recorder.ordered(held):
            found = recording(inputs)
        for p, passed in zip(programs, recording.passed, strict=True):
            p.replayed(passed)
        _tell(programs, f"one graph; {self.count} of at most {self.most} are held on {device}")
        return found

    def _record(
        self, programs: Sequence[Program], renewed: Sequence[Program], work: Work, inputs: Values,
        device: torch.device,
    ) -> Recording:  # fmt: skip
        for key, state in list(self._known.items()):
            if self.count < self.most:
                break
            if state.recording is not None:
                self._known.pop(key, None)
        wide = torch.float64 if inputs["x"].dtype == torch.float64 else torch.float32
        held = {name: _buffer(value, wide, device) for name, value in inputs.items()}
        for name, value in inputs.items():
            _fill(held[name], value)

        def again(lane: Lane) -> Tensors:
            for p in renewed:
                p.renew(again=True)
            return work(dict(held), lane)

        before = [replace(p.counted) for p in programs]
        warmed = before
        self._recording = True
        try:
            with NoHostReads(device):
                self.recorder.warm(again)
            warmed = [replace(p.counted) for p in programs]
            replay, outputs = self.recorder.record(again)
        finally:
            self._recording = False
            passed = tuple(p.counted.since(b) for p, b in zip(programs, warmed, strict=True))
            for p, b in zip(programs, before, strict=True):
                p.counted.add(b.since(p.counted))
        kept: list[Tensor | None] = []
        for p in programs:
            if p.plan is not None:
                kept += [*p.plan.weights.buffers, *(p.statistics(inputs["x"]) or ())]
                kept += [p.plan.mean, p.plan.std]
        return Recording(held, outputs, replay, tuple(kept), passed)

    def _remember(self, key: Hashable, plans: Sequence[Plan]) -> None:
        self._known[key] = State(tuple(plan.serial for plan in plans))
        for plan in plans:
            serial = plan.serial
            if serial not in self._watched:
                self._watched[serial] = weakref.ref(plan, functools.partial(self._died, serial))
        while len(self._known) > MOST_KEYS:
            self._known.popitem(last=False)

    def _died(self, serial: int, _: weakref.ref[Plan]) -> None:
        self.drop(serial)

    def drop(self, serial: int) -> None:
        """Forgets what was recorded of a plan: now, or when the lock is free."""
        self._gone.append(serial)
        # A plan may be collected at any moment, in a thread that must not wait or while a graph is
        # being recorded.
        if self.lock.acquire(blocking=False):
            try:
                if not self._recording:
                    self._forget_gone()
            finally:
                self.lock.release()

    def _forget_gone(self) -> None:
        gone = set()
        while self._gone:
            gone.add(self._gone.popleft())
        if not gone:
            return
        for key, state in list(self._known.items()):
            if gone.intersection(state.plans):
                self._known.pop(key, None)
        for serial in gone:
            self._watched.pop(serial, None)


_GRAPHS: dict[torch.device, Graphs | None] = {}
_LOCK = threading.Lock()


def graphs_of(device: torch.device) -> Graphs | None:
    """The recordings of a device, if anything can be recorded there."""
    with _LOCK:
        if device not in _GRAPHS:
            made = recorders.recorder(device)
            _GRAPHS[device] = None if made is None else Graphs(made)
        return _GRAPHS[device]


def discarded(plan: Plan) -> None:
    """Drops the recordings of a plan that no attack uses any more."""
    with _LOCK:
        held = [graphs for graphs in _GRAPHS.values() if graphs is not None]
    for graphs in held:
        graphs.drop(plan.serial)


def run(
    programs: Sequence[Program], key: Hashable, work: Work, inputs: Values,
    refusal: str | None = None, not_now: str | None = None, renews: bool = True,
) -> Tensors:  # fmt: skip
    """What `work` makes of `inputs`, inside the programs' running blocks: from one recorded graph
    where that is possible, else by running it.

    Args:
        programs: the networks that `work` runs.
        key: everything that `work` depends on beside `inputs` and the programs.
        inputs: by name; "x" is a tensor on the device. Work may take entries out of its own dict.
        refusal: why nothing of this kind is ever recorded, if so.
        not_now: why this call is not, if so; it counts as the first of its kind.
        renews: work is a whole attack, which copies the programs' live weights first; False: the
            running blocks have copied them.
    """
    device = inputs["x"].device
    graphs = graphs_of(device)
    why = _obstacle(programs, graphs, device, renews) if refusal is None else refusal
    if why is None and graphs is not None:
        return graphs.run(programs, key, work, inputs, not_now, renews)
    _tell(programs, f"no: {why}")
    return work(inputs, None)


def _obstacle(
    programs: Sequence[Program], graphs: Graphs | None, device: torch.device, whole: bool
) -> str | None:
    if any(p.capture == "never" for p in programs):
        return "capture='never'"
    if graphs is None:
        return f"{device.type} has no graphs"
    for p in programs:
        if p.plan is None:
            return p.made.reason if p.made is not None else "it is not compiled"
        why = _known(p, "unrecordable", p.plan.unrecordable, whole)
        if why is not None:
            return str(why)
    return graphs.recorder.busy()


def _known(program: Program, name: str, find: Callable[[], Any], anew: bool) -> Any:
    """What `find` finds, for a pass of an attack as the running block's first pass found it: it
    walks the model."""
    if anew or name not in program.known:
        program.known[name] = find()
    return program.known[name]


def _cause(error: RuntimeError, outer: BaseException | None) -> RuntimeError:
    """What broke a recording: ending a broken one raises as well. `outer` was the caller's."""
    first: BaseException = error
    while first.__context__ is not None and first.__context__ is not outer:
        first = first.__context__
    if isinstance(first, RuntimeError):
        return first
    raise first


def _tell(programs: Sequence[Program], what: str) -> None:
    for p in programs:
        p.captured = what


def _circumstance(program: Program, plan: Plan, x: Tensor, whole: bool) -> Hashable:
    """What a recording has of a program: the plan says model, shape, dtype and options, the rest
    are addresses that were recorded."""

    def find() -> Hashable:
        read = tuple((t.data_ptr(), t.shape, t.stride(), t.dtype) for t in plan.reads())
        buffers = tuple(t.data_ptr() for t in plan.weights.buffers)
        return plan.serial, program.low_dtype, read, buffers

    given = tuple(t.data_ptr() for t in program.statistics(x) or ())
    return _known(program, "circumstance", find, whole), given


def _flags() -> Hashable:
    """torch's settings that choose kernels."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    return (
        matmul.fp32_precision, cudnn.conv.fp32_precision,  # type: ignore[attr-defined]
        cudnn.enabled, cudnn.benchmark,
        cudnn.deterministic, torch.are_deterministic_algorithms_enabled(), torch.get_num_threads(),
        matmul.allow_bf16_reduced_precision_reduction,
        matmul.allow_fp16_reduced_precision_reduction,
    )  # fmt: skip


def _signature(inputs: Values) -> Hashable:
    return tuple(
        (name, tuple(v.shape), v.stride(), v.dtype) if isinstance(v, Tensor) else (name, type(v))
        for name, v in inputs.items()
    )


def _buffer(value: Any, wide: torch.dtype, device: torch.device) -> Tensor | None:
    """A place on the device for an input; a number becomes a tensor of one."""
    if value is None:
        return None
    if isinstance(value, Tensor):
        return torch.empty_like(value, device=device)
    return torch.empty(1, dtype=wide, device=device)


def _fill(buffer: Tensor | None, value: Any) -> None:
    """Writes an input into its place without making the host wait."""
    if buffer is None:
        return
    if isinstance(value, Tensor):
        buffer.copy_(value.detach(), non_blocking=True)
    else:
        buffer.fill_(value)
