"""One run of the reproduction: python -m benchmarks.reproduce_run SPECIFICATION.json OUT.json.

Trains one student and writes what each test image withstood. A process of its own, so that two of
one thread share two cores.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fastard import data, methods, models
from fastard.engine.precision import arithmetic, resolve
from fastard.evaluation.attacks import Attack
from fastard.evaluation.judge import judge
from fastard.files import write_json
from fastard.methods.registry import METHODS

from .reproduce_protocol import network

REFERENCE = 8 / 255


def attacks(eps: float) -> dict[str, Attack]:
    """PGD-20 on cross entropy and CW-30 on the margin, both with steps of eps / 4."""
    step = 0.25 * REFERENCE
    made = (
        Attack("pgd20", "PGD-20", 20, step),
        Attack("cw30", "CW∞-30", 30, step, loss="margin", kappa=50.0),
    )
    return {attack.key: attack.at(eps) for attack in made}


def _teachers(spec: Mapping[str, Any], device: torch.device) -> list[nn.Module]:
    loaded = [models.load_checkpoint(path, name=name) for name, path in spec["teachers"]]
    return [teacher.to(device) for teacher, _ in loaded]


def _options(spec: Mapping[str, Any]) -> dict[str, Any]:
    attack = {"eps": spec["eps"], "alpha": spec["eps"] / 4, "steps": spec["steps"]}
    attack["precision"] = spec["precision"]
    known = METHODS[methods.preset(spec["method"]).method].option_names()
    return {k: v for k, v in attack.items() if k in known} | spec["options"]


def train(spec: Mapping[str, Any], splits: data.Splits, device: torch.device) -> nn.Module:
    """The student after its epochs: SGD, cosine learning rate, crop and flip."""
    torch.manual_seed(spec["seed"])
    teachers, options = _teachers(spec, device), _options(spec)
    kind = METHODS[methods.preset(spec["method"]).method]
    student = kind.make_student(
        lambda outputs: network(spec["student"], outputs), 10, len(teachers), options
    ).to(device)
    method = methods.build(spec["method"], student, teachers, **options).to(device)
    optimizer = torch.optim.SGD(
        method.trainable_parameters(),
        lr=spec["lr"],
        momentum=0.9,
        weight_decay=spec["weight_decay"],
    )
    images = splits.train if spec["train_n"] is None else splits.train.first(spec["train_n"])
    order = torch.Generator().manual_seed(spec["seed"])
    total, step = spec["epochs"] * images.num_batches(spec["batch_size"]), 0
    passes = resolve(spec["precision"], device.type)
    for epoch in range(1, spec["epochs"] + 1):
        method.on_epoch(epoch, spec["epochs"])
        method.train()
        for batch in images.batches(spec["batch_size"], shuffle=True, generator=order):
            for group in optimizer.param_groups:
                group["lr"] = 0.5 * spec["lr"] * (1 + math.cos(math.pi * step / total))
            student.train()
            with arithmetic(passes, student, device.type):
                loss, _ = method(batch.x, batch.y, index=batch.index, view=batch.view)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step += 1
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"the loss is not finite in epoch {epoch} of {spec['label']}.")
    return student.eval()


def recorded(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's file says of its specification: all but where things lie."""
    kept = {k: v for k, v in spec.items() if k not in ("data_root", "save", "teachers")}
    teachers = [[name, Path(path).name] for name, path in spec["teachers"]]
    return json.loads(json.dumps(kept | {"teachers": teachers}))


def run(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Trains and evaluates one student; which test images it classified, clean and attacked."""
    device = torch.device(spec["device"])
    splits = data.load("cifar10", spec["data_root"], device=device, val=0)
    begun = time.perf_counter()
    student = train(spec, splits, device)
    trained = time.perf_counter() - begun
    if spec.get("save"):
        models.save(spec["save"], student, name=spec["student"], num_classes=10)
    test = splits.test if spec["test_n"] is None else splits.test.first(spec["test_n"])
    found = {"clean": judge(student, test)}
    for key, attack in attacks(spec["eps"]).items():
        found[key] = judge(student, test, attack, eps=spec["eps"], seed=spec["seed"])
    survived = {
        key: np.packbits(verdicts.survived.cpu().numpy()).tobytes().hex()
        for key, verdicts in found.items()
    }
    return {
        **{key: spec[key] for key in ("label", "method", "student", "seed", "epochs", "options")},
        "teachers": [name for name, _ in spec["teachers"]],
        "train_seconds": round(trained, 1),
        "evaluation_seconds": round(time.perf_counter() - begun - trained, 1),
        "test_n": len(test),
        "spec": recorded(spec),
        "survived": survived,
    }


def main() -> None:
    specification, out = map(Path, sys.argv[1:3])
    spec = json.loads(specification.read_text())
    if spec["device"] == "cpu":
        torch.set_num_threads(1)
    write_json(out, run(spec))


if __name__ == "__main__":
    main()
