"""A run on top of another method takes what that method's recipe changes on the data set."""

from __future__ import annotations

import pytest

from fastard import data, models
from fastard.training import parts
from fastard.training.config import TrainConfig
from fastard.training.config_file import to_dict
from fastard.training.defaults import resolve


def settings(method: str, name: str, **options):
    return TrainConfig(
        method=method, data=name, options=options, student="small_cnn-4", device="cpu"
    )


def built(method: str, name: str, teachers: int = 1, **options):
    config = settings(method, name, **options)
    networks = [models.build("small_cnn-4", 10, image_size=8).eval() for _ in range(teachers)]
    student = models.build("small_cnn-4", 10, image_size=8)
    return parts.build_method(resolve(config), student, networks, images=8)


@pytest.mark.parametrize(
    ("base", "teachers", "option", "value", "otherwise"),
    [
        ("rslad", 1, "scale", 10.0, 1.0),
        ("mtard", 2, "scale", 10.0, 1.0),
        ("adaad", 1, "reduction", "batchmean", "mean"),
    ],
)
def test_base_has_the_recipe_of_the_data_set(base, teachers, option, value, otherwise):
    for name, expected in (("cifar100", value), ("cifar10", otherwise)):
        method = built("igdm", name, teachers, base=base)
        assert getattr(method.base.options, option) == expected
        written = to_dict(resolve(settings("igdm", name, base=base)))["options"]
        assert written.get(option, otherwise) == expected
    assert method.base.options.eps == 8 / 255


def test_preset_and_user_say_more_than_the_base():
    assert built("igdm", "cifar100", base="rslad", scale=3.0).base.options.scale == 3
    published = built("igdm-rslad", "cifar100")
    assert (published.base.options.reduction, published.base.options.scale) == ("mean", 10.0)
    assert published.options.igdm_weight == 3
    # The recipe's own weight, not the one that SAAD has on this data set.
    assert built("igdm", "cifar100", base="saad").options.igdm_weight == 15


def test_run_on_a_base_without_a_teacher():
    method = built("igdm", "cifar100", base="pgd-at", igdm_weight=100.0)
    assert method.base.name == "pgd-at"
    assert (len(method.teachers), len(method.base.teachers)) == (1, 0)


def test_student_of_the_base_is_made_with_its_options():
    config = resolve(
        TrainConfig(
            method="igdm",
            data="digits",
            teacher=("a", "b"),
            student="small_cnn-4",
            device="cpu",
            options={"base": "darht", "dropout": 0.25, "mc_train_samples": 2},
        )
    )
    student = parts.build_student(config, data.load("digits", val=0))
    assert (student.teachers, student.dropout, student.mc_train_samples) == (2, 0.25, 2)
