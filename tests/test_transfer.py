"""Transferability between networks, the choice among them, and the command that makes it."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from torch import nn

import fastard
from fastard import cli, data, evaluate, models
from fastard.scores import weighted_robust_accuracy
from fastard.transfer import least_transferable, transferability

EPS = 0.2


def classifier(seed: int, splits: data.Splits, steps: int = 40) -> nn.Module:
    """A small network that knows some digits."""
    torch.manual_seed(seed)
    model = models.build("small_cnn-4", 10, image_size=8)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _, batch in zip(range(steps), splits.train.batches(128, shuffle=True), strict=False):
        loss = nn.functional.cross_entropy(model(batch.x), batch.y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def splits():
    return data.load("digits")


@pytest.fixture(scope="module")
def networks(splits):
    return [classifier(seed, splits) for seed in range(3)]


def test_matrix_is_the_definition_counted_by_hand(networks, splits):
    images = splits.train.first(60)
    found = transferability(networks, images, eps=EPS, batch_size=25, seed=4)
    x, y = images.float(), images.y
    noise = torch.Generator().manual_seed(4)
    x_adv = [torch.empty_like(x) for _ in networks]
    for rows in (slice(0, 25), slice(25, 50), slice(50, 60)):
        for i, model in enumerate(networks):
            x_adv[i][rows] = fastard.pgd_ce(
                model, x[rows], y[rows], EPS, EPS / 4, 10, generator=noise
            )
    right = [model(x).argmax(1) == y for model in networks]
    for i, j in itertools.permutations(range(3), 2):
        own, other = (networks[k](x_adv[i]).argmax(1) != y for k in (i, j))
        counted = right[i] & right[j] & own
        assert int(counted.sum()) > 10
        assert int(found.counted[i, j]) == int(counted.sum())
        assert float(found.matrix[i, j]) == pytest.approx(float(other[counted].double().mean()))
    assert found.matrix.diagonal().isnan().all()
    assert found.clean.tolist() == pytest.approx([float(r.double().mean()) for r in right])
    assert (found.robust < found.clean).all()


def test_a_copy_is_fooled_by_every_example_and_modes_are_kept(networks, splits):
    twin = classifier(0, splits, steps=0)
    twin.load_state_dict(networks[0].state_dict())
    twin.train()
    found = transferability([networks[0], twin], splits.train.first(40), eps=EPS)
    assert float(found.matrix[0, 1]) == float(found.matrix[1, 0]) == 1
    assert twin.training


def test_least_transferable_set():
    matrix = torch.tensor(
        [
            [float("nan"), 0.9, 0.2, 0.5],
            [0.8, float("nan"), 0.6, 0.1],
            [0.4, 0.5, float("nan"), 0.7],
            [0.5, 0.3, 0.9, float("nan")],
        ]
    )
    chosen, mean = least_transferable(matrix, 2)
    assert chosen == (1, 3)
    assert mean == pytest.approx(0.2)
    chosen, mean = least_transferable(matrix, 3)
    means = {
        members: sum(float(matrix[i, j]) for i, j in itertools.permutations(members, 2)) / 6
        for members in itertools.combinations(range(4), 3)
    }
    assert chosen == min(means, key=means.__getitem__)
    assert mean == pytest.approx(min(means.values()))
    matrix[1, 3] = float("nan")
    assert least_transferable(matrix, 2)[1] == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("matrix", "count", "sentence"),
    [
        (torch.zeros(2, 3), 2, "matrix must be square, but has shape"),
        (torch.zeros(3, 3), 4, "count must be from 2 to 3, the networks there, but is 4"),
        (torch.zeros(3, 3), 1, "count must be from 2 to 3"),
        (torch.full((2, 2), float("nan")), 2, "no attack fooled its network"),
    ],
)
def test_bad_matrix(matrix, count, sentence):
    with pytest.raises(ValueError, match=sentence):
        least_transferable(matrix, count)


@pytest.fixture(scope="module")
def checkpoints(networks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    for at, model in enumerate(networks):
        models.save(
            folder / f"{at}.safetensors", model, name="small_cnn-4", num_classes=10, image_size=8
        )
    torch.save(networks[2].state_dict(), folder / "foreign.pt")
    return folder


def test_command_prints_the_matrix_and_writes_the_choice(
    checkpoints, tmp_path, capsys, networks, splits
):
    out = tmp_path / "chosen.json"
    teachers = [str(checkpoints / f"{at}.safetensors") for at in range(3)]
    line = ["teachers", "select", "--data", "digits", "--n", "50", "--eps", str(EPS), "--k", "2"]
    for teacher in teachers:
        line += ["--teacher", teacher]
    assert cli.main([*line, "--out", str(out)]) == 0
    written = json.loads(out.read_text())
    found = transferability(networks, splits.train.first(50), eps=EPS)
    chosen, mean = least_transferable(found.matrix, 2)
    assert written["chosen"] == list(chosen)
    assert written["chosen_teachers"] == [teachers[at] for at in chosen]
    assert written["mean"] == pytest.approx(mean)
    assert written["transferability"][0][0] is None
    assert written["transferability"][0][1] == pytest.approx(float(found.matrix[0, 1]))
    assert len(written["sets"]) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["chosen.json"]
    printed = capsys.readouterr().out
    assert f"{100 * float(found.matrix[0, 1]):.2f}" in printed
    assert "chosen:" in printed


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--teacher {0}", "teacher (--teacher) must be given twice at least, but is 1 times"),
        ("--teacher {0} --teacher {1} --k 3", "k must be from 2 to 2, the teachers given, but"),
        ("--teacher {0} --teacher {1} --n 99999", "n must lie between 1 and 1297"),
        ("--teacher {0} --teacher {1} --eps -1", "eps must be at least 0 and finite, but is -1"),
        ("--teacher {0} --teacher nowhere.pt", "there is no checkpoint at nowhere.pt"),
        ("--teacher {0} --teacher {2}", "does not say its architecture"),
        ("--teacher {0} --teacher {1} --out .", "out (--out) must be a file to write, but . is"),
    ],
)
def test_bad_input_is_one_sentence(checkpoints, capsys, arguments, sentence):
    names = ("0.safetensors", "1.safetensors", "foreign.pt")
    line = arguments.format(*(checkpoints / name for name in names))
    assert cli.main(["teachers", "select", "--data", "digits", *line.split()]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert len(error.strip().splitlines()) == 1


def test_weighted_robust_accuracy():
    assert weighted_robust_accuracy(0.8, 0.4) == pytest.approx(0.6)
    assert weighted_robust_accuracy(0.8, 0.4, weight=0.25) == pytest.approx(0.7)
    for arguments in ((1.2, 0.4), (0.8, -0.1), (0.8, 0.4, 2.0)):
        with pytest.raises(ValueError, match="must lie between 0 and 1"):
            weighted_robust_accuracy(*arguments)


def test_evaluation_reports_it(networks, splits):
    result = evaluate.evaluate(networks[0], splits.test, eps=EPS, n=20)
    accuracy = result["accuracy"]
    assert result["weighted_robust_accuracy"] == pytest.approx(
        (accuracy["clean"] + accuracy["worst"]) / 2
    )
