"""AutoAttack with the official verdicts, on the engine."""
