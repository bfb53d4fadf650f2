"""The settings of a training run, as the command line and YAML files give them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import UseAppendAction

Schedule = Literal["multistep", "cosine", "constant", "onecycle", "cyclic"]
Selects = Literal["held-out", "test-selected", "last"]
Average = Literal["none", "ema", "swa"]
Sgd = Literal["auto", "foreach", "fused", "loop"]
Parallel = Literal["ddp", "fsdp"]


@dataclass(kw_only=True)
class TrainConfig:
    """Train a network; a value left out comes from the method's recipe or from the data set."""

    config: Path | None = None
    """YAML file of settings, such as a run's config.yaml; what is given beside it wins."""
    method: str | None = None
    """A method (such as natural, pgd-at, trades, rslad, adaad, darht) or a preset (such as
    rslad-official, trades-official, madry); docs/methods.md has them all."""
    data: str | None = None
    """digits (bundled; the default), mnist, cifar10, cifar100, svhn, tiny-imagenet or imagenet."""
    data_root: Path | None = None
    """Folder that holds the data set, as torchvision lays it out."""
    download: bool = False
    """Download the data set into data_root when it is not there."""
    extra: Path | None = None
    """Synthetic images (.npz) that fill up every batch."""
    original_share: float | None = None
    """Share of original images in a batch with synthetic ones; 0.3 when left out."""
    image_size: int | None = None
    """Size at which ImageNet is trained; 224 when left out."""
    workers: int | None = None
    """Processes that decode images from files; 4 when left out."""
    streamed: bool = False
    """Leave Tiny-ImageNet in its files."""
    student: str | None = None
    """Architecture of the student, such as resnet18, mobilenetv2, wrn-34-10 or small_cnn."""
    teacher: Annotated[tuple[str, ...], UseAppendAction] = ()
    """Checkpoint of the teacher, ARCHITECTURE@FILE, or torchvision:NAME, timm:NAME or
    robustbench:NAME; once for each where the method takes several."""
    teacher_model: Annotated[tuple[str, ...], UseAppendAction] = ()
    """Architecture of a teacher checkpoint that does not name its own; one for all or one each."""
    teacher_cache: float | None = None
    """GiB for the teachers' logits of clean images, where a method's teachers see no others."""
    teacher_cache_folder: Path | None = None
    """Folder for that cache; in memory when left out."""
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    """Learning rate; the highest one of a schedule that rises and falls."""
    schedule: Schedule | None = None
    milestones: tuple[int, ...] | None = None
    """Epochs after which the learning rate falls; they scale with epochs when left out."""
    lr_gamma: float | None = None
    """What the multistep schedule multiplies the learning rate by; 0.1 when left out."""
    peak: float | None = None
    """Share of the steps after which onecycle and cyclic reach lr; when left out the recipe's, or
    0.3 and 0.5."""
    weight_decay: float | None = None
    no_decay_norm_bias: bool = False
    """No weight decay on parameters of one dimension: biases and normalisations."""
    momentum: float | None = None
    nesterov: bool | None = None
    sgd: Sgd | None = None
    """Implementation of the optimiser; auto is fused on CUDA and torch's choice elsewhere."""
    clip_grad: float | None = None
    """Largest 2-norm of the whole gradient."""
    average: Average | None = None
    """Validate and save averaged weights: ema every step, swa every epoch."""
    average_start: int | None = None
    """First epoch that enters the average; when left out the recipe's, scaled with epochs, or 1 for
    ema and 3/4 of the epochs for swa."""
    ema_decay: float | None = None
    """Of average ema; 0.999 when left out."""
    awp_gamma: float | None = None
    """Radius of adversarial weight perturbation, relative to each layer's norm; 0 is none."""
    awp_warmup: int | None = None
    """Epochs before the weights are perturbed."""
    eps: float | None = None
    """Radius of the attack, in training and validation."""
    alpha: float | None = None
    """Step size of the training attack; eps / 4 when left out."""
    steps: int | None = None
    """Steps of the training attack."""
    norm: str | None = None
    """Linf, L2 or L1."""
    options: dict[str, bool | int | float | str] = field(default_factory=dict)
    """Further options of the method: NAME VALUE NAME VALUE ..."""
    mean: tuple[float, ...] | None = None
    """Per-channel mean that the student subtracts from its input."""
    std: tuple[float, ...] | None = None
    """Per-channel standard deviation that the student divides its input by."""
    train_n: int | None = None
    """Train on the first so many images only, to try things out."""
    val: int | None = None
    """Size of the held-out part of the training set on which the best epoch is chosen."""
    selection: Selects | None = None
    """How best.safetensors is chosen; test-selected is for comparison with published code only."""
    val_steps: int | None = None
    """Steps of the PGD that validates."""
    val_alpha: float | None = None
    """Its step size; eps / 4 when left out."""
    eval_every: int | None = None
    """Validate every so many epochs, and after the last."""
    eval_from: int | None = None
    """Validate in every epoch from this one on."""
    patience: int | None = None
    """Stop after so many validations without a better one."""
    seed: int | None = None
    """0 when left out."""
    out: Path | None = None
    """Folder of the run; runs/METHOD-DATA-STUDENT when left out."""
    resume: bool = False
    """Continue the run in --out from its last saved state."""
    allow_changes: bool = False
    """Let a resumed run continue with other settings than it was started with."""
    save_every_steps: int | None = None
    """Save the state of an unfinished epoch every so many steps."""
    save_every_minutes: float = 10.0
    """Save the state of an unfinished epoch every so many minutes; 0 is never."""
    no_tensorboard: bool = False
    """Write no TensorBoard files."""
    device: str = "auto"
    precision: Literal["fp32", "tf32", "bf16", "fp16"] | None = None
    """Of attack and training passes; left out: as torch is set. Validation always runs in fp32."""
    channels_last: bool = False
    """Keep networks and images in channels_last."""
    compile: bool = False
    """Run the student's training passes through torch.compile."""
    parallel: Parallel | None = None
    """How several processes hold the student: ddp, the default, whole in each; fsdp, its weights,
    gradients and momentum divided between them, with a whole copy to attack."""
    threads: int | None = None
    """CPU threads."""
    dry_run: bool = False
    """Set everything up, run one batch, write nothing."""

    def __post_init__(self) -> None:
        for name in ("config", "data_root", "extra", "teacher_cache_folder", "out"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else Path(value))
        self.teacher = _names(self.teacher)
        self.teacher_model = _names(self.teacher_model)


@dataclass(kw_only=True)
class Resolved(TrainConfig):
    """A config whose every value is known."""

    method: str
    data: str
    student: str
    epochs: int
    batch_size: int
    lr: float
    schedule: Schedule
    milestones: tuple[int, ...]
    lr_gamma: float = 0.1
    weight_decay: float
    momentum: float
    nesterov: bool
    sgd: Sgd = "auto"
    average: Average = "none"
    average_start: int = 1
    awp_gamma: float = 0.0
    awp_warmup: int = 0
    eps: float
    alpha: float
    steps: int
    norm: str
    val: int
    selection: Selects
    val_steps: int
    val_alpha: float
    eval_every: int
    seed: int
    parallel: Parallel = "ddp"
    out: Path


def _names(value: Any) -> tuple[str, ...]:
    """One name or path, or several, as a tuple of names; None is none."""
    if value is None:
        return ()
    if isinstance(value, (str, os.PathLike)):
        return (os.fspath(value),)
    return tuple(os.fspath(one) for one in value)
