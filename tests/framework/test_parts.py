"""Parts: abstract or final, and what a weighting without state keeps."""

from __future__ import annotations

import pytest
import torch

from framework import FixedWeights, Perturbation, Selection, Weighting


@pytest.mark.parametrize("part", [Selection, Perturbation, Weighting])
def test_a_part_must_state_its_one_method(part):
    with pytest.raises(TypeError, match="abstract"):
        part()


def test_fixed_weights_are_the_same_at_every_step():
    weighting = FixedWeights({"forget": 2.0, "retain": 0.5})
    first = weighting.weights(None)
    first["forget"] = torch.tensor(7.0)
    assert weighting.weights(None) == {"forget": 2.0, "retain": 0.5}
    assert not weighting.needs_gram
    assert not weighting.needs_losses


def test_a_weighting_without_state_refuses_the_state_of_another():
    weighting = FixedWeights({"forget": 1.0})
    weighting.load_state_dict(weighting.state_dict())
    with pytest.raises(AssertionError, match=r"FixedWeights keeps no state.*dual"):
        weighting.load_state_dict({"dual": 1.0})
