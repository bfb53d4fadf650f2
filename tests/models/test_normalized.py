"""`models.Normalized`."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fastard import models

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)


def test_it_subtracts_the_mean_and_divides_by_the_std_of_each_channel() -> None:
    model = models.Normalized(nn.Identity(), MEAN, STD)
    x = torch.rand(2, 3, 4, 4)
    for channel in range(3):
        expected = (x[:, channel] - MEAN[channel]) / STD[channel]
        torch.testing.assert_close(model(x)[:, channel], expected, rtol=1e-6, atol=1e-6)


def test_mean_and_std_follow_the_module_but_are_not_in_its_state() -> None:
    inner = models.build("small_cnn", image_size=8)
    model = models.Normalized(inner, [0.3], torch.tensor([0.2]))
    assert list(model.state_dict()) == [f"model.{key}" for key in inner.state_dict()]
    assert [name for name, _ in model.named_parameters() if "model." not in name] == []
    double = copy.deepcopy(model).double().eval()
    assert double(torch.rand(1, 1, 8, 8, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((0.5,), (0.1, 0.2), "mean has 1 values and std 2"),
        ((0.5, 0.5), (0.1, 0.0), "std is .* but must be positive"),
        ((0.5,), (-1.0,), "must be positive"),
        ((float("nan"),), (1.0,), "mean is .* but must be finite"),
        ((0.5,), (float("inf"),), "std is .* but must be finite"),
    ],
)
def test_values_that_cannot_be_are_refused(mean: tuple, std: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        models.Normalized(nn.Identity(), mean, std)
