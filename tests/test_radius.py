"""Which radius a network is attacked with where none is given."""

from __future__ import annotations

import pytest

from fastard.radius import REFERENCE_EPS, trained_radius


def test_the_networks_own_in_the_norm_asked_for():
    assert trained_radius([{}], "Linf") == REFERENCE_EPS == 8 / 255
    assert trained_radius([{"eps": 0.15}], "Linf") == 0.15
    assert trained_radius([{"eps": 0.15}, {}, {"eps": 0.15, "norm": "linf"}], "Linf") == 0.15
    assert trained_radius([{"eps": 1.0, "norm": "L2"}, {"eps": 0.15}], "l2") == 1.0
    assert trained_radius([{"eps": 1.0, "norm": "L2"}], "Linf") == REFERENCE_EPS


@pytest.mark.parametrize(
    ("trained", "norm", "sentence"),
    [
        ([{"eps": 0.15}, {"eps": 0.1}], "Linf", "the networks were trained with 0.1, 0.15"),
        ([{"eps": 0.15}], "L2", r"eps \(--eps\) must be given with norm 'L2'"),
        ([], "L1", "no checkpoint has one"),
    ],
)
def test_where_there_is_none_it_must_be_given(trained, norm, sentence):
    with pytest.raises(ValueError, match=sentence):
        trained_radius(trained, norm)
