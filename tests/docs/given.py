"""What pages about one call take for granted, and the packages that their readers come from."""

from __future__ import annotations

import importlib.util
import types
from pathlib import Path
from typing import Any

import pyautoattack
import torch
import torch.nn.functional as F

import fastard
from benchmarks import published
from fastard import models
from tests.api.models import batch, small_net


def names() -> dict[str, Any]:
    """A student, a teacher and a batch of the README and of docs/methods.md."""
    student, teacher = small_net(), small_net(seed=1).eval()
    x, y, teacher_logits = batch(4)
    return {
        "fastard": fastard, "torch": torch, "student": student, "model": student,
        "teacher": teacher, "x": x, "y": y, "teacher_logits": teacher_logits,
        "optimizer": torch.optim.SGD(student.parameters(), lr=0.1),
        "method": fastard.methods.build("trades", student), "epochs": 1, "batches": [(x, y)],
        "kl": torch.nn.KLDivLoss(reduction="none"),
        "log_softmax": lambda logits: logits.log_softmax(1),
        "softmax": lambda logits: logits.softmax(1),
    }  # fmt: skip


def checkpoints(folder: Path) -> None:
    """Networks that know digits a little, in the files of which the README's commands speak."""
    digits = fastard.data.load("digits")
    for name in ("teacher", "A", "B", "C"):
        net = models.build("small_cnn-4", 10, image_size=8)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        for images in digits.train.select(torch.arange(640)).batches(32):
            optimizer.zero_grad()
            F.cross_entropy(net(images.x), images.y).backward()
            optimizer.step()
        path = folder / f"{name}.safetensors"
        models.save(path, net.eval(), name="small_cnn-4", num_classes=10, image_size=8)


def _rslad_inner_loss(
    model, teacher_logits, x_natural, y, optimizer, step_size=0.003, epsilon=0.031,
    perturb_steps=10, beta=6.0,
):  # fmt: skip
    x_adv = published.rslad(model, teacher_logits, x_natural, step_size, epsilon, perturb_steps)
    optimizer.zero_grad()
    return model(x_adv)


def _trades_loss(
    model, x_natural, y, optimizer, step_size=0.003, epsilon=0.031, perturb_steps=10, beta=1.0
):  # fmt: skip
    x_adv = published.trades(model, x_natural, step_size, epsilon, perturb_steps)
    optimizer.zero_grad()
    natural = model(x_natural)
    divergence = F.kl_div(
        model(x_adv).log_softmax(1), model(x_natural).softmax(1), reduction="sum"
    ) / len(y)
    return F.cross_entropy(natural, y) + beta * divergence


class _PGD:
    """torchattacks 3.5's PGD, for where it is not installed."""

    def __init__(self, model, eps=8 / 255, alpha=2 / 255, steps=10, random_start=True):
        self.model, self.eps, self.alpha, self.steps = model, eps, alpha, steps
        self.random_start = random_start

    def __call__(self, images, labels):
        training = self.model.training
        self.model.eval()
        adv = images.clone().detach()
        if self.random_start:
            noise = torch.empty_like(adv).uniform_(-self.eps, self.eps)
            adv = torch.clamp(adv + noise, min=0, max=1).detach()
        for _ in range(self.steps):
            adv.requires_grad = True
            cost = F.cross_entropy(self.model(adv), labels)
            grad = torch.autograd.grad(cost, adv)[0]
            adv = adv.detach() + self.alpha * grad.sign()
            delta = torch.clamp(adv - images, min=-self.eps, max=self.eps)
            adv = torch.clamp(images + delta, min=0, max=1).detach()
        self.model.train(training)
        return adv


class _AutoAttack:
    """The official constructor and call, for where its registry copy with others is installed."""

    def __init__(
        self, model, norm="Linf", eps=0.3, seed=None, verbose=True, attacks_to_run=(),
        version="standard", is_tf_model=False, device="cuda", log_path=None,
    ):  # fmt: skip
        self.inside = pyautoattack.AutoAttack(
            model, attacks=list(attacks_to_run) or None, norm=norm, eps=eps, seed=seed,
            version=version, device=device,
        )  # fmt: skip
        self.apgd = self.inside.apgd

    def run_standard_evaluation(self, x, y, bs=250):
        return self.inside.run_standard_evaluation(x, y, batch_size=bs)[0]


def origins() -> dict[str, types.ModuleType]:
    """The modules that the code before a change imports; installed ones are left as they are."""
    held = {
        "rslad_loss": {
            "rslad_inner_loss": _rslad_inner_loss, "F": F, "torch": torch, "nn": torch.nn,
            "optim": torch.optim,
        },
        "trades": {"trades_loss": _trades_loss},
        "torchattacks": {"PGD": _PGD},
        "autoattack": {"AutoAttack": _AutoAttack},
    }  # fmt: skip
    found = {}
    for name, attributes in held.items():
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # a folder of that name is no package
            found[name] = types.ModuleType(name)
            vars(found[name]).update(attributes)
    return found
