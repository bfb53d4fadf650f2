"""The driver alone: who sees what, in which order, and whose verdict counts."""

from __future__ import annotations

import inspect
import types

import pytest
import torch
from torch import nn

import fastard
from fastard.attacks.draws import CounterDraws
from tests.autoattack.stand_ins import Mean, images, stand_in

EPS = 0.11


def run(model=None, data=None, **options):
    x, y = data or images()
    bs = options.pop("bs", 250)
    attack = fastard.AutoAttack(model or Mean(), eps=EPS, seed=3, verbose=False, **options)
    return attack, *attack.run_standard_evaluation(x, y, bs=bs, return_labels=True)


def test_the_constructor_is_the_official_one():
    names = list(inspect.signature(fastard.AutoAttack).parameters)
    assert names[:10] == [
        "model", "norm", "eps", "seed", "verbose", "attacks_to_run", "version", "is_tf_model",
        "device", "log_path",
    ]  # fmt: skip
    run_names = list(inspect.signature(fastard.AutoAttack.run_standard_evaluation).parameters)
    assert run_names[1:6] == ["x_orig", "y_orig", "bs", "return_labels", "state_path"]


def test_each_attack_sees_who_is_robust_in_full_batches(monkeypatch):
    attacks = stand_in(monkeypatch, {"apgd": {1, 4}, "apgd_targeted": {0}, "square": {9}})
    x, y = images()
    y[2] = 7  # wrong from the start
    attack, x_adv, y_adv = run(data=(x, y), bs=4)
    seen = {name: [call["ids"] for call in a.calls] for name, a in attacks.items()}
    assert seen == {
        "apgd": [[0, 1, 3, 4], [5, 6, 7, 8], [9]],
        "apgd_targeted": [[0, 3, 5, 6], [7, 8, 9]],
        "fab": [[3, 5, 6, 7], [8, 9]],
        "square": [[3, 5, 6, 7], [8, 9]],
    }
    report = attack.report
    assert report.broken_by == [
        "apgd-t", "apgd-ce", "clean", "robust", "apgd-ce", *["robust"] * 4, "square"
    ]  # fmt: skip
    assert report.accuracy == {
        "clean": 0.9, "apgd-ce": 0.7, "apgd-t": 0.6, "fab-t": 0.6, "square": 0.5
    }  # fmt: skip
    assert report.robust.tolist() == [name == "robust" for name in report.broken_by]
    assert torch.equal(x_adv[report.robust], x[report.robust]) and x_adv[2].equal(x[2])
    assert y_adv.tolist() == [1, 2, 2, 3, 5, 5, 6, 7, 8, 8]
    assert all(call["seed"] == 3 for a in attacks.values() for call in a.calls)
    assert [a.search for a in attacks.values()] == [None] * 4


def test_ids_go_to_the_attacks(monkeypatch):
    attacks = stand_in(monkeypatch, {"apgd": {101}})
    x, y = images(3)
    ids = torch.tensor([100, 101, 102])
    attack = fastard.AutoAttack(Mean(), eps=EPS, seed=0, verbose=False)
    attack.run_standard_evaluation(x, y, ids=ids)
    assert attacks["apgd"].calls[0]["ids"] == [100, 101, 102]
    assert attack.report.broken_by == ["robust", "apgd-ce", "robust"]
    with pytest.raises(ValueError, match=r"ids must be int64 \[3\], one a sample, but is float32"):
        attack.run_standard_evaluation(x, y, ids=ids.float())


@pytest.mark.parametrize(
    ("version", "norm", "settings"),
    [
        ("standard", "Linf", {"apgd": 1, "apgd_targeted": 1, "fab": 1, "targets": (9, 9)}),
        ("standard", "L1", {"apgd": 5, "apgd_targeted": 1, "fab": 1, "targets": (5, 9)}),
        ("plus", "L2", {"apgd": 5, "apgd_targeted": 1, "fab": 5, "targets": (9, 9)}),
        ("rand", "Linf", {"apgd": 1, "apgd_targeted": 5, "fab": 5, "targets": (9, 9)}),
        ("custom", "Linf", {"apgd": 5, "apgd_targeted": 5, "fab": 5, "targets": (9, 9)}),
    ],
)
def test_versions(monkeypatch, version, norm, settings):
    stand_in(monkeypatch)
    extra = {"attacks_to_run": ["square"]} if version == "custom" else {}
    attack = fastard.AutoAttack(Mean(), norm, EPS, version=version, verbose=False, **extra)
    found = {name: getattr(attack, name).n_restarts for name in ("apgd", "apgd_targeted", "fab")}
    targets = attack.apgd_targeted.n_target_classes, attack.fab.n_target_classes
    assert found | {"targets": targets} == settings
    assert attack.apgd.use_largereps == (version == "standard" and norm == "L1")
    assert attack.apgd.eot_iter == (20 if version == "rand" else 1)
    assert attack.attacks_to_run == {
        "standard": ["apgd-ce", "apgd-t", "fab-t", "square"], "rand": ["apgd-ce", "apgd-dlr"],
        "plus": ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"], "custom": ["square"],
    }[version]  # fmt: skip
    attack.cheap()
    assert (attack.fab.n_restarts, attack.square.n_queries) == (1, 1000)


def test_each_attack_is_set_for_its_turn_and_set_back(monkeypatch):
    attacks = stand_in(monkeypatch)
    attack, *_ = run(version="plus")
    assert [c["loss"] for c in attacks["apgd"].calls] == ["ce", "dlr"]
    assert [(c["targeted"], c["n_restarts"]) for c in attacks["fab"].calls] == [
        (False, 5), (True, 1)
    ]  # fmt: skip
    assert (attack.fab.n_restarts, attack.fab.targeted, attack.apgd.seed) == (5, False, 0)


@pytest.mark.parametrize(
    ("classes", "version", "ran", "targets"),
    [
        (4, "standard", ("apgd-ce", "apgd-t", "fab-t", "square"), 3),
        (3, "standard", ("apgd-ce", "apgd-dlr", "fab-t", "square"), 2),
        (2, "standard", ("apgd-ce", "fab", "square"), 1),
        (2, "plus", ("apgd-ce", "fab", "square"), 1),
        (3, "plus", ("apgd-ce", "apgd-dlr", "fab", "square", "fab-t"), 2),
        (2, "rand", ("apgd-ce",), 1),
    ],
)
def test_few_classes_reduce_the_suite_and_it_is_said(monkeypatch, classes, version, ran, targets):
    attacks = stand_in(monkeypatch)
    with pytest.warns(UserWarning, match="than possible|not possible"):
        attack, *_ = run(Mean(classes), images(classes, classes), version=version)
    report = attack.report
    assert (report.version, report.attacks, report.targets) == ("reduced", ran, targets)
    assert report.reductions and report.lines()[0].startswith("AutoAttack reduced (")
    for name in ("apgd_targeted", "fab"):
        calls = [c for c in attacks[name].calls if name != "fab" or c["targeted"]]
        assert all(c["n_target_classes"] == targets for c in calls)
        assert attacks[name].n_target_classes == 9


def test_an_image_outside_the_ball_is_moved_inside_before_the_verdict(monkeypatch):
    # 0.12 from the middle: outside eps 0.11, inside it after the move, and 0.05 breaks already.
    stand_in(monkeypatch, {"apgd": {0, 1}}, by=0.12)
    attack, x_adv, _ = run()
    x, _ = images()
    assert attack.report.broken_by[:2] == ["apgd-ce"] * 2 and attack.report.drawn_in == 2
    assert (x_adv - x).abs().max() <= EPS + 1e-6
    # At eps 0.01 the move takes the break away.
    attack = fastard.AutoAttack(Mean(), eps=0.01, seed=0, verbose=False)
    x_adv = attack.run_standard_evaluation(x, images()[1])
    assert attack.report.robust.all() and attack.report.rejected == 2 and torch.equal(x_adv, x)
    official = fastard.AutoAttack(Mean(), eps=0.01, seed=0, verbose=False, compat="official")
    official.run_standard_evaluation(x, images()[1])
    assert official.report.broken_by[:2] == ["apgd-ce"] * 2


def test_nan_images_break_nothing_and_nan_logits_are_broken(monkeypatch):
    attacks = stand_in(monkeypatch, {"apgd": {0}})
    attacks["apgd"].by = float("nan")
    attack, x_adv, _ = run()
    assert attack.report.robust.all() and not x_adv.isnan().any()

    class Partly(Mean):
        def forward(self, x):
            logits = super().forward(x)
            return logits.masked_fill((x[:, 0, 0, :1] > 0.9), float("nan"))

    attack, *_ = run(Partly())
    assert attack.report.broken_by[9] == "clean" and attack.report.unusable == 1
    assert attack.report.accuracy["clean"] == 0.9
    assert "logits with NaN or +inf: 1, counted as broken" in attack.report.lines()


def test_nothing_is_left_changed(monkeypatch):
    stand_in(monkeypatch, {"apgd": {0}})

    class Noisy(Mean):
        def forward(self, x):
            modes.append(self.training)
            torch.rand(3)
            return super().forward(x)

    modes, model = [], Noisy().train()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        run(model)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training and not any(modes) and model.scale.grad is None


def test_individual_runs_each_on_all(monkeypatch, capsys):
    stand_in(monkeypatch, {"apgd": {0}, "square": {0, 1}})
    x, y = images()
    attack = fastard.AutoAttack(Mean(), eps=EPS, seed=0)
    found = attack.run_standard_evaluation_individual(x, y, return_labels=True)
    assert list(found) == ["apgd-ce", "apgd-t", "fab-t", "square"] == attack.attacks_to_run
    assert found["square"][1].tolist()[:3] == [1, 2, 2]
    assert attack.reports["square"].robust_accuracy == 0.8
    said = capsys.readouterr().out
    assert "using standard version including apgd-ce, apgd-t, fab-t, square" in said
    assert "robust accuracy by SQUARE \t 80.00% \t (time attack:" in said


def test_the_log_is_the_official_one(monkeypatch, tmp_path, capsys):
    stand_in(monkeypatch, {"apgd": {0}})
    attack = fastard.AutoAttack(Mean(), eps=EPS, seed=0, log_path=tmp_path / "log")
    attack.run_standard_evaluation(*images(), bs=6)
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[:4] == [
        "using standard version including apgd-ce, apgd-t, fab-t, square.",
        "initial accuracy: 100.00%",
        "apgd-ce - 1/2 - 1 out of 6 successfully perturbed",
        "apgd-ce - 2/2 - 0 out of 4 successfully perturbed",
    ]
    assert lines[4].startswith("robust accuracy after APGD-CE: 90.00% (total time ")
    assert lines[-2].startswith("max Linf perturbation: 0.1")
    assert lines[-1] == "robust accuracy: 90.00%"
    said = capsys.readouterr().out.splitlines()
    assert said == ["setting parameters for standard version", *lines]


def test_robustbench_takes_it(monkeypatch):
    stand_in(monkeypatch, {"apgd": {0}})
    bench = types.SimpleNamespace(AutoAttack=fastard.AutoAttack)

    def benchmark(model, x, y, norm, eps, device):
        # As robustbench.eval.benchmark calls it.
        options = {"version": "standard", "device": device, "log_path": None}
        adversary = bench.AutoAttack(model, norm=norm, eps=eps, **options)
        x_adv = adversary.run_standard_evaluation(x, y, bs=4, state_path=None)
        return adversary.clean_accuracy(x_adv, y, bs=4)

    assert benchmark(Mean(), *images(), "Linf", EPS, torch.device("cpu")) == 0.9


def test_wrong_from_the_start_one_sample_and_eps_0(monkeypatch):
    attacks = stand_in(monkeypatch, {"apgd": {0}})
    x, y = images()
    attack, x_adv, _ = run(data=(x, (y + 1) % 10))
    assert attack.report.broken_by == ["clean"] * 10 and torch.equal(x_adv, x)
    assert not any(a.calls for a in attacks.values())
    assert attack.report.per_robust_sample() is None
    attack, *_ = run(data=(x[:1], y[:1]))
    assert attack.report.broken_by == ["apgd-ce"]
    calls = len(attacks["apgd"].calls)
    attack = fastard.AutoAttack(Mean(), eps=0, verbose=False)
    attack.run_standard_evaluation(x, y)
    assert attack.report.robust.all() and len(attacks["apgd"].calls) == calls


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"is_tf_model": True}, ValueError, "is_tf_model must be False"),
        ({"version": "standart"}, ValueError, "did you mean 'standard'"),
        ({"norm": "L3"}, ValueError, "unknown norm 'L3'"),
        ({"eps": -1.0}, ValueError, "eps must be finite and not negative"),
        ({"attacks_to_run": ["square"]}, ValueError, "unless you use version='custom'"),
        ({"attacks_to_run": ["sqare"], "version": "custom"}, ValueError, "did you mean 'square'"),
        ({"compat": "off"}, ValueError, "compat must be None or 'official'"),
        ({"precision": "bf16", "engine": False}, ValueError, "must be 'fp32' without the engine"),
        ({"device": "gpu"}, ValueError, "device must name a device"),
        ({"model": 3}, TypeError, "model must be callable"),
        ({"seed": "a"}, TypeError, "seed must be a number"),
        ({"seed": 2**70}, ValueError, "seed must be from"),
        ({"log_path": "no/such/folder/log"}, ValueError, "log_path must lie in a folder"),
        ({"log_path": "."}, ValueError, "log_path must be a file"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused(monkeypatch, options, error, message):
    stand_in(monkeypatch)
    with pytest.raises(error, match=message) as raised:
        fastard.AutoAttack(**{"model": Mean(), "verbose": False, **options})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x, y: (x.half(), y), TypeError, "must be float32 or float64, but is float16"),
        (lambda x, y: (x * 255, y), ValueError, r"x_orig must lie in \[0, 1\]"),
        (lambda x, y: (x.masked_fill(x > 0.9, torch.nan), y), ValueError, r"must lie in \[0, 1\]"),
        (lambda x, y: (x[:0], y[:0]), ValueError, "N >= 1"),
        (lambda x, y: (x, y.float()), TypeError, "y_orig must hold integer class indices"),
        (lambda x, y: (x, y[:3]), ValueError, "one label per sample"),
        (lambda x, y: (x, y + 5), ValueError, r"must lie in \[0, 10\)"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(monkeypatch, change, error, message):
    attacks = stand_in(monkeypatch)
    with pytest.raises(error, match=message):
        run(data=change(*images()))
    assert not attacks["apgd"].calls


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"attacks_to_run": ["apgd-ce", "sqare"]}, {}, "did you mean 'square'"),
        ({}, {"state_path": "no/such/folder/state"}, "state_path must lie in a folder"),
        ({"norm": "L2"}, {}, "square cannot attack x_orig: L2 and L1 need images at least 5"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("individual", [False, True])
def test_what_a_later_attack_would_fail_on_is_refused_first(
    monkeypatch, change, options, message, individual
):
    attacks = stand_in(monkeypatch)
    attack = fastard.AutoAttack(Mean(), eps=EPS, verbose=False)
    vars(attack).update(change)
    run_it = attack.run_standard_evaluation
    if individual and not options:
        run_it = attack.run_standard_evaluation_individual
    with pytest.raises(ValueError, match=message):
        run_it(*images(), **options)
    assert not attacks["apgd"].calls


def test_more_restarts_than_there_are_numbers_for_are_refused(monkeypatch):
    attacks = stand_in(monkeypatch)
    attack = fastard.AutoAttack(Mean(), eps=EPS, verbose=False)
    attacks["square"].n_restarts = 257
    with pytest.raises(ValueError, match="n_restarts must be at most 256"):
        attack.run_standard_evaluation(*images())
    assert not attacks["apgd"].calls
    with pytest.raises(ValueError, match="n_restarts must be at most 256"):
        CounterDraws(0, "fab").rand(torch.arange(2), (3,), restart=256)


def test_a_model_of_other_answers_is_refused(monkeypatch):
    stand_in(monkeypatch)
    with pytest.raises(ValueError, match=r"must answer logits \[10, classes\]"):
        run(nn.Identity())
    with pytest.raises(ValueError, match="at least 2 classes"):
        run(Mean(1), (images()[0], torch.zeros(10, dtype=torch.int64)))


def test_without_an_attack_nothing_is_evaluated():
    attack = fastard.AutoAttack(Mean(), eps=EPS, version="custom", verbose=False)
    with pytest.raises(ValueError, match="must name at least one attack, of apgd-ce"):
        attack.run_standard_evaluation(*images())


def test_half_weights_are_refused_as_verdicts_are_fp32():
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(10)).eval()
    x, y = images()
    model(x)
    attack = fastard.AutoAttack(model.half(), eps=EPS, verbose=False)
    with pytest.raises(TypeError, match=r"but has torch.float16: pass model.float\(\)"):
        attack.run_standard_evaluation(x, y)


def test_a_misspelt_setting_is_warned_about():
    attack = fastard.AutoAttack(Mean(), eps=EPS, seed=0, verbose=False)
    attack.cheap()
    attack.apgd.n_iters = 2
    with pytest.warns(UserWarning, match="apgd has no setting 'n_iters', .* did you mean 'n_iter'"):
        attack.run_standard_evaluation(*images(2))
    assert sum("n_iters" in flag for flag in attack.report.flags) == 1
