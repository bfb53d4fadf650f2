"""The trainer: what a run holds and the steps that advance it."""

from __future__ import annotations

import collections
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from fastard.data import Batch
from fastard.device import Clock
from fastard.engine.precision import resolve as resolve_precision
from fastard.methods import Method
from fastard.methods.base import Logs
from fastard.progress import QUIET, Tally
from fastard.training import parts
from fastard.training.averaging import WeightAverage
from fastard.training.batch_step import BatchStep
from fastard.training.config import Resolved, TrainConfig
from fastard.training.config_file import to_dict
from fastard.training.finite import require_finite_loss, require_finite_weights
from fastard.training.hooks import Hook, Step
from fastard.training.networks import build_networks
from fastard.training.opening import open_run
from fastard.training.optim import Stepper
from fastard.training.outcome import Outcome
from fastard.training.progress_bar import ProgressBar
from fastard.training.ranks import Ranks, job
from fastard.training.schedules import learning_rate
from fastard.training.selection import Selection
from fastard.training.state import capture, restore, restore_within_epoch
from fastard.training.stopping import Stop
from fastard.training.tensorboard import TensorBoard

# How long a loss that is not finite may stay unseen on a device where looking waits.
LOOK_SECONDS = 5.0
SHARES = ("attack", "teacher", "student")


@dataclass(frozen=True)
class TrainResult:
    """Where a run is and how it went: `metrics` has a row an epoch, `best` is one of them.

    `stopped` says why a run ended before its last epoch, None where it did not.
    """

    out: Path
    config: Resolved
    metrics: list[dict[str, Any]]
    best: dict[str, Any]
    stopped: str | None = None


class Trainer:
    """A run, to be trained whole or in one's own loop::

        result = Trainer(config, hooks=[MyHook()]).fit()

        for step in Trainer(config).steps():  # after every batch's optimiser step
            print(step.epoch, step.step, float(step.logs["loss"]))

    Both write the run's folder as `fastard.train.train` says. Seeds torch's global generator with
    `config.seed` when it is made.

    Args:
        config: the settings; what is None comes from the method's recipe or the data set.
        hooks: called at every step and epoch, in this order.
        console: shows progress; silent by default.
        stop: what ends the run when it is asked to; one of its own by default.

    Raises ValueError, FileNotFoundError or FileExistsError for settings that cannot work.
    """

    def __init__(
        self,
        config: TrainConfig,
        hooks: Sequence[Hook] = (),
        console: Console = QUIET,
        stop: Stop | None = None,
    ):
        self.ranks = Ranks()
        self.config, self.run = open_run(config, self.ranks)
        config = self.config
        # Nothing is written before every process has looked at the folder.
        with self.ranks.surviving(self.run.state):
            self.ranks.wait()
        console = console if self.ranks.first else QUIET
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.console, self.stop = console, stop or Stop()
        self.device = torch.device(config.device)
        parts.require_teachers(config)
        torch.manual_seed(config.seed)
        with self.ranks.first_alone() if config.download else contextlib.nullcontext():
            self.splits = parts.load_data(config)
        networks = build_networks(config, self.splits, self.ranks)
        self.student, self.sharded = networks.student, networks.sharded
        self.validated: nn.Module | None = None
        """What was validated and saved last: the student, or the average of its weights."""
        self.method: Method = networks.method
        self.clock = Clock(self.device)
        self.precision = None
        if config.precision is not None:
            self.precision = resolve_precision(config.precision, self.device.type)
        scaled = self.precision is not None and self.precision.name == "fp16"
        self.stepper = Stepper(
            self.method.trainable_parameters(), config, self.device, scaled=scaled
        )
        self.average = None if config.average == "none" else WeightAverage(self.student, config)
        self.batch_step = BatchStep(
            networks, self.stepper, self.average, config, self.precision, self.clock, self.ranks
        )
        self.selection = Selection(config, self.splits, self.method.selects_on, self.ranks)
        self.outcome = Outcome(self.run, config, self.splits, self.selection)
        self.order = torch.Generator().manual_seed(config.seed)
        self.steps_per_epoch = self.splits.train.num_batches(config.batch_size)
        self.epoch = self.step = 0
        """Finished epochs, and finished steps of the epoch after them."""
        self.saved: tuple[int, int] | None = None
        """Where the saved state is, as `epoch` and `step` were."""
        self.tally = Tally(self.device)
        self.seconds = dict.fromkeys(("all", *SHARES), 0.0)
        self.hooks: list[Hook] = [*hooks, ProgressBar(console)]
        if not config.no_tensorboard and self.ranks.first:
            self.hooks.append(TensorBoard())
        self.order_before = self.order.get_state()
        self._claimed = False
        self._resumed: dict[str, Any] | None = restore(self) if config.resume else None

    def fit(self) -> TrainResult:
        """Trains to the end, or until SIGTERM, which saves the state at the next step."""
        with self.stop.on_sigterm():
            collections.deque(self.steps(), maxlen=0)
        return self.result()

    def result(self) -> TrainResult:
        """How the run went so far."""
        stopped = None if self.finished else self.stop.reason
        return TrainResult(
            self.run.path, self.config, self.outcome.rows, self.outcome.best_row, stopped
        )

    @property
    def finished(self) -> bool:
        """Whether no epoch is left, by number or by patience."""
        return self.epoch >= self.config.epochs or self.outcome.patience_is_over()

    def steps(self) -> Iterator[Step]:
        """Trains and yields a record after each batch; at an epoch's last, after its validation.

        Leaving the loop early saves the state, so that the run can be resumed from there.
        """
        with self.run.opened():
            self.run.claim(job(), fresh=not (self.config.resume or self._claimed))
            self._claimed = True
            if not self.config.resume or self.config.allow_changes:
                self.run.write_config(to_dict(self.config))
            self.announce()
            self._tell("on_train_start")
            try:
                with self.ranks.surviving(self.run.state):
                    while not self.finished and not self._agreed(False)[0]:
                        yield from self._epoch()
                self._say_how_it_ended()
            except BaseException as error:
                if isinstance(error, GeneratorExit):
                    self.save_state()
                with contextlib.suppress(OSError):  # The first error says more.
                    self._draw(None)
                raise
            else:
                self._draw(self.validated)
            finally:
                self._tell("on_train_end")

    def save_state(self) -> None:
        """Saves everything that a resumed run needs to go on from this step, to the bit.

        Raises FloatingPointError when a loss or a weight is not finite: such a state is not worth
            keeping.
        """
        self.require_finite()
        require_finite_weights(self)
        self._read_clock()
        self._write_state()
        self._saved_at = time.monotonic()

    def _write_state(self) -> None:
        self.run.write_state(capture(self))
        self.saved = self.epoch, self.step

    def means(self) -> dict[str, float]:
        """The epoch's means so far, its images per second and its shares; waits for the device."""
        self.require_finite()
        means = self.tally.means()
        self._read_clock()
        spent = max(self.seconds["all"], 1e-9)
        rates = {f"{name}_share": round(self.seconds[name] / spent, 4) for name in SHARES}
        return {**means, "images_per_s": round(self.tally.samples / spent, 1), **rates}

    def require_finite(self) -> None:
        """Raises FloatingPointError naming the first step of this epoch without a finite loss."""
        require_finite_loss(self)

    def _network(self) -> nn.Module:
        if self.average is None:
            return self.student
        views = torch.Generator().manual_seed(self.config.seed + self.epoch)
        size, part = self.config.batch_size, self.ranks.part
        images = self.splits.train
        return self.average.renewed(images.batches(size, shuffle=True, generator=views, part=part))

    def try_one_batch(self) -> None:
        """Runs the forward and backward of one batch and says what a run would do."""
        self.announce()
        batch = next(self._batches())
        self.method.student.train()
        started = time.perf_counter()
        loss, _ = self.batch_step.loss(batch)
        loss.backward()
        self.console.print(
            f"dry run: loss {loss.item():.4f}, {time.perf_counter() - started:.2f} s for the first "
            f"of {self.steps_per_epoch} batches, nothing written",
            soft_wrap=True,
        )

    def announce(self) -> None:
        """Prints what is about to be trained."""
        for line in self.outcome.announcement(self.epoch, self.step, self.precision):
            self.console.print(line, soft_wrap=True, highlight=False)

    def _epoch(self) -> Iterator[Step]:
        epoch, step = self.epoch + 1, None
        batches = self._begin(epoch)
        for batch in batches:
            logs = self._train_on(batch, epoch)
            self.step += 1
            lr = self.stepper.sgd.param_groups[0]["lr"]
            samples = self.ranks.world * len(batch.x)
            step = Step(epoch, self.step, self.steps_per_epoch, lr, samples, logs)
            self._tell("on_step_end", step)
            if self.step == self.steps_per_epoch:
                break
            stopped, due = self._agreed(self._save_is_due())
            if stopped or due:
                self.save_state()
            yield step
            if stopped:
                return
        assert step is not None, "an epoch has at least one step"
        metrics = self._finish(epoch, step.lr)
        yield Step(**{**vars(step), "metrics": metrics})

    def _begin(self, epoch: int) -> Iterator[Batch]:
        """Makes ready for the epoch's first step, or for the next one of a resumed epoch."""
        state, self._resumed = self._resumed, None
        self.method.on_epoch(epoch, self.config.epochs)
        self._tell("on_epoch_start", epoch)
        self.method.train()
        self.student.train()
        self.method.student.train()
        if not self.step:
            self.tally = Tally(self.device)
            self.seconds = dict.fromkeys(self.seconds, 0.0)
        # Of an epoch that was left or interrupted the same pass is drawn again.
        self.order.set_state(self.order_before)
        batches = self._batches()
        if state is not None and self.step:
            # Last, because on_epoch and the beginning of the pass may have drawn numbers too.
            batches = _primed(batches)
            restore_within_epoch(self, state)
        self.clock.read()
        self._saved_at = self._looked_at = time.monotonic()
        self._timed_from = time.perf_counter()
        return batches

    def _batches(self) -> Iterator[Batch]:
        config = self.config
        batches = self.splits.train.batches(
            config.batch_size,
            shuffle=True,
            generator=self.order,
            start=self.step,
            part=self.ranks.part,
        )
        for batch in batches:
            if config.channels_last:
                batch = batch._replace(x=batch.x.contiguous(memory_format=torch.channels_last))
            yield batch

    def _train_on(self, batch: Batch, epoch: int) -> Logs:
        config = self.config
        self.stepper.set_lr(
            learning_rate(
                config.schedule,
                config.lr,
                epoch,
                config.epochs,
                config.milestones,
                gamma=config.lr_gamma,
                step=self.step,
                steps=self.steps_per_epoch,
                peak=config.peak,
            )
        )
        replays = [self.ranks.averaged(logs) for logs in self.batch_step(batch, epoch)]
        for logs in replays:
            self.tally.add(logs, self.ranks.world * len(batch.x))
        now = time.monotonic()
        # Reading waits for nothing on the CPU, and the next attack would refuse NaN logits.
        if self.device.type == "cpu" or now - self._looked_at > LOOK_SECONDS:
            self._looked_at = now
            self.require_finite()
        return replays[-1]

    def _finish(self, epoch: int, lr: float) -> dict[str, Any]:
        means = self.means()
        require_finite_weights(self)
        metrics: dict[str, Any] = {
            "epoch": epoch,
            "lr": lr,
            **means,
            "seconds": round(self.seconds["all"], 3),
        }
        metrics["selection"] = self.config.selection
        if self.average is not None:
            self.average.after_epoch(epoch)
        network = self.validated = self._network()
        if self.average is not None:
            # The statistics of its normalisations are new.
            require_finite_weights(self)
        metrics |= self.selection.validate(network, epoch)
        self.epoch, self.step = epoch, 0
        self.order_before = self.order.get_state()
        line = self.outcome.finish_epoch(metrics, network)
        # Last, so that a state never claims an epoch whose other files are missing.
        self._write_state()
        self.console.print(line, highlight=False, soft_wrap=True)
        self._tell("on_epoch_end", metrics)
        return metrics

    def _read_clock(self) -> None:
        now = time.perf_counter()
        self.seconds["all"] += now - self._timed_from
        self._timed_from = now
        for name, seconds in self.clock.read().items():
            self.seconds[name] += seconds

    def _save_is_due(self) -> bool:
        every, minutes = self.config.save_every_steps, self.config.save_every_minutes
        if every is not None and self.step % every == 0:
            return True
        return 0 < minutes * 60 < time.monotonic() - self._saved_at

    def _agreed(self, due: bool) -> tuple[bool, bool]:
        """Whether the run ends here and whether its state is saved, the same in every process.

        All of them have to ask; `due` is this one's own wish to save.
        """
        wishes = self.ranks.total([int(self.stop.reason is not None), int(due)])
        if wishes[0] and self.stop.reason is None:
            self.stop.ask("another process")
        return wishes[0] > 0, wishes[1] > 0

    def _draw(self, network: nn.Module | None) -> None:
        if self.ranks.first:
            self.outcome.draw(network)

    def _say_how_it_ended(self) -> None:
        for line in self.outcome.ending(self.epoch, self.step, self.stop.reason, self.finished):
            self.console.print(line, soft_wrap=True, highlight=False)

    def _tell(self, event: str, *arguments: Any) -> None:
        for hook in self.hooks:
            call: Callable[..., None] = getattr(hook, event)
            call(self, *arguments)


def _primed(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches, the first of them drawn already."""
    first = next(batches)

    def rest() -> Iterator[Batch]:
        yield first
        yield from batches

    return rest()
