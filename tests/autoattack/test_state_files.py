"""state_path: the official JSON, read and written; a resumed run loses and repeats nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import fastard
from fastard.autoattack.state import EvaluationState
from tests.autoattack.stand_ins import Mean, images, stand_in

EPS = 0.11
FIELDS = {
    "_attacks_to_run", "path", "_run_attacks", "_robust_flags", "_last_saved", "_SAVE_TIMEOUT",
    "_clean_accuracy",
}  # fmt: skip
BREAKS = {"apgd": {1, 4, 8}, "apgd_targeted": {0}, "square": {9}}


def made(**options) -> fastard.AutoAttack:
    return fastard.AutoAttack(Mean(), eps=EPS, seed=0, verbose=False, **options)


def test_the_file_is_the_official_one(monkeypatch, tmp_path):
    official = pytest.importorskip("pyautoattack.state").EvaluationState
    stand_in(monkeypatch, BREAKS)
    path = tmp_path / "state.json"
    attack = made()
    attack.run_standard_evaluation(*images(), bs=4, state_path=path)
    theirs = official.from_disk(path)
    assert theirs.robust_flags.tolist() == attack.report.robust.tolist()
    assert theirs.clean_accuracy == 1.0 and theirs.path == path
    assert set(theirs.run_attacks) == {"apgd-ce", "apgd-t", "fab-t", "square"}
    content = json.loads(path.read_text())
    reference = official({"square"}, path=tmp_path / "theirs.json")
    reference.robust_flags = torch.ones(2, dtype=torch.bool)
    assert set(content) == set(json.loads(reference.path.read_text())) == FIELDS
    ours = EvaluationState.load(reference.path)
    assert ours.attacks_to_run == {"square"} and ours.robust_flags.tolist() == [True, True]


def test_a_broken_off_run_goes_on_where_it_was(monkeypatch, tmp_path):
    attacks, path = stand_in(monkeypatch, BREAKS), tmp_path / "state.json"
    whole = made()
    x_adv, y_adv = whole.run_standard_evaluation(*images(), bs=4, return_labels=True)
    for attack in attacks.values():
        attack.calls.clear()

    def stop(attack, done, samples, accuracy):
        if (attack, done) == ("apgd-t", 4):
            raise KeyboardInterrupt

    first = made()
    first.on_batch = stop
    with pytest.raises(KeyboardInterrupt):
        first.run_standard_evaluation(*images(), bs=4, state_path=path)
    again = made()
    resumed = again.run_standard_evaluation(*images(), bs=4, return_labels=True, state_path=path)
    assert torch.equal(resumed[0], x_adv) and torch.equal(resumed[1], y_adv)
    assert again.report.broken_by == whole.report.broken_by
    assert again.report.accuracy == whole.report.accuracy
    assert [c["ids"] for c in attacks["apgd"].calls] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [c["ids"] for c in attacks["apgd_targeted"].calls] == [[0, 2, 3, 5], [6, 7, 9]]
    # Once finished, nothing is attacked again.
    calls = len(attacks["square"].calls)
    third = made()
    assert torch.equal(third.run_standard_evaluation(*images(), state_path=path), x_adv)
    assert len(attacks["square"].calls) == calls


def test_adversarials_newer_than_the_flags_count(monkeypatch, tmp_path):
    """A process killed between the two files: what it broke stays broken."""
    stand_in(monkeypatch, BREAKS)
    path = tmp_path / "state.json"
    made().run_standard_evaluation(*images(), bs=4, state_path=path)
    content = json.loads(path.read_text())
    content |= {"_robust_flags": [True] * 10, "_run_attacks": ["apgd-ce"]}
    path.write_text(json.dumps(content))
    attack = made()
    attack.run_standard_evaluation(*images(), bs=4, state_path=path)
    assert attack.report.broken_by[0] == "apgd-t" and attack.report.broken_by[9] == "square"


def test_an_official_file_gives_flags_alone(monkeypatch, tmp_path, capsys):
    official = pytest.importorskip("pyautoattack.state").EvaluationState
    attacks, path = stand_in(monkeypatch, BREAKS), tmp_path / "state.json"
    theirs = official({"apgd-ce", "apgd-t", "fab-t", "square"}, path=path)
    theirs.add_run_attack("apgd-ce")
    theirs.clean_accuracy = 1.0
    theirs.robust_flags = torch.tensor([True] * 8 + [False] * 2)
    attack = fastard.AutoAttack(Mean(), eps=EPS, seed=0)
    x_adv, y_adv = attack.run_standard_evaluation(*images(), return_labels=True, state_path=path)
    assert not attacks["apgd"].calls and attacks["fab"].calls[0]["ids"] == list(range(1, 8))
    assert attack.report.broken_by == ["apgd-t", *["robust"] * 7, *["earlier run"] * 2]
    assert torch.equal(x_adv[8:], images()[0][8:]) and attack.report.robust_accuracy == 0.7
    said = capsys.readouterr().out
    assert "apgd-ce was/were already run." in said
    assert "says of 2 samples only that they were broken" in attack.report.flags[0]


def test_a_new_run_forgets_the_images_of_an_old_one(monkeypatch, tmp_path):
    stand_in(monkeypatch, BREAKS)
    path = tmp_path / "state.json"
    made().run_standard_evaluation(*images(), state_path=str(path))
    path.unlink()
    stand_in(monkeypatch)
    attack = made()
    attack.run_standard_evaluation(*images(), state_path=path)
    assert attack.report.robust.all()
    assert not list(Path(tmp_path).glob(".*"))


def test_a_file_that_does_not_fit_is_refused(monkeypatch, tmp_path):
    stand_in(monkeypatch)
    path = tmp_path / "state.json"
    made().run_standard_evaluation(*images(), state_path=path)
    before = path.read_text()
    custom = made(version="custom", attacks_to_run=["square"])
    with pytest.raises(ValueError, match="created with a different set of attacks"):
        custom.run_standard_evaluation(*images(), state_path=path)
    with pytest.raises(ValueError, match="a flag for each of the 3 samples of x, but .* has 10"):
        made().run_standard_evaluation(*images(3), state_path=path)
    assert path.read_text() == before
    other = tmp_path / "other.json"
    with pytest.raises(ValueError, match="y_orig must lie in"):
        made().run_standard_evaluation(images()[0], images()[1] + 9, state_path=other)
    assert not other.exists()
    path.write_text("{}")
    with pytest.raises(ValueError, match="must be a file of AutoAttack's state, but"):
        made().run_standard_evaluation(*images(), state_path=path)


@pytest.mark.parametrize("what", ["x", "y", "eps", "seed"])
def test_another_evaluations_file_is_refused(monkeypatch, tmp_path, what):
    stand_in(monkeypatch, BREAKS)
    path, (x, y) = tmp_path / "state.json", images()
    made().run_standard_evaluation(x, y, state_path=path)
    other = {"model": Mean(), "eps": EPS, "seed": 0}
    if what == "x":
        x = x.flip(0)
    elif what == "y":
        y = y.flip(0)
    else:
        other[what] = {"eps": 0.05, "seed": 1}[what]
    attack = fastard.AutoAttack(**other, verbose=False)
    with pytest.raises(ValueError, match=f"holds images of one with other {what}"):
        attack.run_standard_evaluation(x, y, state_path=path)
    made().run_standard_evaluation(*images(), state_path=path)


def test_restored_images_are_judged_again(monkeypatch, tmp_path):
    stand_in(monkeypatch, BREAKS)

    class Other(Mean):
        def forward(self, x):
            """By a pixel that no attack moved."""
            return super().forward(x.roll(1, 3))

    x, y = images()
    x[:, 0, 0, -1] = x[:, 0, 0, 0]
    attack = fastard.AutoAttack(Other(), eps=EPS, seed=0, verbose=False)
    fresh = tmp_path / "fresh.json"
    first = made()
    first.run_standard_evaluation(x, y, state_path=fresh)
    assert not first.report.resumed and first.report.per_robust_sample() is not None
    with pytest.raises(ValueError, match="does not break this model in this ball"):
        attack.run_standard_evaluation(x, y, state_path=fresh)
    again = made()
    again.run_standard_evaluation(x, y, state_path=fresh)
    assert again.report.resumed and again.report.per_robust_sample() is None
    assert not any("per robust sample" in line for line in again.report.lines())
