"""One process of several runs: ``python scale_runs.py FOLDER``, alone or of torchrun's kind."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from small_runs import quick

from fastard.data import images
from fastard.methods.registry import METHODS, preset
from fastard.train import Hook, TrainConfig, Trainer, train
from fastard.training.outcome import Outcome
from fastard.training.sharded import whole_state

SLOW = {"epochs": 5, "average": "ema", "save_every_steps": 3}
# What moves weights, gradients or a state by all rows of the batch.
EXACT = {
    "natural": {"student": "wrn-10-1"},
    "trades": {"average": "ema", "ema_decay": 0.5},
    "n-fgsm": {"options": {"attack_mode": "train"}},
    "lbgat": {"clip_grad": 1.0},
    "pgd-at": {"norm": "L2", "eps": 0.15, "awp_gamma": 0.01, "clip_grad": 1.0},
    "rice": {"options": {"faithful": True}},
    "free": {"options": {"m": 2}},
    "rslad": {"options": {"reduction": "sum", "scale": 0.01}},
    "b-mtard": {"options": {"temperature_rate": 0.1, "weight_rate": 0.5}},
    "dgad": {},
    "saad": {"options": {"clean_weight": 0.5}},
    "funmatch": {},
    "darht": {
        "options": {
            "dropout": 0.2,
            "mc_samples": 2,
            "mc_train_samples": 3,
            "combine": "layer",
            "label_weight": 0.5,
        }
    },
    "advfunmatch": {"options": {"augment": "randaugment", "mix": "mixup-or-cutmix"}},
}
# Of these, with the student divided between the processes.
DIVIDED = ("natural", "trades", "lbgat", "darht")


def double_images(x):
    return x.to(torch.float64) / 255


class Wish(Hook):
    """One process alone asks for the end."""

    def on_step_end(self, trainer, step):
        if os.environ["RANK"] == "1" and step.step == 2:
            trainer.stop.ask("a wish")


class Spy(Hook):
    """Notes which collectives an attack and a renewal of the whole student have made."""

    names = ("all_reduce", "all_gather_into_tensor", "reduce_scatter_tensor", "broadcast")

    def __init__(self):
        self.made, self.within = [], {"attack": [], "renew": [], "step": []}

    def on_train_start(self, trainer):
        self.kept = {name: getattr(dist, name) for name in self.names}
        for name, call in self.kept.items():
            setattr(dist, name, self.noted(name, call))
        vars(trainer.method)["attack"] = self.seen("attack", trainer.method.attack)
        trainer.sharded.renew = self.seen("renew", trainer.sharded.renew)

    def noted(self, name, call):
        return lambda *given, **named: self.made.append(name) or call(*given, **named)

    def seen(self, name, call):
        def watched(*given):
            before = len(self.made)
            answer = call(*given)
            self.within[name].append(self.made[before:])
            return answer

        return watched

    def on_step_end(self, trainer, step):
        self.within["step"].append(sorted(set(self.made)))
        self.made.clear()

    def on_train_end(self, trainer):
        for name, call in self.kept.items():
            setattr(dist, name, call)


def stopped(folder: Path) -> None:
    """What each process says of a run that one of them has ended."""
    trainer = Trainer(quick(folder / "stopped"), hooks=[Wish()])
    said = trainer.fit().stopped
    (folder / f"stopped.{os.environ['RANK']}.json").write_text(json.dumps([said, trainer.step]))


def exact(folder: Path, method: str, parallel: str) -> None:
    """Three steps in fp64; the losses of the steps go to a file of each process.

    With the student divided the run is stopped after two of them and resumed.
    """
    settings = {"epochs": 1, "train_n": 48, "batch_size": 16, "val": 9, **EXACT[method]}
    kind = METHODS[preset(method).method]
    teachers = (folder.parent / f"{number}.safetensors" for number in range(kind.least_teachers))
    settings["teacher"] = [str(path) for path in teachers]
    divided = parallel == "fsdp"
    name = f"{method}-fsdp" if divided else method
    config = quick(folder / name, method=method, parallel=parallel, **settings)
    spy = Spy()
    trainer = Trainer(config, hooks=[spy, Wish()] if divided else [])
    losses = [float(step.logs["loss"]) for step in trainer.steps()]
    if divided:
        (folder / f"{name}.collectives.json").write_text(json.dumps(spy.within))
        trainer = Trainer(TrainConfig(out=config.out, resume=True))
        losses += [float(step.logs["loss"]) for step in trainer.steps()]
    rank = os.environ.get("RANK", "0")
    (folder / f"{name}.{rank}.json").write_text(json.dumps(losses))
    torch.save(whole_state(trainer.method.state_dict()), folder / f"{name}.{rank}.pt")


if __name__ == "__main__":
    out = Path(sys.argv[1])
    Outcome.draw = lambda self, network: None  # Pictures take longer than such runs.
    several = "RANK" in os.environ
    if several:
        stopped(out)
        train(quick(out / "whole", **SLOW))
    torch.set_default_dtype(torch.float64)
    images.to_float = double_images
    for name in EXACT:
        exact(out, name, "ddp")
    for name in DIVIDED if several else ():
        exact(out, name, "fsdp")
