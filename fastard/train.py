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

    Started by torchrun in N processes, it trains one student in all of them, as one process would
    with the same batch size: each reads its rows of every batch, gradients, BatchNorm statistics
    and what a method balances or compares are those of the whole batch, noise and the masks of
    `LogitMap`'s dropout are cut from one draw for it. With `parallel` "fsdp" weights, gradients and
    momentum are divided between them (FSDP2), beside a whole copy to attack, renewed in one
    all-gather a step; files hold whole weights, so a run may be resumed either way and in another
    number of processes. The first one writes and prints; hooks are called in each. Validation is
    shared, with noise of each process's own. When a process ends, the others end with
    ConnectionError; started anew by torchrun (--max-restarts), they resume from the last saved
    state. The folder must be one that all of them see.

    Seeds torch's global generator with `config.seed`. SIGTERM ends the run after the step under
    way, its state saved. On the CPU, a run that is resumed from its last saved state, however it
    ended, ends with the same bits as one that was never interrupted.

    Args:
        config: the settings; what is None comes from the method's recipe or the data set.
        console: shows progress; silent by default.
        hooks: called at every step and epoch.

    Returns: the result, or None for a dry run.
    Raises ValueError, FileNotFoundError, FileExistsError or PermissionError for settings that
        cannot work, before any training, FloatingPointError when the loss is not finite,
        OSError when the folder cannot be written any more, and ConnectionError when another process
        of the run has ended; the saved files stay whole.
    """
    stop = Stop()
    with stop.on_sigterm():
        trainer = Trainer(config, hooks, console, stop)
        result = None
        if trainer.config.dry_run:
            trainer.try_one_batch()
        else:
            result = trainer.fit()
        with trainer.ranks.surviving(trainer.run.state):
            trainer.ranks.close()
        return result
