"""The suites' constants, attacks made on a surrogate, the page and the Markdown row."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from fastard import data, models
from fastard.evaluate import EvaluateConfig, evaluate_checkpoint
from fastard.evaluation.attacks import CWL2, Attack, AutoAttackParts, Setting
from fastard.evaluation.judge import judge_block
from fastard.evaluation.run import evaluate
from fastard.evaluation.suites import SUITES
from fastard.progress import QUIET

ROOT = Path(__file__).parents[2]


def told(suite):
    return [attack.at(8 / 255).describe() for attack in SUITES[suite]]


def test_the_papers_constants():
    assert told("rslad")[:4] == [
        "FGSM: 1 x 0.031373, no random start",
        "PGD-20 (2/255): 20 x 0.0078431, uniform start",
        "PGD-20 (0.003): 20 x 0.003, uniform start",
        "CW∞: 30 x 0.0078431, uniform start, margin loss with kappa 50",
    ]
    assert told("rslad")[4] == "AA: AutoAttack standard"
    assert "PGD-10: 10 x 0.0078431, uniform start" in told("adaad")
    assert (
        "CW L2: 1000 Adam steps of 0.01, c 0.1, confidence 0.01, no early abort, in no ball"
    ) in told("adaad")
    assert told("igdm")[2] == (
        "C&W-50x10: 50 x 0.0078431 x 10 restarts, uniform start, margin loss with kappa 0"
    )
    assert all(line.endswith(", made on the surrogate") for line in told("transfer"))
    assert told("square-only")[0] == "Square-100: AutoAttack custom (square), 100 queries"
    assert [attack.title for attack in SUITES["weighted"]] == ["APGD-CE", "Square"]


def test_the_page_about_evaluation_names_every_suite_and_constant():
    page = " ".join((ROOT / "docs" / "evaluation.md").read_text().split())
    for suite in SUITES:
        assert f"| {suite} |" in page
        assert [line for line in told(suite) if line not in page] == []


def test_keys_and_titles_tell_the_attacks_of_a_suite_apart():
    for suite in SUITES.values():
        for eps in (8 / 255, 0.1):
            titles = [attack.at(eps).title for attack in suite]
            assert len(set(titles)) == len(titles)
        assert len({attack.key for attack in suite}) == len(suite)
        assert all(isinstance(a, (Attack, CWL2, AutoAttackParts)) for a in suite)


@pytest.fixture(scope="module")
def images():
    return data.load("digits").test.first(30)


def trained(images, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images.float()), images.y).backward()
        optimizer.step()
    return model


def test_transfer_attacks_the_surrogate_and_asks_the_model(images):
    model, surrogate = trained(images, 0), trained(images, 1)
    alone = evaluate(model, images, suite="basic", eps=0.2)
    moved = evaluate(model, images, suite="transfer", eps=0.2, surrogate=surrogate)
    same = evaluate(model, images, suite="transfer", eps=0.2, surrogate=model)
    assert same["verdicts"]["transfer_pgd"] == alone["verdicts"]["pgd_trades"]
    assert same["verdicts"]["transfer_cw"] == alone["verdicts"]["cw_inf"]
    assert moved["accuracy"]["transfer_pgd"] >= same["accuracy"]["transfer_pgd"]
    assert moved["verdicts"]["transfer_pgd"] != same["verdicts"]["transfer_pgd"]
    with pytest.raises(
        ValueError, match="surrogate .--surrogate. must be given for the suite 'transfer'"
    ):
        evaluate(model, images, suite="transfer")


def test_starts_belong_to_samples_whatever_the_batch(images):
    model, attack = trained(images, 0), SUITES["basic"][1].at(0.1)
    setting = Setting(model, eps=0.1)
    ids = torch.arange(30)
    whole = judge_block(setting, attack, images.float(), images.y, ids)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    for rows in order.split(11):
        part = judge_block(setting, attack, images.float(rows), images.y[rows], ids[rows])
        torch.testing.assert_close(part.adv, whole.adv[rows], rtol=0, atol=1e-6)


def test_the_page_and_the_markdown_hold_the_results_numbers(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "net.safetensors"
    models.save(
        path, models.build("small_cnn-4", 10, in_channels=1, image_size=8), name="small_cnn-4",
        in_channels=1, image_size=8, extra={"selected": "<b>last</b>"},
    )  # fmt: skip
    config = EvaluateConfig(checkpoint=path, data="digits", n=40, eps=0.3)
    result = evaluate_checkpoint(config, QUIET)
    html = (tmp_path / "net.basic.html").read_text()
    numbers = re.findall(r"<td>([\d.]+) %</td>", html)
    assert numbers == [f"{100 * value:.2f}" for value in result["accuracy"].values()]
    assert "<b>last</b>" not in html and "&lt;b&gt;last" in html
    broken = [name for name in result["broken_by"] if name not in (None, "clean")]
    assert (html.count("<figure>") > 0) == bool(broken)
    assert html.count("data:image/png;base64,") == 3 * html.count("<figure>")
    row = (tmp_path / "net.basic.md").read_text().splitlines()
    assert row[0] == (
        "| # | Model ID | Paper | Clean accuracy | Robust accuracy | Architecture | Venue |"
    )
    assert f"| {100 * result['accuracy']['clean']:.2f}% |" in row[2]
    assert f"{100 * result['accuracy']['worst']:.2f}% (worst of the suite basic)" in row[2]


def test_broken_by_names_the_first_attack(images):
    result = evaluate(trained(images, 0), images, eps=0.2)
    for i, name in enumerate(result["broken_by"]):
        lost = [key for key in result["accuracy"] if not result["verdicts"][key][i]]
        assert name == (lost[0] if lost else None)
