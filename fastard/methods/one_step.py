"""Fast adversarial training: one-step examples, and the cross entropy on them."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fastard.methods.base import Logs, Method, accuracy, require_labels


class OneStep(Method):
    """A method whose loss is ``F.cross_entropy(student(x_adv), y)``."""

    def outer(
        self, x: torch.Tensor, x_adv: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, Logs]:
        logits = self.student(x_adv)
        require_labels(y, logits)
        loss = F.cross_entropy(logits, y)
        return loss, {"loss": loss.detach(), "robust_accuracy": accuracy(logits, y)}
