"""Training a student with a method: one call, a class, or one's own loop."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from fastard.progress import QUIET
from fastard.training.config import TrainConfig
from fastard.training.config_file import load_config
from fastard.training.hooks import Hook, Step
from fastard.training.loop import Trainer, TrainResult
from fastard.training.stopping import Stop

__all__ = ["Hook", "Step", "TrainConfig", "TrainResult", "Trainer", "load_config", "train"]


def train(
    config: TrainConfig, console: Console = QUIET, hooks: Sequence[Hook] = ()
) -> TrainResult | None:
    """Trains a student and writes the run's folder.

    The folder holds `config.yaml` (every setting, resolved: `--config` starts the same run from
    it), `metrics.jsonl` (a line an epoch), `last.safetensors`, `best.safetensors`, `state.pt` (for
    `resume`), `tensorboard/`, and at the end `curves.png`, `examples.png` and `summary.html`. The
    best epoch is that of the highest robust accuracy under PGD in fp32 (clean accuracy for natural
    training) on images held out of the training set, unless `config.selection` says otherwise.

    Seeds torch's global generator with `config.seed`. SIGTERM ends the run after the step under
    way, its state saved. On the CPU, a run that is resumed from its last saved state, however it
    ended, ends with the same bits as one that was never interrupted.

    Args:
        config: the settings; what is None comes from the method's recipe or the data set.
        console: shows progress; silent by default.
        hooks: called at every step and epoch.

    Returns: the result, or None for a dry run.
    Raises ValueError, FileNotFoundError, FileExistsError or PermissionError for settings that
        cannot work, before any training, FloatingPointError when the loss is not finite, and
        OSError when the folder cannot be written any more; the saved files stay whole.
    """
    stop = Stop()
    with stop.on_sigterm():
        trainer = Trainer(config, hooks, console, stop)
        if trainer.config.dry_run:
            trainer.try_one_batch()
            return None
        return trainer.fit()
