"""Strong augmentation of a batch that student and teacher then see alike."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from fastard import rows

AUGMENTS = ("none", "autoaugment", "randaugment")
POLICIES = ("cifar10", "imagenet", "svhn")
MIXES = ("none", "mixup", "cutmix", "mixup-or-cutmix")


def policy_views(
    x: Tensor, augment: str, *, policy: str = "cifar10", num_ops: int = 2, magnitude: int = 9
) -> Tensor:
    """Applies torchvision's AutoAugment or RandAugment to each image of x.

    Equivalent to, with the transform of torchvision.transforms.v2 on the image in uint8::

        seeds = torch.randint(2**32, (len(x),))
        for each image and seed: torch.manual_seed(seed); transform(image)

    and torch's generator left as it is after the draw of the seeds: of several processes that share
    a batch each transforms its own images.

    Args:
        x: [B, C, H, W] in [0, 1], C 1 or 3; rounded to the 256 levels that the policies work on.
        augment: "none", "autoaugment" or "randaugment".
        policy: of AutoAugment: "cifar10", "imagenet" or "svhn".
        num_ops, magnitude: of RandAugment.

    Returns: images like x.
    Source: Cubuk et al. 2019 (AutoAugment), 2020 (RandAugment).
    """
    if augment == "none":
        return x
    # Imported here, because torchvision takes longer to import than the rest of the library.
    from torchvision.transforms import v2

    if augment == "autoaugment":
        transform = v2.AutoAugment(v2.AutoAugmentPolicy(policy))
    else:
        transform = v2.RandAugment(num_ops, magnitude)
    levels = (x * 255).round().to(torch.uint8)
    seeds = rows.drawn(partial(torch.randint, 2**32), (len(x),)).tolist()
    after = torch.get_rng_state()
    views = []
    try:
        # One draw an image: on a batch the transform would do the same to all.
        for image, seed in zip(levels, seeds, strict=True):
            torch.default_generator.manual_seed(seed)
            views.append(transform(image))
    finally:
        torch.set_rng_state(after)
    return torch.stack(views).to(x.dtype) / 255


def mixed(x: Tensor, mix: str, alpha: float = 1.0) -> Tensor:
    """Mixes each image with its neighbour in the batch; at least half of it stays its own.

    Equivalent to, with a = max(u, 1 - u) for u of Beta(alpha, alpha): MixUp
    ``a * x + (1 - a) * x.roll(1, 0)``; CutMix puts a box of the neighbour, a share 1 - a of the
    area at most, at a place drawn uniformly. One a and one box serve the whole batch.

    Args:
        x: [B, C, H, W].
        mix: "none", "mixup", "cutmix", or "mixup-or-cutmix", one of the two by a coin.
        alpha: above 0.

    Returns: images like x. Draws from torch's global CPU generator.
    Source: Zhang et al. 2018 (MixUp), Yun et al. 2019 (CutMix); the roll and the maximum are those
        of Beyer et al. 2021 (FunMatch).
    """
    if mix == "none":
        return x
    if mix == "mixup-or-cutmix":
        mix = "mixup" if torch.rand(()) < 0.5 else "cutmix"
    drawn = float(torch.distributions.Beta(alpha, alpha).sample())
    own = max(drawn, 1 - drawn)
    other = rows.rolled(x)
    if mix == "mixup":
        return own * x + (1 - own) * other
    height, width = x.shape[2:]
    side = math.sqrt(1 - own)
    spans = []
    for length in (height, width):
        centre, half = int(torch.randint(length, ())), int(length * side) // 2
        spans.append(slice(max(centre - half, 0), min(centre + half, length)))
    views = x.clone()
    views[:, :, spans[0], spans[1]] = other[:, :, spans[0], spans[1]]
    return views
