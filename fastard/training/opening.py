"""Where a run's settings and folder come from: a new one, or one that is resumed."""

from __future__ import annotations

from dataclasses import replace

from fastard.training.changes import resumed
from fastard.training.config import Resolved, TrainConfig
from fastard.training.config_file import from_dict
from fastard.training.defaults import resolve
from fastard.training.folder import Onlooker, RunFolder, intact
from fastard.training.ranks import Ranks, job, restarts


def open_run(config: TrainConfig, ranks: Ranks) -> tuple[Resolved, RunFolder]:
    """The resolved settings and the folder of a run; writes nothing.

    Processes that torchrun has started anew resume the run that its first ones began, and no other.

    Raises FileExistsError for a new run where there is one already, FileNotFoundError where there
        is none to resume, and ValueError for settings that cannot be.
    """
    folder = RunFolder if ranks.first else Onlooker
    if not config.resume:
        resolved = resolve(config)
        run = folder(resolved.out)
        with ranks.surviving(run.state):
            # Only the first process's machine need have written the folder.
            continues = ranks.any(ranks.first and restarts() > 0 and run.began_in(job()))
        if not continues:
            run.refuse_existing()
            return _here(resolved, ranks), run
        config = replace(config, resume=True, out=resolved.out)
    if config.out is None:
        raise ValueError("out must be given: the folder of the run to resume.")
    run = folder(config.out)
    values = run.read_config()
    with intact(run.config):
        saved = from_dict(values)
    return _here(resolve(resumed(config, saved)), ranks), run


def _here(config: Resolved, ranks: Ranks) -> Resolved:
    return replace(config, device=ranks.device(config.device))
