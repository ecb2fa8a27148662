"""Cut plans, applied to newly built models."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

from kedro_aat.compression.filters.costs import num_parameters
from kedro_aat.compression.filters.cutting import CUT_PLAN, apply_cut_plan
from kedro_aat.compression.filters.probing import outputs_of, relative_difference
from kedro_aat.errors import ConfigurationError, ModelError
from tests.compression.architectures import ARCHITECTURES, disturb, make, mlp
from tests.compression.filters.pruned import TOLERANCE, difference, perceptron, pruned


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_cut_plan_gives_a_new_model_the_shapes_of_the_cut_one(name: str) -> None:
    model, batch = make(name)
    controller = pruned(model, batch, 0.5)
    small = controller.strip()
    plan = json.loads(json.dumps(getattr(small, CUT_PLAN)))
    assert plan == [cut.model_dump(mode="json") for cut in controller.cut_plan()]
    fresh = apply_cut_plan(make(name, seed=1)[0], plan)
    fresh.load_state_dict(small.state_dict())
    assert relative_difference(outputs_of(small, batch), outputs_of(fresh, batch)) == 0


@pytest.mark.parametrize("name", ["residual", "text_transformer", "vision_transformer", "temporal"])
def test_cut_model_can_be_cut_again(name: str) -> None:
    model, batch = make(name)
    once = pruned(model, batch, 0.3).strip()
    twice = pruned(once, batch, 0.4).strip()
    assert num_parameters(twice) < num_parameters(model) * 0.6
    fresh = apply_cut_plan(make(name, seed=1)[0], getattr(twice, CUT_PLAN))
    fresh.load_state_dict(twice.state_dict())
    assert relative_difference(outputs_of(twice, batch), outputs_of(fresh, batch)) == 0


@pytest.mark.parametrize(
    ("cut", "words"),
    [
        ({"layer": "9", "kind": "outputs", "size": 24, "kept": [0]}, "no such layer"),
        ({"layer": "0", "kind": "outputs", "size": 23, "kept": [0]}, "23 outputs of '0'.*with the arguments"),
        ({"layer": "0", "kind": "heads", "size": 24, "kept": [0]}, "24 heads of '0'"),
        ({"layer": "0", "kind": "rows", "size": 24, "kept": [0]}, "24 rows of '0'"),
        ({"layer": "0", "kind": "outputs", "size": 24, "kept": [1, 1]}, "rising"),
        ({"layer": "0", "kind": "outputs", "size": 24, "kept": [24]}, r"\[0, 24\)"),
        ({"layer": "0", "kind": "outputs", "size": 24, "kept": []}, "at least one"),
    ],
)
def test_cut_plan_for_another_model_is_refused(cut: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        apply_cut_plan(mlp(), [cut])


def test_damaged_cut_plan_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="kept"):
        apply_cut_plan(mlp(), [{"layer": "0", "kind": "outputs", "size": 24}])
    with pytest.raises(ConfigurationError, match="before"):
        apply_cut_plan(mlp(), [{"layer": "0", "attribute": "out_features", "after": 3}])


class OwnGroupNorm(nn.GroupNorm):
    """A normalization that a project derives from torch's."""


class OwnPReLU(nn.PReLU):
    """An activation that a project derives from torch's."""


@pytest.mark.parametrize("middle", [OwnGroupNorm(4, 12), OwnPReLU(12)], ids=["GroupNorm", "PReLU"])
def test_classes_derived_from_torchs_are_cut_too(middle: nn.Module) -> None:
    model, batch = disturb(perceptron(middle)), torch.randn(4, 6)
    controller = pruned(model, batch, 0.5)
    cut = controller.strip()
    assert len(cut.get_parameter("0.weight")) < 12
    assert difference(model, cut, batch) <= TOLERANCE
