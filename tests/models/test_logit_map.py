"""The student with a row of logits for each teacher: shapes, dropout, checkpoints."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

import fastard
from fastard import models
from fastard.models import LogitMap, Normalized


def small(outputs: int) -> nn.Module:
    torch.manual_seed(0)
    return models.build("small_cnn-4", outputs, image_size=8)


def test_prediction_is_the_mean_of_the_rows_probabilities():
    student = LogitMap(small(12), teachers=3, num_classes=4).eval()
    x = torch.rand(5, 1, 8, 8)
    rows = student.map(x)
    assert rows.shape == (5, 3, 4)
    assert torch.equal(student(x, rows=True), rows)
    expected = rows.softmax(2).mean(1)
    torch.testing.assert_close(student(x).exp(), expected)
    torch.testing.assert_close(student(x).exp().sum(1), torch.ones(5))
    averaged = LogitMap(small(12), 3, 4, combine="logits").eval()
    torch.testing.assert_close(averaged(x), rows.mean(1))
    layer = LogitMap(small(12), 3, 4, combine="layer").eval()
    torch.testing.assert_close(layer(x), rows.mean(1))
    layer.row_weights.data = torch.tensor([0.5, 0.0, 2.0])
    torch.testing.assert_close(layer(x), 0.5 * rows[:, 0] + 2 * rows[:, 2])


def test_map_is_the_backbones_own_output():
    backbone = small(12)
    x = torch.rand(5, 1, 8, 8)
    expected = backbone.eval()(x)
    student = LogitMap(backbone, 3, 4).eval()
    assert torch.equal(student.map(x).flatten(1), expected)


def test_dropout_acts_in_training_and_monte_carlo_draws_also_in_eval_mode():
    x = torch.rand(5, 1, 8, 8)
    plain = LogitMap(small(12), 3, 4, dropout=0.5).eval()
    assert torch.equal(plain(x), plain(x))
    assert not torch.equal(plain.train()(x), plain(x))
    sampled = LogitMap(small(12), 3, 4, dropout=0.5, mc_samples=4).eval()
    torch.manual_seed(1)
    first = sampled(x)
    assert not torch.equal(first, sampled(x))
    torch.manual_seed(1)
    rows = sampled.map(x)
    assert rows.shape == (20, 3, 4)
    expected = rows.softmax(2).view(4, 5, 3, 4).mean((0, 2))
    torch.testing.assert_close(first.exp(), expected)
    assert sampled.train().map(x).shape == (5, 3, 4)


@pytest.mark.parametrize("combine", ["probabilities", "layer"])
def test_draws_of_train_mode(combine):
    x = torch.rand(5, 1, 8, 8)
    student = LogitMap(small(12), 3, 4, 0.5, combine=combine, mc_train_samples=2).train()
    torch.manual_seed(1)
    prediction = student(x)
    torch.manual_seed(1)
    rows = student.map(x).view(2, 5, 3, 4)
    expected = rows.softmax(3).mean((0, 2)).log()
    if combine == "layer":
        expected = rows.mean((0, 2))
    torch.testing.assert_close(prediction, expected)
    assert student.eval().map(x).shape == (5, 3, 4)


def test_many_draws_approach_the_mean():
    x = torch.rand(2, 1, 8, 8)
    many = [LogitMap(small(8), 2, 4, dropout=0.3, mc_samples=n).eval() for n in (2, 2000)]
    spread = [torch.stack([m(x) for _ in range(4)]).std(0).mean() for m in many]
    assert spread[1] < spread[0] / 8


def test_transformer_backbone():
    vit = timm.models.VisionTransformer(
        img_size=8, patch_size=4, in_chans=1, embed_dim=16, depth=1, num_heads=2, num_classes=8
    )
    student = LogitMap(vit, 2, 4).eval()
    assert student.head.in_features == 16
    assert student(torch.rand(3, 1, 8, 8)).shape == (3, 4)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((nn.Flatten(), 2, 4), "backbone must end in an nn.Linear of .* = 8 outputs, but has none"),
        ((small(12), 2, 4), "= 8 outputs, but ends in one of 12"),
        ((small(8), 2, 4, 1.0), "dropout must be at least 0 and below 1, but is 1.0"),
        ((small(8), 2, 4, 0.0, -1), "mc_samples must be at least 0, but is -1"),
        ((small(8), 2, 4, 0.0, 0, "max"), "combine must be one of probabilities, logits, layer"),
        ((small(8), 2, 4, 0.0, 0, "logits", 0), "mc_train_samples must be at least 1, but is 0"),
    ],
)
def test_bad_input_is_one_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        LogitMap(*arguments)


@pytest.mark.parametrize("wrap", ["none", "backbone", "outside"])
def test_checkpoint_keeps_the_rows(tmp_path, wrap):
    backbone = small(8)
    if wrap == "backbone":
        backbone = Normalized(backbone, [0.3], [0.2])
    student: nn.Module = LogitMap(backbone, 2, 4, dropout=0.25, mc_samples=3).eval()
    if wrap == "outside":
        student = Normalized(student, [0.3], [0.2]).eval()
    path = tmp_path / "student.safetensors"
    models.save(path, student, name="small_cnn-4", num_classes=4, image_size=8)
    loaded, meta = models.load_checkpoint(path)
    assert isinstance(loaded, LogitMap)
    assert meta["num_classes"] == 4
    assert meta["logit_map"] == {
        "teachers": 2,
        "dropout": 0.25,
        "mc_samples": 3,
        "combine": "probabilities",
        "mc_train_samples": 1,
    }
    assert (meta["mean"] is None) == (wrap == "none")
    x = torch.rand(3, 1, 8, 8)
    answers = []
    for model in (student, loaded):
        torch.manual_seed(0)
        answers.append(model(x))
    torch.testing.assert_close(*answers)
    models.save(path, loaded, name="small_cnn-4", num_classes=4, image_size=8)


def test_checkpoint_keeps_the_layer_over_the_rows(tmp_path):
    student = LogitMap(small(8), 2, 4, dropout=0.2, combine="layer", mc_train_samples=3).eval()
    student.row_weights.data = torch.tensor([0.25, 1.5])
    path = tmp_path / "student.safetensors"
    models.save(path, student, name="small_cnn-4", num_classes=4, image_size=8)
    loaded, _ = models.load_checkpoint(path)
    assert (loaded.combine, loaded.mc_train_samples) == ("layer", 3)
    assert torch.equal(loaded.row_weights, student.row_weights)
    x = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(loaded(x), student(x))


def test_a_plain_network_is_stored_as_before(tmp_path):
    path = tmp_path / "plain.safetensors"
    models.save(path, small(4), name="small_cnn-4", num_classes=4, image_size=8)
    loaded, meta = models.load_checkpoint(path)
    assert not isinstance(loaded, LogitMap)
    assert "logit_map" not in meta


@pytest.mark.parametrize("combine", ["probabilities", "layer"])
def test_attack_on_the_prediction_equals_the_published_loop(combine):
    student = LogitMap(small(8), 2, 4, combine=combine).eval()
    x, y = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])
    found = [
        fastard.pgd_ce(student, x, y, 0.1, 0.03, 4, random_start=False, engine=engine)
        for engine in (True, False)
    ]
    torch.testing.assert_close(*found)
    assert not torch.equal(found[0], x)
