"""A stand-in for a CUDA graph on the CPU: operators recorded with their tensors, done again in the
same memory with no Python in between."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastard.engine import capture, masks, plan
from fastard.engine import recorder as recorders
from fastard.engine.recorder import Lane, NoHostReads

DRAWS = ("rand", "randn", "randint", "bernoulli", "bernoulli_", "uniform_", "normal_", "dropout")
MAKES = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")


def tensors(made) -> list[Tensor]:
    return [t for t in (made if isinstance(made, (tuple, list)) else [made])
            if isinstance(t, Tensor)]  # fmt: skip


class Tape(TorchDispatchMode):
    """Every operator with the very tensors that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = []
        # A graph's memory is nobody else's: all that was made lives as long as the tape.
        self.kept = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        assert name not in DRAWS, f"{name} inside a recording"
        made = func(*args, **kwargs)
        self.kept.append((args, kwargs, made))
        mutates = any(a.alias_info is not None and a.alias_info.is_write
                      for a in func._schema.arguments)  # fmt: skip
        views = any(r.alias_info is not None for r in func._schema.returns)
        if name not in MAKES and (mutates or not views):
            self.calls.append((func, args, kwargs, [] if mutates else tensors(made)))
        return made

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, made in self.calls:
            again = tensors(func(*args, **kwargs)) if made or args else []
            for place, value in zip(made, again, strict=bool(made)):
                if place.data_ptr() != value.data_ptr():
                    place.copy_(value)


class TapeRecorder:
    """Records on a `Tape`; counts, and fails as it is told to."""

    def __init__(self) -> None:
        self.recorded = self.replayed = self.warmed = self.inside = 0
        self.fails: BaseException | None = None
        self.why_busy: str | None = None

    def busy(self):
        return self.why_busy

    def warm(self, work) -> None:
        self.warmed += 1
        work(Lane())

    def record(self, work):
        if self.fails is not None:
            raise self.fails
        self.recorded += 1
        tape = Tape()
        with NoHostReads(torch.device("cpu")), tape:
            made = work(Lane())
        for t in made.values():
            poison(t)

        def replay():
            assert self.inside == 1, "a replay outside of its turn"
            self.replayed += 1
            tape.replay()

        return replay, made

    @contextmanager
    def ordered(self, used):
        assert all(isinstance(t, Tensor) for t in used)
        assert self.inside == 0, "two replays at once"
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1


def poison(t: Tensor) -> None:
    """A capture computes nothing: what is read before a replay is wrong."""
    t.fill_(float("nan") if t.is_floating_point() else 1)


def stand_in(monkeypatch: pytest.MonkeyPatch) -> TapeRecorder:
    """The CPU takes a device's way through the engine, and records."""
    made = TapeRecorder()
    monkeypatch.setattr(plan, "onednn", lambda: (False, "as on a device"))
    monkeypatch.setattr(plan, "depthwise", lambda *_: False)
    monkeypatch.setattr(masks.ops, "offered", lambda op, kind: op == "fold_bn_")
    monkeypatch.setattr(recorders, "recorder", lambda device: made)
    monkeypatch.setattr(capture, "_GRAPHS", {})
    return made
