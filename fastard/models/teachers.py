"""Teachers from wherever they are: our files, other code's, torchvision, timm, RobustBench."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastard.kinds import unknown
from fastard.models.checkpoint import assign, load_checkpoint, require_fit
from fastard.models.normalized import Normalized
from fastard.models.state_files import describes_itself, load_state

ROBUSTBENCH_DATA = {10: "cifar10", 100: "cifar100", 1000: "imagenet"}


@dataclass(frozen=True)
class Wanted:
    """What a teacher must fit, and where its weights come from."""

    spec: str
    name: str
    file: str | None
    num_classes: int
    in_channels: int
    image_size: int
    mean: Sequence[float] | None
    std: Sequence[float] | None
    kwargs: dict[str, Any]


def load_teacher(
    spec: str | os.PathLike[str],
    *,
    name: str | None = None,
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: int = 32,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    device: str | torch.device = "cpu",
    **kwargs: Any,
) -> nn.Module:
    """Load a network that takes images in [0, 1] and answers `num_classes` logits, in eval mode.

    `spec` is one of

    - `FILE`: a checkpoint of `save`, or any state_dict of the architecture `name`;
    - `NAME@FILE`: the same, with the architecture in one string (`wrn-34-10@model_cifar_wrn.pt`);
    - `torchvision:NAME` or `timm:NAME`: the library's network with its pretrained weights and their
      normaliser, or `torchvision:NAME@FILE`, `timm:NAME@FILE` with weights from a file;
    - `robustbench:NAME` or `robustbench:THREAT/NAME` (threat "Linf" where not given): a model of
      the package `robustbench`, for CIFAR-10, CIFAR-100 or ImageNet after `num_classes`, which it
      downloads into ./models and which normalises inside.

    `mean` and `std` are a normaliser to put in front; without them that of the pretrained weights,
    of the file, or, for foreign files of our own architectures, of the published weights
    (`load_checkpoint`). `kwargs` go to the network's constructor. RSLAD's teachers are
    `wrn-34-10@model_cifar_wrn.pt` (TRADES) for CIFAR-10 and
    `deepmind-wrn-70-16@cifar100_linf_wrn70-16_without.pt` for CIFAR-100, before which its script
    puts CIFAR-10's mean and std, where DeepMind's own code has those of CIFAR-100 (the default
    here).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the name is unknown, the file is damaged or does not fit, the weights cannot be
            fetched, a package is not installed, or the network does not answer `num_classes`
            logits to images [in_channels, image_size, image_size].
    """
    text = os.fspath(spec)
    kind, colon, rest = text.partition(":")
    if colon and kind not in LOADERS and not Path(text).exists() and kind.isidentifier():
        raise unknown("kind of teacher", kind, [*LOADERS, "a file", "NAME@FILE"])
    if (mean is None) != (std is None):
        raise ValueError(f"mean is {mean} and std is {std} but they must be given together")
    load: Callable[[Wanted], nn.Module] = _own
    if colon and kind in LOADERS:
        load = LOADERS[kind]
    else:
        rest = text
    architecture, at, file = rest.partition("@")
    if load is _own and (Path(rest).exists() or not at):
        architecture, file = name or "", rest
    wanted = Wanted(
        text,
        architecture,
        file or None,
        num_classes,
        in_channels,
        image_size,
        mean,
        std,
        kwargs,
    )
    model = load(wanted).to(device).eval()
    _require_answers(model, wanted, device)
    return model


def _own(wanted: Wanted) -> nn.Module:
    file = str(wanted.file)
    fits: dict[str, Any] = {}
    if not describes_itself(file):
        fits = {"num_classes": wanted.num_classes, "in_channels": wanted.in_channels}
        fits["image_size"] = wanted.image_size
    return load_checkpoint(
        file, name=wanted.name or None, mean=wanted.mean, std=wanted.std, **fits, **wanted.kwargs
    )[0]


def _torchvision(wanted: Wanted) -> nn.Module:
    from torchvision import models as zoo

    # Of the classification networks: those for detection and segmentation answer no logits.
    known = zoo.list_models(module=zoo)
    if wanted.name not in known:
        raise unknown("torchvision model", wanted.name, known)
    if wanted.file is not None:
        return _from_file(
            wanted,
            lambda: zoo.get_model(
                wanted.name, weights=None, num_classes=wanted.num_classes, **wanted.kwargs
            ),
        )
    weights = zoo.get_model_weights(wanted.name).DEFAULT
    model = _fetched(wanted, lambda: zoo.get_model(wanted.name, weights=weights, **wanted.kwargs))
    preprocessing = weights.transforms()
    return _normalised(model, wanted, preprocessing.mean, preprocessing.std)


def _timm(wanted: Wanted) -> nn.Module:
    timm = _require("timm", wanted)
    if not timm.is_model(wanted.name):
        raise unknown("timm model", wanted.name, timm.list_models())
    kwargs = {"in_chans": wanted.in_channels, **wanted.kwargs}
    published = timm.get_pretrained_cfg(wanted.name)
    if published is not None and published.fixed_input_size:
        # Such networks (ViT) are built for one size; the others take any and know no such argument.
        kwargs.setdefault("img_size", wanted.image_size)
    if wanted.file is not None:
        kwargs["num_classes"] = wanted.num_classes
        return _from_file(wanted, lambda: timm.create_model(wanted.name, **kwargs))
    # Told a number of classes, timm would put a new random head on pretrained weights.
    model = _fetched(wanted, lambda: timm.create_model(wanted.name, pretrained=True, **kwargs))
    found: Any = model.pretrained_cfg
    return _normalised(model, wanted, found["mean"], found["std"])


def _robustbench(wanted: Wanted) -> nn.Module:
    _require("robustbench", wanted)
    from robustbench.utils import load_model

    threat, slash, name = wanted.name.rpartition("/")
    if wanted.num_classes not in ROBUSTBENCH_DATA:
        raise ValueError(
            f"num_classes is {wanted.num_classes} but must be 10, 100 or 1000 for {wanted.spec}: "
            "RobustBench has models of CIFAR-10, CIFAR-100 and ImageNet"
        )
    data = ROBUSTBENCH_DATA[wanted.num_classes]
    threat = threat if slash else "Linf"
    try:
        model = load_model(model_name=name, dataset=data, threat_model=threat)
    except KeyError as error:
        raise ValueError(
            f"{wanted.spec} is unknown: RobustBench has no model {name!r} for {data} and {threat}"
        ) from error
    except Exception as error:
        raise _unusable(wanted, error) from error
    return _normalised(model, wanted, None, None)


LOADERS: dict[str, Callable[[Wanted], nn.Module]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "robustbench": _robustbench,
}


def _require(package: str, wanted: Wanted) -> Any:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{wanted.spec} needs the package {package}, which is not installed: pip install "
            f"{package}"
        ) from error


def _fetched(wanted: Wanted, make: Callable[[], nn.Module]) -> nn.Module:
    try:
        return make()
    # Whatever network, hub and cache can raise.
    except Exception as error:
        raise _unusable(wanted, error) from error


def _unusable(wanted: Wanted, error: Exception) -> ValueError:
    reason = str(error).strip().split("\n")[0] or type(error).__name__
    return ValueError(f"the weights of {wanted.spec} could not be fetched or read: {reason}")


def _from_file(wanted: Wanted, make: Callable[[], nn.Module]) -> nn.Module:
    state, stored = load_state(str(wanted.file))
    # The numbers that initialise what the file replaces are not the caller's.
    with torch.random.fork_rng(devices=[]):
        model = make()
    meta = {"architecture": wanted.name, "num_classes": wanted.num_classes}
    require_fit(state, model, meta, source=str(wanted.file))
    assign(model, state)
    return _normalised(model, wanted, stored.get("mean"), stored.get("std"))


def _normalised(
    model: nn.Module,
    wanted: Wanted,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> nn.Module:
    if wanted.mean is not None:
        mean, std = wanted.mean, wanted.std
    return model if mean is None or std is None else Normalized(model, mean, std)


def _require_answers(model: nn.Module, wanted: Wanted, device: str | torch.device) -> None:
    shape = [wanted.in_channels, wanted.image_size, wanted.image_size]
    x = torch.zeros(2, *shape, device=device)
    try:
        with torch.no_grad():
            logits = model(x)
    # Each layer has its own complaint.
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"the teacher {wanted.spec} does not take images {shape}: {reason}"
        ) from error
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        found = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"the teacher {wanted.spec} answers {found} but must answer logits "
            f"[2, {wanted.num_classes}]"
        )
    if logits.shape[1] != wanted.num_classes:
        raise ValueError(
            f"the teacher {wanted.spec} has num_classes={logits.shape[1]}, but the data needs "
            f"{wanted.num_classes}"
        )
