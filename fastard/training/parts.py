"""What a run is made of: data, networks and method, built from its settings.

Each process trains on one device and builds everything for itself; `Ranks` joins several.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fastard import checks, data, methods, models
from fastard.methods.logit_cache import LogitCache
from fastard.methods.registry import METHODS
from fastard.training.config import Resolved


def load_data(config: Resolved) -> data.Splits:
    """The data on the run's device; raises ValueError for a label that is no class."""
    given: dict[str, Any] = {"original_share": config.original_share, "workers": config.workers}
    given = {name: value for name, value in given.items() if value is not None}
    splits = data.load(
        config.data,
        config.data_root,
        download=config.download,
        device=config.device,
        val=config.val,
        extra=config.extra,
        image_size=config.image_size,
        streamed=config.streamed,
        **given,
    )
    if config.train_n is not None:
        splits = replace(splits, train=splits.train.first(config.train_n))
    for part in ("train", "val", "test"):
        labels = getattr(getattr(splits, part), "y", None)
        if labels is not None:
            checks.labels_below(labels, splits.num_classes, f"the {part} labels of {config.data}")
    return splits


def build_student(config: Resolved, splits: data.Splits) -> nn.Module:
    """A fresh student, as the method wants it, on the run's device."""
    if config.mean is not None:
        for name in ("mean", "std"):
            checks.channel_values(getattr(config, name), splits.in_channels, name)

    def build(outputs: int) -> nn.Module:
        network = models.build(
            config.student,
            outputs,
            in_channels=splits.in_channels,
            image_size=splits.image_size,
        )
        if config.mean is None or config.std is None:
            return network
        return models.Normalized(network, config.mean, config.std)

    method = METHODS[methods.preset(config.method).method]
    student = method.make_student(build, splits.num_classes, len(config.teacher), config.options)
    return _placed(student, config)


def require_statistics(config: Resolved, student: nn.Module, splits: data.Splits) -> None:
    """Raises ValueError where a last batch of one image is too small for the student's BatchNorm.

    That is where the image has become a single value a channel.
    """
    if splits.train.last_batch(config.batch_size) > 1:
        return
    shape = (1, splits.in_channels, splits.image_size, splits.image_size)
    like = next(student.parameters())
    try:
        with torch.no_grad():
            copy.deepcopy(student).train()(like.new_zeros(shape))
    except ValueError as error:
        raise ValueError(
            f"batch_size must not leave a last batch of one image, of which {config.student} has "
            f"one value a channel to normalise, but is {config.batch_size}; another train_n or val "
            "helps as well."
        ) from error


def require_teachers(config: Resolved) -> None:
    """Raises ValueError for a number of teachers that the method does not take."""
    method = METHODS[methods.preset(config.method).method]
    if not config.teacher and method.least_teachers:
        raise ValueError(
            f"teacher (--teacher) must be given for method {config.method!r}: the checkpoint "
            "of the network to learn from."
        )
    method.require_teachers(len(config.teacher))
    names = len(config.teacher_model)
    if names not in (0, 1, len(config.teacher)):
        raise ValueError(
            f"teacher_model must be given once, or once for each of the {len(config.teacher)} "
            f"teachers, but is given {names} times."
        )


def load_teachers(config: Resolved, splits: data.Splits) -> list[nn.Module]:
    """The teachers' networks on the run's device.

    Raises ValueError for a teacher that does not fit the data, and FileNotFoundError where there is
        no such file.
    """
    names: Sequence[str | None] = config.teacher_model or (None,)
    if len(names) == 1:
        names = list(names) * len(config.teacher)
    return [
        _placed(_load_teacher(source, name, splits), config)
        for source, name in zip(config.teacher, names, strict=True)
    ]


def build_method(
    config: Resolved, student: nn.Module, teachers: Sequence[nn.Module], images: int
) -> methods.Method:
    """The method around its networks, with a cache for so many training images where one is asked.

    Raises ValueError for an option that is unknown or out of range, or a cache that it cannot use.
    """
    kind = METHODS[methods.preset(config.method).method]
    known = kind.option_names()
    attack = {name: getattr(config, name) for name in ("eps", "alpha", "steps", "norm")}
    attack["precision"] = config.precision
    attack = {name: value for name, value in attack.items() if name in known}
    built = methods.build(config.method, student, list(teachers), **attack | config.options)
    if config.teacher_cache is not None:
        size = int(config.teacher_cache * 2**30)
        if size <= (table := LogitCache.table_bytes(images)):
            raise ValueError(
                f"teacher_cache (--teacher-cache) must be above {table / 2**30:.2g} GiB, which the "
                f"table for {images} training images takes, but is {config.teacher_cache}."
            )
        built.cache = LogitCache(images, max_bytes=size, folder=config.teacher_cache_folder)
    return built.to(torch.device(config.device))


def _load_teacher(source: str, name: str | None, splits: data.Splits) -> nn.Module:
    try:
        return models.load_teacher(
            source,
            name=name,
            num_classes=splits.num_classes,
            in_channels=splits.in_channels,
            image_size=splits.image_size,
        )
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"teacher (--teacher) must be a checkpoint file, but there is none at {source}."
        ) from error


def _placed(network: nn.Module, config: Resolved) -> nn.Module:
    network = network.to(torch.device(config.device))
    if config.channels_last:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network
