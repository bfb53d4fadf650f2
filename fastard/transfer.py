"""How adversarial examples carry over between networks, and which of them share the fewest."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastard import api, checks
from fastard.data import ImageSet
from fastard.engine import attack_mode
from fastard.engine.precision import arithmetic, resolve


@dataclass(frozen=True)
class Transfer:
    """What was measured between K networks, in the order given.

    `matrix` [K, K] has tau(i -> j) in row i and column j, NaN where no sample counted and on the
    diagonal; `counted` [K, K] the samples it was taken over; `clean` [K] the clean accuracies;
    `robust` [K] those under the network's own attack.
    """

    matrix: Tensor
    counted: Tensor
    clean: Tensor
    robust: Tensor


def transferability(
    models: Sequence[nn.Module],
    images: ImageSet,
    *,
    eps: float = 8 / 255,
    alpha: float | None = None,
    steps: int = 10,
    norm: str = "Linf",
    batch_size: int = 256,
    seed: int = 0,
    precision: str | None = "fp32",
    on_batch: Callable[[int], None] = lambda samples: None,
) -> Transfer:
    """Attacks each network with PGD and asks every other one about the images.

    tau(i -> j) is, of the images that i and j both classify correctly and on which the attack
    against i fools i, the share that fools j as well. Verdicts are the networks' own fp32 answers
    in eval mode.

    Args:
        models: at least two networks that take images in [0, 1].
        images: labelled images on the networks' device.
        eps, alpha, steps, norm: of PGD on the cross entropy; alpha None: eps / 4.
        seed: of the random starts, drawn on the CPU.
        precision: of the attack.
        on_batch: called with the number of images so far.

    Raises ValueError for fewer than two networks.
    Source: the transferability between teachers of Deng et al. 2024 (DARHT, arXiv 2402.15586); this
        definition is the usual one of transfer attacks and not confirmed by the paper's text.
    """
    if len(models) < 2:
        raise ValueError(f"models must be at least two, but are {len(models)}.")
    count = len(models)
    both = torch.zeros(count, count, dtype=torch.int64, device=images.device)
    fooled, clean, robust = both.clone(), both[0].clone(), both[0].clone()
    noise = torch.Generator().manual_seed(seed)
    step = eps / 4 if alpha is None else alpha
    for start in range(0, len(images), batch_size):
        rows = slice(start, start + batch_size)
        x, y = images.float(rows), images.y[rows]
        right = torch.stack([_answer(model, x) == y for model in models])
        clean += right.sum(1)
        for i, model in enumerate(models):
            x_adv = api.pgd_ce(
                model, x, y, eps, step, steps,
                norm=norm, precision=precision, noise_device="cpu", generator=noise,
            )  # fmt: skip
            wrong = torch.stack([_answer(other, x_adv) != y for other in models])
            robust[i] += (right[i] & ~wrong[i]).sum()
            counts = right & right[i] & wrong[i]
            both[i] += counts.sum(1)
            fooled[i] += (counts & wrong).sum(1)
        on_batch(min(start + batch_size, len(images)))
    matrix = fooled.double() / both.double()
    matrix.fill_diagonal_(float("nan"))
    share = torch.stack([clean, robust]).double() / len(images)
    return Transfer(matrix.cpu(), both.cpu(), share[0].cpu(), share[1].cpu())


def least_transferable(matrix: Tensor, count: int) -> tuple[tuple[int, ...], float]:
    """The set of `count` networks with the smallest mean tau between its members, and that mean.

    Every set is looked at; of equal ones the first in order wins. Pairs without a value are left
    out of the mean.

    Args:
        matrix: [K, K], row i and column j holding tau(i -> j).
        count: from 2 to K.

    Raises ValueError for a matrix that is not square, a count out of range, or where no set has a
        value.
    """
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"matrix must be square, but has shape {list(matrix.shape)}.")
    known = len(matrix)
    if not 2 <= checks.steps(count, "count") <= known:
        raise ValueError(f"count must be from 2 to {known}, the networks there, but is {count}.")
    sets = [(mean_within(matrix, chosen), chosen) for chosen in combinations(known, count)]
    defined = [(mean, chosen) for mean, chosen in sets if mean == mean]
    if not defined:
        raise ValueError(
            "matrix must hold a value for two networks at least, but no attack fooled its network "
            "on an image that both classify correctly; take more images or a larger eps."
        )
    mean, chosen = min(defined)
    return chosen, mean


def combinations(known: int, count: int) -> list[tuple[int, ...]]:
    """Every set of `count` of `known` networks."""
    return list(itertools.combinations(range(known), count))


def mean_within(matrix: Tensor, chosen: Sequence[int]) -> float:
    """The mean tau between the members of a set; NaN where no pair has a value."""
    inside = matrix[list(chosen)][:, list(chosen)].double().clone().fill_diagonal_(float("nan"))
    return float(inside.nanmean())


def _answer(model: nn.Module, x: Tensor) -> Tensor:
    kind = x.device.type
    with arithmetic(resolve("fp32", kind), model, kind), attack_mode(model), torch.no_grad():
        return model(x).argmax(1)
