"""Where a run's settings and folder come from: a new one, or one that is resumed."""

from __future__ import annotations

from fastard.training.changes import resumed
from fastard.training.config import Resolved, TrainConfig
from fastard.training.config_file import from_dict
from fastard.training.defaults import resolve
from fastard.training.folder import RunFolder, intact


def open_run(config: TrainConfig) -> tuple[Resolved, RunFolder]:
    """The resolved settings and the folder of a run; writes nothing.

    Raises FileExistsError for a new run where there is one already, FileNotFoundError where there
        is none to resume, and ValueError for settings that cannot be.
    """
    if not config.resume:
        resolved = resolve(config)
        run = RunFolder(resolved.out)
        run.refuse_existing()
        return resolved, run
    if config.out is None:
        raise ValueError("out must be given: the folder of the run to resume.")
    run = RunFolder(config.out)
    values = run.read_config()
    with intact(run.config):
        saved = from_dict(values)
    return resolve(resumed(config, saved)), run
