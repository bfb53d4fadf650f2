"""Random crop and horizontal flip of a whole batch at once.

What happens to an image is its *view*, three integers (crop_y, crop_x, flip): the corner of the
crop in the padded image, 0 to 2 * PAD, and whether it is mirrored afterwards. Equal views of an
image are equal pixels, so a view's code, one integer below VIEWS, can key a cache.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

PAD = 4
VIEWS = 2 * (2 * PAD + 1) ** 2
KINDS = ("none", "crop", "crop-flip")


def draw_views(count: int, kind: str, generator: torch.Generator | None = None) -> Tensor:
    """Draw one view for each of `count` images: int64 [count, 3] on the CPU.

    `kind` is "none" (the image as it is, which is the crop at (PAD, PAD)), "crop" or "crop-flip".
    The numbers come from `generator`, a CPU generator or None for torch's global one, so that they
    are the same whatever device the images are on.

    Raises:
        ValueError: `kind` is none of these.
    """
    if kind not in KINDS:
        raise ValueError(f"augment is {kind!r} but must be one of {', '.join(KINDS)}")
    views = torch.tensor([PAD, PAD, 0]).repeat(count, 1)
    if kind != "none":
        views[:, :2] = torch.randint(2 * PAD + 1, (count, 2), generator=generator)
    if kind == "crop-flip":
        views[:, 2] = torch.randint(2, (count,), generator=generator)
    return views


def encode_views(views: Tensor) -> Tensor:
    """Number views [..., 3] from 0 to VIEWS - 1: int64 [...].

    Equivalent to: `(crop_y * (2 * PAD + 1) + crop_x) * 2 + flip`.
    """
    crop_y, crop_x, flip = views.to(torch.int64).unbind(-1)
    return (crop_y * (2 * PAD + 1) + crop_x) * 2 + flip


def decode_views(codes: Tensor) -> Tensor:
    """Return the views [..., 3] whose codes these are; the inverse of `encode_views`."""
    corner = codes // 2
    side = 2 * PAD + 1
    return torch.stack([corner // side, corner % side, codes % 2], -1)


def apply_views(x: Tensor, views: Tensor) -> Tensor:
    """Cut each image's view out of it: x [B, C, H, W] of any dtype, views [B, 3] on its device.

    Equivalent to, for each image: `padded = F.pad(image, (PAD,) * 4)`,
    `crop = padded[:, crop_y:crop_y + H, crop_x:crop_x + W]`, `crop.flip(-1) if flip else crop`.
    """
    batch, channels, height, width = x.shape
    padded_width = width + 2 * PAD
    padded = F.pad(x, (PAD, PAD, PAD, PAD)).flatten(2)
    crop_y, crop_x, flip = views.to(torch.int64).unbind(1)
    column = torch.arange(width, device=x.device)
    column = torch.where(flip[:, None] != 0, width - 1 - column, column)
    columns = crop_x[:, None] + column
    rows = crop_y[:, None] + torch.arange(height, device=x.device)
    pixels = (rows[:, :, None] * padded_width + columns[:, None, :]).flatten(1)
    index = pixels[:, None, :].expand(batch, channels, height * width)
    return padded.gather(2, index).view(batch, channels, height, width)
