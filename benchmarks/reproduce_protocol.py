"""One budget and one protocol for every method: what `benchmarks.reproduce` trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from fastard import models

TEACHERS = {"resnet4b": "robust CNN (l∞ 2/255)", "cnn_a": "robust CNN (l∞ 4/255)"}


@dataclass(frozen=True)
class Row:
    """A line of the table: a method with its options, and the teachers that it learns from."""

    label: str
    method: str
    teachers: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


# Every divergence is divided by the batch alone, so that weight decay weighs the same everywhere;
# `rslad` at the published code's scale, a tenth of that, stands beside.
ROWS = (
    Row("natural", "natural"),
    Row("pgd-at", "pgd-at"),
    Row("trades", "trades"),
    Row("ard", "ard", 1, {"temperature": 1.0, "reduction": "batchmean"}),
    Row("akd", "akd", 1),
    Row("rslad", "rslad-batchmean", 1, note="method `rslad-batchmean`: divided by the batch"),
    Row("adaad", "adaad", 1, {"reduction": "batchmean"}),
    Row("advfunmatch", "advfunmatch-mixup", 1, note="with MixUp; without, it is AdaAD's row"),
    Row("darht", "darht", 2, note="two CNN teachers: the paper mixes architectures"),
    # Not the preset `rslad-official`, which has a recipe of its own.
    Row("rslad-official", "rslad", 1, note="method `rslad`: the published code's scale, a tenth"),
)


@dataclass(frozen=True)
class Protocol:
    """What all rows share."""

    student: tuple[str, ...]
    eps: float
    train_n: int | None
    epochs: int
    test_n: int | None
    batch_size: int = 128
    lr: float = 0.1
    weight_decay: float = 5e-4
    steps: int = 10
    processes: int = 1
    precision: str | None = None


PROTOCOLS = {
    "cpu": Protocol(
        student=("conv3",), eps=2 / 255, train_n=20_000, epochs=5, test_n=2_000, processes=2
    ),
    "cuda": Protocol(
        student=("resnet18", "mobilenetv2"),
        eps=8 / 255,
        train_n=None,
        epochs=30,
        test_n=None,
        precision="bf16",
    ),
}
# The teacher that the CUDA protocol trains first, by itself.
OWN_TEACHER = {"student": "wrn-34-10", "method": "trades", "epochs": 30}


class Conv3(nn.Module):
    """Three convolutions of stride 2 with batch norm and one linear layer: 1.05 million
    multiplications an image of 32x32, for budgets of minutes on a CPU."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        widths = (3, 24, 40, 56)
        self.features = nn.Sequential(
            *(
                layer
                for before, after in zip(widths, widths[1:], strict=False)
                for layer in (
                    nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
                    nn.BatchNorm2d(after),
                    nn.ReLU(),
                )
            )
        )
        self.linear = nn.Linear(56 * 16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.features(x).flatten(1))


def network(name: str, num_classes: int = 10) -> nn.Module:
    """A student, or the teacher to train first, with fresh weights."""
    return Conv3(num_classes) if name == "conv3" else models.build(name, num_classes)
