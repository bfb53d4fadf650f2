"""Names, order and defaults are those of the origins; what fastard adds comes after, by keyword."""

from __future__ import annotations

import inspect

import pytest

from fastard.compat import adaad, mart, robust_overfitting, rslad, torchattacks, trades

A, E = 2 / 255, 8 / 255
NEEDED = inspect.Parameter.empty
# Each origin's parameters, written "name" or ("name", default).
PUBLISHED = {
    trades.trades_loss: [
        "model", "x_natural", "y", "optimizer", ("step_size", 0.003), ("epsilon", 0.031),
        ("perturb_steps", 10), ("beta", 1.0), ("distance", "l_inf"),
    ],
    mart.mart_loss: [
        "model", "x_natural", "y", "optimizer", ("step_size", 0.007), ("epsilon", 0.031),
        ("perturb_steps", 10), ("beta", 6.0), ("distance", "l_inf"),
    ],
    rslad.rslad_inner_loss: [
        "model", "teacher_logits", "x_natural", "y", "optimizer", ("step_size", 0.003),
        ("epsilon", 0.031), ("perturb_steps", 10), ("beta", 6.0),
    ],
    rslad.attack_pgd: [
        "model", "train_batch_data", "train_batch_labels", ("attack_iters", 10), ("step_size", A),
        ("epsilon", E),
    ],
    adaad.adaad_inner_loss: [
        "model", "teacher_model", "x_natural", ("step_size", A), ("steps", 10), ("epsilon", E),
        ("BN_eval", True), ("random_init", True), ("clip_min", 0.0), ("clip_max", 1.0),
    ],
    adaad.Madry_PGD: [
        "model", "x_ori", "y", ("step_size", A), ("steps", 10), ("epsilon", E), ("norm", "L_inf"),
        ("BN_eval", True), ("random_init", True), ("clip_min", 0.0), ("clip_max", 1.0),
    ],
    robust_overfitting.attack_pgd: [
        "model", "X", "y", "epsilon", "alpha", "attack_iters", "restarts", "norm",
        ("early_stop", False), ("mixup", False), ("y_a", None), ("y_b", None), ("lam", None),
    ],
    torchattacks.FGSM: ["model", ("eps", E)],
    torchattacks.PGD: ["model", ("eps", E), ("alpha", A), ("steps", 10), ("random_start", True)],
    torchattacks.PGDL2: [
        "model", ("eps", 1.0), ("alpha", 0.2), ("steps", 10), ("random_start", True),
        ("eps_for_division", 1e-10),
    ],
    torchattacks.TPGD: ["model", ("eps", E), ("alpha", A), ("steps", 10)],
    torchattacks.APGD: [
        "model", ("norm", "Linf"), ("eps", E), ("steps", 10), ("n_restarts", 1), ("seed", 0),
        ("loss", "ce"), ("eot_iter", 1), ("rho", 0.75), ("verbose", False),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED, ids=lambda f: f"{f.__module__}.{f.__name__}")
def test_signature(name):
    parameters = inspect.signature(name).parameters.values()
    positional = [p for p in parameters if p.kind == p.POSITIONAL_OR_KEYWORD]
    wanted = [(p, NEEDED) if isinstance(p, str) else p for p in PUBLISHED[name]]
    assert [(p.name, p.default) for p in positional] == wanted
    added = [p for p in parameters if p not in positional]
    assert all(p.kind == p.KEYWORD_ONLY and p.default is not NEEDED for p in added)


def test_every_public_name_is_held():
    held = {(f.__module__, f.__name__) for f in PUBLISHED}
    for module in (adaad, mart, robust_overfitting, rslad, torchattacks, trades):
        for name in module.__all__:
            thing = getattr(module, name)
            if getattr(thing, "__module__", None) == module.__name__:
                assert (module.__name__, name) in held
