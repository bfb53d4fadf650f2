"""The papers' suites, by name, with their constants at eps = 8/255."""

from __future__ import annotations

from fastard.evaluation.attacks import (
    CWL2,
    Attack,
    AutoAttackParts,
    SuiteAttack,
)
from fastard.radius import REFERENCE_EPS

FGSM = Attack("fgsm", "FGSM", 1, REFERENCE_EPS, random_start=False)
PGD_SAT = Attack("pgd_sat", "PGD-20", 20, 2 / 255, step="2/255")
PGD_TRADES = Attack("pgd_trades", "PGD-20", 20, 0.003, step="0.003")
CW_INF = Attack("cw_inf", "CW∞", 30, 2 / 255, loss="margin", kappa=50.0)
AA = AutoAttackParts("aa", "AA")

SUITES: dict[str, tuple[SuiteAttack, ...]] = {
    "basic": (FGSM, PGD_SAT, PGD_TRADES, CW_INF),
    # Zi et al. 2021 (RSLAD), and MTARD's and CIARD's evaluations.
    "rslad": (FGSM, PGD_SAT, PGD_TRADES, CW_INF, AA),
    # Huang et al. 2023 (AdaAD), eval_utils: advertorch's attacks.
    "adaad": (
        FGSM,
        Attack("pgd10", "PGD-10", 10, 2 / 255),
        CWL2("cw_l2", c=0.1, steps=1000, lr=0.01, kappa=0.01),
        AA,
    ),
    # Lee et al. 2024 (IGDM) and 2026 (SAAD): C&W with 50 steps and 10 restarts.
    "igdm": (
        FGSM,
        PGD_SAT,
        Attack("cw50", "C&W-50x10", 50, 2 / 255, loss="margin", n_restarts=10),
        AA,
    ),
    "transfer": (
        Attack("transfer_pgd", "PGD-20 transferred", 20, 0.003, transferred=True),
        Attack(
            "transfer_cw",
            "CW∞ transferred",
            30,
            2 / 255,
            loss="margin",
            kappa=50.0,
            transferred=True,
        ),  # fmt: skip
    ),
    # CIARD's black box: 100 queries of Square.
    "square-only": (
        AutoAttackParts("square100", "Square-100", "custom", ("square",), n_queries=100),
        AutoAttackParts("square", "Square", "custom", ("square",)),
    ),
    # Deng et al. 2024 (DARHT): Auto-PGD and Square, beside the weighted robust accuracy.
    "weighted": (
        AutoAttackParts("apgd", "APGD-CE", "custom", ("apgd-ce",)),
        AutoAttackParts("square", "Square", "custom", ("square",)),
    ),
    "autoattack": (AA,),
}
