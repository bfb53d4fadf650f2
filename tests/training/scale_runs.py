"""One process of several runs: ``python scale_runs.py FOLDER``, alone or of torchrun's kind."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from small_runs import quick

from fastard.data import images
from fastard.train import Hook, Trainer, train
from fastard.training.outcome import Outcome

SLOW = {"epochs": 5, "average": "ema", "save_every_steps": 3}
# A mean of rows, a helper that is trained along, moved weights with clipped gradients.
EXACT = {
    "trades": {"average": "ema", "ema_decay": 0.5},
    "n-fgsm": {"options": {"attack_mode": "train"}},
    "lbgat": {},
    "pgd-at": {"norm": "L2", "awp_gamma": 0.01, "clip_grad": 1.0},
}
# The same with the student divided between the processes.
FSDP = {
    "trades": {"average": "ema", "ema_decay": 0.5},
    "lbgat": {"clip_grad": 1.0},
}


def double_images(x):
    return x.to(torch.float64) / 255


class Wish(Hook):
    """One process alone asks for the end."""

    def on_step_end(self, trainer, step):
        if os.environ["RANK"] == "1" and step.step == 2:
            trainer.stop.ask("a wish")


def stopped(folder: Path) -> None:
    """What each process says of a run that one of them has ended."""
    trainer = Trainer(quick(folder / "stopped"), hooks=[Wish()])
    said = trainer.fit().stopped
    (folder / f"stopped.{os.environ['RANK']}.json").write_text(json.dumps([said, trainer.step]))


def exact(folder: Path, method: str) -> None:
    """Three steps in fp64; the losses of the steps go to a file of each process."""
    settings = {"epochs": 1, "train_n": 48, "batch_size": 16, "val": 9, **EXACT[method]}
    if method == "lbgat":
        settings["teacher"] = (str(folder.parent / "helper.safetensors"),)
    trainer = Trainer(quick(folder / method, method=method, **settings))
    losses = [float(step.logs["loss"]) for step in trainer.steps()]
    rank = os.environ.get("RANK", "0")
    (folder / f"{method}.{rank}.json").write_text(json.dumps(losses))
    torch.save(trainer.method.state_dict(), folder / f"{method}.{rank}.pt")


if __name__ == "__main__":
    out = Path(sys.argv[1])
    Outcome.draw = lambda self, network: None  # Pictures take longer than such runs.
    if "RANK" in os.environ:
        stopped(out)
        train(quick(out / "whole", **SLOW))
    torch.set_default_dtype(torch.float64)
    images.to_float = double_images
    for name in EXACT:
        exact(out, name)
