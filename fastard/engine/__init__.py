"""Programs: a model's logits and input gradients, and the losses that seed them."""

from fastard.engine.gradient import InputGradient, PairGradient, RowLoss, UserLoss
from fastard.engine.guard import attack_mode
from fastard.engine.inference import Inference
from fastard.engine.passes import NoGradient
from fastard.engine.program import Feed, Program
from fastard.engine.unwrap import inner_model

__all__ = [
    "Feed", "Inference", "InputGradient", "NoGradient", "PairGradient", "Program", "RowLoss",
    "UserLoss", "attack_mode", "inner_model",
]  # fmt: skip
