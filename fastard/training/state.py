"""A run's whole state as plain values and tensors, taken between two steps and put back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastard.training import random_state
from fastard.training.changes import require_continuable
from fastard.training.config_file import to_dict
from fastard.training.folder import intact
from fastard.training.sharded import load_whole, whole_state

if TYPE_CHECKING:
    from fastard.training.loop import Trainer

# A state of a run that differs in these fits nothing here.
OWNER = ("method", "data", "student")


def capture(trainer: Trainer) -> dict[str, Any]:
    """Everything that decides how the run goes on from here; every process has to ask."""
    return {
        "settings": to_dict(trainer.config),
        "epoch": trainer.epoch,
        "step": trainer.step,
        "best_epoch": trainer.outcome.best_row.get("epoch"),
        "student": trainer.student.state_dict(),
        "method": whole_state(trainer.method.state_dict()),
        "optimizer": whole_state(trainer.stepper.state_dict()),
        "average": None if trainer.average is None else trainer.average.state_dict(),
        "order": trainer.order_before,
        "rng": random_state.capture(trainer.device),
        "tally": trainer.tally.state(),
        "seconds": dict(trainer.seconds),
    }


def restore(trainer: Trainer) -> dict[str, Any] | None:
    """Puts a new trainer where its run's saved state was; returns that, or None without one.

    Raises ValueError for a damaged file, for a state of another method, data set or student, and
        for settings that it cannot go on with.
    """
    run = trainer.run
    state = run.read_state()
    if state is None:
        return None
    with intact(run.state):
        owner, step = state["settings"], int(state["step"])
        theirs = [f"{k} {owner[k]}" for k in OWNER if owner[k] != getattr(trainer.config, k)]
    if theirs:
        mine = ", ".join(f"{k} {getattr(trainer.config, k)}" for k in OWNER)
        raise ValueError(
            f"{run.state} must be a state of this run ({mine}), but is one of another: "
            f"{', '.join(theirs)}."
        )
    allowed = trainer.config.allow_changes
    require_continuable(run.state, owner, to_dict(trainer.config), step, allowed=allowed)
    with intact(run.state):
        trainer.epoch, trainer.step = trainer.saved = state["epoch"], state["step"]
        trainer.student.load_state_dict(state["student"])
        if trainer.sharded is not None:
            trainer.sharded.divide()
        load_whole(trainer.method, state["method"])
        trainer.stepper.load_state_dict(state["optimizer"])
        if trainer.average is not None and state["average"] is not None:
            trainer.average.load_state_dict(state["average"])
        trainer.order_before = state["order"]
        trainer.tally.restore(state["tally"])
        trainer.seconds = {name: state["seconds"][name] for name in trainer.seconds}
        random_state.restore(state["rng"], trainer.device)
    trainer.outcome.restore(trainer.epoch, state["best_epoch"])
    return state


def restore_within_epoch(trainer: Trainer, state: dict[str, Any]) -> None:
    """Undoes what beginning the epoch anew has changed since `restore`."""
    load_whole(trainer.method, state["method"])
    random_state.restore(state["rng"], trainer.device)
