"""A network that holds a row of logits for each of its teachers."""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fastard import rows

COMBINES = ("probabilities", "logits", "layer")


class LogitMap(nn.Module):
    """A backbone whose last linear layer gives K rows of C logits, one row for each teacher.

    Equivalent to, with `combine` "probabilities"::

        rows = head(dropout(features(x))).view(-1, K, C)
        rows.softmax(2).mean(1).log()

    The prediction is a network of C logits like any other: attacks, evaluation and checkpoints
    need know nothing of the rows. With Monte Carlo dropout it is the mean over `mc_samples` draws
    of the dropout, also in eval mode.

    Args:
        backbone: images to [B, K * C], ending in an nn.Linear, which becomes the `head`; in front
            of it the dropout. A `Normalized` network is fine.
        teachers: K. num_classes: C.
        dropout: share of the features set to zero, below 1.
        mc_samples: 0: dropout is off in eval mode; n above 0: n draws in eval mode are averaged,
            from torch's global generator of the device.
        combine: the mean of the rows' "probabilities", as log-probabilities, or of their "logits";
            "layer": the sum of the rows' logits, each times a learned weight that starts at 1 / K.
        mc_train_samples: how often the dropout is drawn for each image in train mode.

    Raises ValueError for a backbone that does not end in a linear layer of K * C outputs or an
        option out of range.
    Source: Deng et al. 2024 (arXiv 2402.15586), DARHT. A feature map of each teacher's logits and
        the use of Monte Carlo dropout are stated there; shape, combination and place of the dropout
        are not confirmed by the paper's text.
    """

    def __init__(
        self,
        backbone: nn.Module,
        teachers: int,
        num_classes: int,
        dropout: float = 0.0,
        mc_samples: int = 0,
        combine: str = "probabilities",
        mc_train_samples: int = 1,
    ) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, but is {dropout}.")
        if mc_samples < 0:
            raise ValueError(f"mc_samples must be at least 0, but is {mc_samples}.")
        if mc_train_samples < 1:
            raise ValueError(f"mc_train_samples must be at least 1, but is {mc_train_samples}.")
        if combine not in COMBINES:
            raise ValueError(f"combine must be one of {', '.join(COMBINES)}, but is {combine!r}.")
        self.teachers, self.num_classes = teachers, num_classes
        self.dropout, self.mc_samples, self.combine = dropout, mc_samples, combine
        self.mc_train_samples = mc_train_samples
        self.backbone, self.head = _beheaded(backbone, teachers * num_classes)
        self.row_weights: nn.Parameter | None
        self.register_parameter("row_weights", None)
        if combine == "layer":
            even = self.head.weight.detach().new_full((teachers,), 1 / teachers)
            self.row_weights = nn.Parameter(even)

    def forward(self, x: Tensor, rows: bool = False) -> Tensor:
        """The prediction [B, C], or with `rows` the map [B, K, C].

        The map goes through `forward` too, because a wrapper such as DDP sees no other method.
        """
        rows_of_logits = self.map(x)
        return rows_of_logits if rows else self.predict(rows_of_logits)

    def map(self, x: Tensor) -> Tensor:
        """The student's estimate of each teacher's logits, [B, K, C]; [n * B, K, C], draw by draw,
        where there are n Monte Carlo draws."""
        features = self.backbone(x)
        draws = self.mc_train_samples if self.training else self.mc_samples
        if draws > 1:
            features = features.repeat(draws, 1)
        if rows.parts() > 1 and draws and self.dropout:
            features = features * self._shared_masks(features, draws)
        else:
            features = F.dropout(features, self.dropout, draws > 0)
        return self.head(features).view(-1, self.teachers, self.num_classes)

    def _shared_masks(self, features: Tensor, draws: int) -> Tensor:
        """What dropout multiplies this part's rows of a batch by, cut from one draw for all of it.

        Rows are in the order of `map`, draw by draw.
        """

        def drawn(shape: tuple[int, int, int]) -> Tensor:
            count, _, width = shape
            ones = features.new_ones(draws * count, width)
            return F.dropout(ones, self.dropout).view(draws, count, width).transpose(0, 1)

        shape = (len(features) // draws, draws, features.shape[1])
        return rows.drawn(drawn, shape).transpose(0, 1).flatten(0, 1)

    def predict(self, rows: Tensor) -> Tensor:
        """The prediction [B, C] of what `map` gave."""
        draws = self.mc_train_samples if self.training else max(self.mc_samples, 1)
        if self.row_weights is not None:
            mean = rows.unflatten(0, (draws, -1)).mean(0) if draws > 1 else rows
            return (mean * self.row_weights[:, None]).sum(1)
        # All draws of all rows of an image side by side.
        rows = rows.unflatten(0, (draws, -1)).transpose(0, 1).flatten(1, 2)
        if self.combine == "logits":
            return rows.mean(1)
        return rows.log_softmax(2).logsumexp(1) - math.log(rows.shape[1])

    def description(self) -> dict[str, Any]:
        """The arguments, but for the backbone and the classes, as a checkpoint keeps them."""
        return {
            "teachers": self.teachers,
            "dropout": self.dropout,
            "mc_samples": self.mc_samples,
            "combine": self.combine,
            "mc_train_samples": self.mc_train_samples,
        }

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.description().items())


def _beheaded(backbone: nn.Module, outputs: int) -> tuple[nn.Module, nn.Linear]:
    """The backbone without its last linear layer, and that layer."""
    linear = [(name, m) for name, m in backbone.named_modules() if isinstance(m, nn.Linear)]
    name, head = linear[-1] if linear else ("", None)
    if not name or head is None or head.out_features != outputs:
        found = "has none" if head is None else f"ends in one of {head.out_features}"
        raise ValueError(
            f"backbone must end in an nn.Linear of teachers * num_classes = {outputs} outputs, but "
            f"{found}."
        )
    backbone.set_submodule(name, nn.Identity())
    return backbone, head
