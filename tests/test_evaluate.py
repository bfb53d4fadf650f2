"""The evaluation suite: its attacks by hand, its verdicts, and its refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastard import data, models
from fastard.attacks.draws import CounterDraws
from fastard.evaluate import EvaluateConfig, evaluate, evaluate_checkpoint
from fastard.evaluation.attacks import REFERENCE_EPS
from fastard.evaluation.judge import judge
from fastard.evaluation.results import protocol, table
from fastard.evaluation.suites import SUITES
from fastard.progress import QUIET

KEYS = ["clean", "fgsm", "pgd_sat", "pgd_trades", "cw_inf", "worst"]


@pytest.fixture(scope="module")
def images() -> data.Images:
    return data.load("digits").test.first(40)


@pytest.fixture(scope="module")
def model(images) -> nn.Module:
    """A linear classifier after a few steps: quick, and wrong on some images."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Dropout(0.5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(model[:2](images.float()), images.y).backward()
        optimizer.step()
    return model


def test_step_sizes_are_the_named_ones_at_8_255_and_follow_eps():
    suite = {attack.key: attack for attack in SUITES["basic"]}
    at = {key: attack.at(REFERENCE_EPS) for key, attack in suite.items()}
    assert [at[key].alpha for key in KEYS[1:5]] == [8 / 255, 2 / 255, 0.003, 2 / 255]
    assert [at[key].steps for key in KEYS[1:5]] == [1, 20, 20, 30]
    assert (at["cw_inf"].loss, at["cw_inf"].kappa) == ("margin", 50.0)
    assert at["fgsm"].random_start is False
    wider = {key: attack.at(0.15).alpha for key, attack in suite.items()}
    assert wider["fgsm"] == pytest.approx(0.15)
    assert wider["pgd_sat"] == pytest.approx(0.15 / 4)
    assert wider["pgd_trades"] == pytest.approx(0.003 * 0.15 * 255 / 8)


def by_hand(model, x, y, attack, eps):
    model.eval()
    x_adv = x
    if attack.random_start:
        noise = CounterDraws(0, "pgd").rand(torch.arange(len(x)), x.shape[1:])
        x_adv = (x + (noise * 2 * eps - eps)).clamp(0, 1)
    for _ in range(attack.steps):
        x_adv = x_adv.detach().requires_grad_()
        logits = model(x_adv)
        if attack.loss == "ce":
            loss = F.cross_entropy(logits, y, reduction="sum")
        else:
            own = logits.gather(1, y[:, None])[:, 0]
            other = logits.scatter(1, y[:, None], -torch.inf).amax(1)
            loss = -(own - other + attack.kappa).clamp(min=0).sum()
        gradient = torch.autograd.grad(loss, x_adv)[0]
        x_adv = x_adv.detach() + attack.alpha * gradient.sign()
        x_adv = torch.min(torch.max(x_adv, x - eps), x + eps).clamp(0, 1)
    return model(x_adv).argmax(1) == y


def test_every_verdict_equals_the_attack_written_by_hand(model, images):
    eps = 0.2
    result = evaluate(model, images, eps=eps)
    x, y = images.float(), images.y
    model.eval()
    survived = {"clean": model(x).argmax(1) == y}
    for attack in SUITES["basic"]:
        survived[attack.key] = by_hand(model, x, y, attack.at(eps), eps)
    survived["worst"] = torch.stack(list(survived.values())).all(0)
    assert list(result["verdicts"]) == KEYS
    for key in KEYS:
        assert result["verdicts"][key] == survived[key].int().tolist(), key
        assert result["accuracy"][key] == int(survived[key].sum()) / 40
    assert 0 < result["accuracy"]["worst"] < result["accuracy"]["clean"]


def test_model_keeps_its_modes_and_gradients(model, images):
    model.train()
    model[0].eval()
    evaluate(model, images, n=3)
    assert [module.training for module in model] == [False, True, True]
    assert all(p.requires_grad for p in model.parameters())


def test_n_takes_the_first_images_in_order(model, images):
    whole, part = evaluate(model, images, eps=0.05), evaluate(model, images, eps=0.05, n=7)
    assert part["n"] == 7
    assert part["verdicts"]["clean"] == whole["verdicts"]["clean"][:7]
    assert part["verdicts"]["fgsm"] == whole["verdicts"]["fgsm"][:7]


def test_runs_repeat_and_the_seed_matters(model, images):
    first, again = (evaluate(model, images, eps=0.05, seed=1) for _ in range(2))
    assert first["verdicts"] == again["verdicts"]


def test_without_a_radius_no_attack_succeeds(model, images):
    result = evaluate(model, images, eps=0.0)
    assert set(result["accuracy"].values()) == {result["accuracy"]["clean"]}


class BrokenOnBright(nn.Module):
    """NaN logits for images whose first pixel is bright, +inf logits for the second pixel."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.inner(x)
        logits = torch.where(x[:, :, 0, 0] > 0.9, torch.nan, logits)
        return torch.where(x[:, :, 0, 1] > 0.9, torch.inf, logits)


def test_nan_and_inf_logits_count_as_broken_and_are_reported(model, images):
    x = images.x.clone()
    x[:, 0, 0, :2] = 0
    x[3, 0, 0, 0] = x[5, 0, 0, 1] = 255
    spoiled = data.Images(x, images.y)
    result = evaluate(BrokenOnBright(model), spoiled, eps=0.05, batch_size=16)
    for key in KEYS:
        assert result["verdicts"][key][3] == result["verdicts"][key][5] == 0
    assert set(result["broken_logits"].values()) == {2}
    untouched = evaluate(model, spoiled, eps=0.05, batch_size=16)
    others = [i for i in range(40) if i not in (3, 5)]
    for key in ("clean", "fgsm"):
        ours, expected = result["verdicts"][key], untouched["verdicts"][key]
        assert [ours[i] for i in others] == [expected[i] for i in others]
    text = protocol({**result, "checkpoint": "c", "selection": "s"})
    assert "NaN or +inf logits counted as broken: 2 under clean" in text


def test_verdict_is_fp32_under_autocast(model, images):
    expected = judge(model, images).survived
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(judge(model, images).survived, expected)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"suite": "basics"}, r"unknown suite 'basics' \(did you mean 'basic'\?\)"),
        ({"n": 0}, "n must lie between 1 and 40, the images there, but is 0"),
        ({"n": 41}, "n must lie between 1 and 40"),
        ({"eps": -1}, "eps must be at least 0 and finite, but is -1"),
        ({"norm": "L7"}, "unknown norm 'L7'"),
        ({"batch_size": 0}, "batch_size must be at least 1, but is 0"),
    ],
)
def test_bad_input_is_one_sentence(model, images, arguments, sentence):
    with pytest.raises(ValueError, match=sentence) as raised:
        evaluate(model, images, **arguments)
    assert "\n" not in str(raised.value)


class Tuple(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.flatten(1), x


def test_model_that_does_not_return_logits_is_one_sentence(images):
    with pytest.raises(TypeError, match="must return a tensor of logits, but returned a tuple"):
        evaluate(Tuple(), images)
    with pytest.raises(ValueError, match=r"must return logits \[40, classes\] .* \[40, 1, 8, 8\]"):
        evaluate(nn.Identity(), images)


def test_titles_name_the_step_size_that_was_used(model, images):
    suite = SUITES["basic"]
    named = ["FGSM", "PGD-20 (2/255)", "PGD-20 (0.003)", "CW∞"]
    assert [attack.at(REFERENCE_EPS).title for attack in suite] == named
    wider = [attack.at(0.15).title for attack in suite]
    assert wider == ["FGSM", "PGD-20 (0.0375)", "PGD-20 (0.01434)", "CW∞"]
    result = evaluate(model, images, eps=0.15, n=2)
    assert result["attacks"]["pgd_sat"].startswith("PGD-20 (0.0375): 20 x 0.0375")
    shown = table({**result, "data": "digits", "architecture": "linear"})
    assert [column.header for column in shown.columns] == ["clean", *wider, "worst"]


@pytest.fixture
def checkpoint(tmp_path):
    network = models.build("small_cnn-4", 10, image_size=8)
    path = tmp_path / "net.safetensors"
    models.save(path, network, name="small_cnn-4", in_channels=1, image_size=8)
    return path


def test_checkpoint_without_a_run_is_evaluated_on_named_data(checkpoint):
    result = evaluate_checkpoint(EvaluateConfig(checkpoint=checkpoint, data="digits", n=5), QUIET)
    written = json.loads((checkpoint.parent / "net.basic.json").read_text())
    assert written == result
    assert result["selection"] == "selection unknown"
    assert result["eps"] == REFERENCE_EPS
    text = protocol(result)
    for part in ("N=5", "Linf", "fp32", str(checkpoint), "selection unknown", "20 x 0.003"):
        assert part in text


def test_checkpoint_of_unknown_data_or_other_classes_is_refused(checkpoint, tmp_path):
    with pytest.raises(ValueError, match="data must be given"):
        evaluate_checkpoint(EvaluateConfig(checkpoint=checkpoint), QUIET)
    other = tmp_path / "other.safetensors"
    network = models.build("small_cnn-4", 7, image_size=8)
    models.save(other, network, name="small_cnn-4", num_classes=7, in_channels=1, image_size=8)
    with pytest.raises(ValueError, match="has num_classes=7, but digits needs 10"):
        evaluate_checkpoint(EvaluateConfig(checkpoint=other, data="digits"), QUIET)
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        evaluate_checkpoint(EvaluateConfig(checkpoint=tmp_path / "none.pt"), QUIET)


@pytest.mark.parametrize(
    ("about", "sentence"),
    [
        ({"in_channels": 1, "image_size": 28}, "has image_size=28, but digits needs 8"),
        ({"in_channels": 3, "image_size": 8}, "has in_channels=3, but digits needs 1"),
    ],
)
def test_checkpoint_that_does_not_fit_the_images_is_refused(tmp_path, about, sentence):
    path = tmp_path / "net.safetensors"
    models.save(path, models.build("small_cnn-4", **about), name="small_cnn-4", **about)
    with pytest.raises(ValueError, match=sentence):
        evaluate_checkpoint(EvaluateConfig(checkpoint=path, data="digits", n=2), QUIET)


def test_out_that_is_a_folder_is_refused_before_evaluating(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("fastard.evaluate.evaluate", None)
    config = EvaluateConfig(checkpoint=checkpoint, data="digits", out=tmp_path)
    with pytest.raises(IsADirectoryError, match=r"out \(--out\) must be a file"):
        evaluate_checkpoint(config, QUIET)


def test_another_evaluation_is_not_overwritten(checkpoint):
    asked = {"checkpoint": checkpoint, "data": "digits", "n": 5}
    evaluate_checkpoint(EvaluateConfig(**asked), QUIET)
    out = checkpoint.parent / "net.basic.json"
    before = out.read_text()
    evaluate_checkpoint(EvaluateConfig(**asked), QUIET)
    for other, named in (({"n": 4}, "n"), ({"eps": 0.1, "seed": 1}, "eps, seed")):
        with pytest.raises(ValueError, match=f"holds an evaluation with another {named}: give"):
            evaluate_checkpoint(EvaluateConfig(**{**asked, **other}), QUIET)
    assert json.loads(out.read_text())["verdicts"] == json.loads(before)["verdicts"]
    out.write_text("my notes")
    with pytest.raises(ValueError, match="must be a new file or an earlier evaluation"):
        evaluate_checkpoint(EvaluateConfig(**asked), QUIET)
    assert out.read_text() == "my notes"


def test_another_norm_needs_a_radius(checkpoint):
    asked = {"checkpoint": checkpoint, "data": "digits", "n": 5, "norm": "L2"}
    with pytest.raises(ValueError, match=r"eps \(--eps\) must be given with norm 'L2'"):
        evaluate_checkpoint(EvaluateConfig(**asked), QUIET)
    assert evaluate_checkpoint(EvaluateConfig(**asked, eps=1.0), QUIET)["norm"] == "L2"


def test_networks_from_elsewhere(checkpoint, tmp_path, monkeypatch):
    """As `--teacher` takes them: an architecture with a plain state dict, a library's network."""
    monkeypatch.chdir(tmp_path)
    network = models.load(checkpoint)
    torch.save(network.state_dict(), tmp_path / "plain.pt")
    named = f"small_cnn-4@{tmp_path / 'plain.pt'}"
    asked = {"data": "digits", "n": 5}
    own = evaluate_checkpoint(EvaluateConfig(checkpoint=checkpoint, **asked), QUIET)
    other = evaluate_checkpoint(EvaluateConfig(checkpoint=Path(named), **asked), QUIET)
    assert other["verdicts"] == own["verdicts"] and other["architecture"] == "small_cnn-4"
    assert (tmp_path / "plain.basic.json").exists()

    calls = []

    def library(text, **options):
        calls.append((text, options["num_classes"], options["in_channels"], options["image_size"]))
        return network.eval()

    monkeypatch.setattr("fastard.models.load_teacher", library)
    found = evaluate_checkpoint(EvaluateConfig(checkpoint=Path("timm:tiny"), **asked), QUIET)
    assert calls == [("timm:tiny", 10, 1, 8)]
    assert found["verdicts"] == own["verdicts"] and found["architecture"] == "timm:tiny"
    assert (tmp_path / "timm-tiny.basic.json").exists()
    with pytest.raises(ValueError, match="data must be given"):
        evaluate_checkpoint(EvaluateConfig(checkpoint=Path("timm:tiny")), QUIET)
