"""What a run takes from its recipe: averages, peaks, batch sizes and what follows from them."""

from __future__ import annotations

import pytest

from fastard.train import TrainConfig
from fastard.training.defaults import resolve


def resolved(method, **settings):
    return resolve(TrainConfig(method=method, **{"data": "cifar10", **settings}))


@pytest.mark.parametrize(
    ("method", "settings", "expected"),
    [
        ("akd2-kdswa", {}, ("swa", 56)),
        ("akd2-kdswa", {"epochs": 20}, ("swa", 7)),
        ("akd2-kdswa", {"epochs": 1}, ("swa", 1)),
        ("akd2-kdswa", {"average_start": 3}, ("swa", 3)),
        ("akd2-kdswa", {"average": "none"}, ("none", 1)),
        ("akd2-kdswa", {"average": "ema"}, ("ema", 1)),
        ("saad-official", {}, ("swa", 95)),
        ("saad-official", {"epochs": 20}, ("swa", 10)),
        ("saad-official", {"data": "digits"}, ("swa", 95)),
        ("saad", {}, ("none", 1)),
        ("saad", {"average": "swa"}, ("swa", 150)),
    ],
)
def test_averages_are_the_recipes_and_scale_with_the_epochs(method, settings, expected):
    config = resolved(method, **settings)
    assert (config.average, config.average_start) == expected


@pytest.mark.parametrize(
    ("method", "settings", "expected"),
    [
        ("hat", {}, ("onecycle", 0.25)),
        ("fgsm-rs", {}, ("cyclic", 0.5)),
        ("n-fgsm", {"peak": 0.4}, ("cyclic", 0.4)),
        ("hat", {"schedule": "cyclic"}, ("cyclic", None)),
        ("hat", {"milestones": (30,)}, ("multistep", None)),
        ("hat", {"data": "digits"}, ("cosine", None)),
        ("trades", {"schedule": "onecycle"}, ("onecycle", None)),
    ],
)
def test_a_recipes_peak_belongs_to_its_schedule(method, settings, expected):
    config = resolved(method, **settings)
    assert (config.schedule, config.peak) == expected


def test_a_recipe_may_differ_by_data_set():
    assert resolved("ard-official", data="cifar100").batch_size == 256
    assert resolved("ard-official").batch_size == 128
    assert resolved("ard-official", data="cifar100", batch_size=64).batch_size == 64
    assert resolved("ard", data="cifar100").batch_size == 128


def test_the_nominal_batch_is_the_runs_own():
    assert resolved("dgad-official").options["nominal_batch"] == 128
    assert resolved("dgad-official", batch_size=64).options["nominal_batch"] == 64
    assert "nominal_batch" not in resolved("dgad", batch_size=64).options
    sentence = "option nominal_batch must be the batch_size, 64, but is 128"
    with pytest.raises(ValueError, match=sentence):
        resolved("dgad", batch_size=64, options={"nominal_batch": 128})
