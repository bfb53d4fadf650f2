"""AdaAD's names against its published behaviour."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastard.compat import adaad
from tests.compat.twins import gaussian, twins
from tests.methods.loops import ascend


@pytest.mark.parametrize("bn_eval", [True, False])
@pytest.mark.parametrize("random_init", [True, False])
def test_inner_loss(bn_eval, random_init):
    pair = twins()
    student, teacher, x = pair.theirs, pair.teacher, pair.x
    pair.teacher.train()
    torch.manual_seed(3)
    x_adv = adaad.adaad_inner_loss(pair.ours, teacher, x, 0.03, 4, 0.1, bn_eval, random_init)
    assert not any(m.training for m in teacher.modules())
    if bn_eval:
        student.eval()
    torch.manual_seed(3)
    start = gaussian(x) if random_init else x

    def divergence(u):
        p = teacher(u).softmax(1)
        return F.kl_div(student(u).log_softmax(1), p, reduction="sum")

    expected = ascend(x, start, divergence, 0.1, 0.03, 4)
    student.train()
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-9)
    assert not x_adv.requires_grad
    pair.assert_same_state()


@pytest.mark.parametrize("bn_eval", [True, False])
def test_madry_pgd(bn_eval):
    pair = twins()
    if not bn_eval:
        for net in (pair.ours, pair.theirs):
            net[1].eval()
    # Few enough steps that pixels on the box's edge still tell where they started.
    torch.manual_seed(3)
    x_adv = adaad.Madry_PGD(pair.ours, pair.x, pair.y, 0.03, 2, 0.1, BN_eval=bn_eval)
    if bn_eval:
        pair.theirs.eval()
    torch.manual_seed(3)
    start = gaussian(pair.x).clamp(0, 1)
    expected = ascend(
        pair.x, start, lambda u: F.cross_entropy(pair.theirs(u), pair.y), 0.1, 0.03, 2
    )
    if bn_eval:
        pair.theirs.train()
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-9)
    pair.assert_same_state()
    with pytest.raises(ValueError, match="unknown norm 'L_2'"):
        adaad.Madry_PGD(pair.ours, pair.x, pair.y, norm="L_2")
