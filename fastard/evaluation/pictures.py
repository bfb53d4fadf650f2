"""A few broken samples as pictures that a page can hold."""

from __future__ import annotations

import base64
import io
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from fastard.evaluation.judge import Block

MOST_PER_BLOCK, MOST = 2, 24


def examples(block: Block, y: Tensor, ids: Tensor, attack: str) -> list[dict[str, Any]]:
    """The block's first samples that this attack broke: labels, and three pictures each."""
    moved = (block.adv != block.x).flatten(1).any(1)
    rows = (~block.survived & ~block.broken_logits & moved).nonzero()[:, 0][:MOST_PER_BLOCK]
    found = []
    for row in rows.tolist():
        x, adv = block.x[row].float().cpu(), block.adv[row].float().cpu()
        added = adv - x
        shown = 0.5 + added / (2 * added.abs().amax().clamp(min=1e-12))
        found.append(
            {
                "id": int(ids[row]),
                "attack": attack,
                "by": block.by[row],
                "label": int(y[row]),
                "answer": int(block.answer[row]),
                "linf": float(added.abs().amax()),
                "pictures": [_png(image) for image in (x, adv, shown)],
            }
        )
    return found


def _png(image: Tensor) -> str:
    """A picture of [C, H, W] in [0, 1], base64; of other than 1 or 3 channels the first."""
    image = image if image.shape[0] in (1, 3) else image[:1]
    held = io.BytesIO()
    to_pil_image((image.clamp(0, 1) * 255).round().to(torch.uint8)).save(held, "PNG")
    return base64.b64encode(held.getvalue()).decode()
