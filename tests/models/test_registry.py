"""Names, defaults and refusals of `models.build`."""

from __future__ import annotations

import pytest
import torch

from fastard import models


def test_every_listed_name_builds() -> None:
    assert len(set(models.names())) == len(models.names()) >= 14
    for name in models.names():
        with torch.device("meta"):
            model = models.build(name, num_classes=3)
        assert list(model.state_dict().values())[-1].shape == (3,)


def test_families_take_any_member() -> None:
    with torch.device("meta"):
        wrn, cnn = models.build("wrn-22-3"), models.build("small_cnn-5")
    assert wrn.fc.in_features == 64 * 3
    assert len(wrn.block1.layer) == 3
    assert cnn.features[0][0].out_channels == 5
    assert cnn.state_dict().keys() == models.build("small_cnn", width=5).state_dict().keys()


def test_small_cnn_takes_one_channel_by_default_and_the_others_three() -> None:
    with torch.device("meta"):
        assert models.build("small_cnn").features[0][0].in_channels == 1
        assert models.build("resnet18").conv1.in_channels == 3


@pytest.mark.parametrize(
    ("size", "convolutions", "map_size"), [(4, 2, 4), (8, 3, 4), (28, 4, 7), (32, 5, 4)]
)
def test_image_size_sets_the_depth_of_small_cnn(
    size: int, convolutions: int, map_size: int
) -> None:
    model = models.build("small_cnn", image_size=size)
    assert len(model.features) == convolutions
    assert model.features(torch.rand(2, 1, size, size)).shape == (2, 64, map_size, map_size)
    assert model(torch.rand(2, 1, size, size)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("resnet19", "resnet18"), ("mobilenet_v2", "mobilenetv2"), ("WRN-34-10", "wrn-34-10")],
)
def test_unknown_name_lists_the_known_and_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ValueError, match="known: resnet18, resnet34.*wrn-D-K") as error:
        models.build(name)
    assert repr(name) in str(error.value)
    assert f"did you mean {nearest!r}?" in str(error.value)


def test_unknown_name_without_a_near_one() -> None:
    with pytest.raises(ValueError, match="unknown model 'zzzz'; known: ") as error:
        models.build("zzzz")
    assert "did you mean" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("wrn-35-10", {}, "depth of a Wide ResNet is 35 but must be 6n \\+ 4"),
        ("wrn-4-10", {}, "depth of a Wide ResNet is 4 "),
        ("wrn-34-0", {}, "widen_factor of a Wide ResNet is 0"),
        ("small_cnn-0", {}, "width of small_cnn is 0"),
        ("small_cnn", {"image_size": 3}, "image_size of small_cnn is 3"),
        ("resnet18", {"num_classes": 0}, "num_classes of resnet18 is 0"),
        ("resnet18", {"num_classes": 2.5}, "num_classes of resnet18 is 2.5"),
        ("resnet18", {"in_channels": -1}, "in_channels of resnet18 is -1"),
        ("cnn_a", {"image_size": 28}, "image_size of cnn_a is 28 but must be 32"),
    ],
)
def test_values_that_do_not_fit_are_refused(name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        models.build(name, **options)


def test_keywords_that_a_network_does_not_have_are_refused() -> None:
    with pytest.raises(TypeError, match="width"):
        models.build("resnet18", width=3)
    with pytest.raises(TypeError, match="width"):
        models.build("small_cnn-16", width=3)
