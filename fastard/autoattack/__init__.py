"""AutoAttack with the official verdicts, on the engine."""

from fastard.autoattack.driver import AutoAttack
from fastard.autoattack.report import Report

__all__ = ["AutoAttack", "Report"]
