"""What the rehearsal says of models and settings with weights that are divided among devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kedro_aat.config import AatSettings
from kedro_aat.errors import ConfigurationError, RehearsalError
from kedro_aat.validated import parse
from tests.rehearsal.faulty import Case, Plain, settings_of
from tests.rehearsal.test_faults import SPARSE, rehearsed

DIVIDED: dict[str, Any] = SPARSE | {"training": {"sharding": "fully_shard"}}


class Scaled(Plain):
    """A model with a parameter that has no dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(x) * self.scale
        return out


class Peeking(nn.Module):
    """A model that reads the weight of a block without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = Plain()
        self.blocks = nn.ModuleList([nn.Linear(4, 4, bias=False)])

    def forward(self, x: Tensor) -> Tensor:
        block = self.blocks[0]
        assert isinstance(block, nn.Linear)
        return nn.functional.linear(self.plain(x), block.weight)


@pytest.mark.slow  # the search of ranks/test_divided.py divides a model, too
def test_a_model_that_can_be_divided_passes(tmp_path: Path) -> None:
    result = rehearsed(Case(settings=DIVIDED), tmp_path)
    assert result.outcome == "passed"


def test_a_parameter_without_dimensions_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=r"sharding: fully_shard cannot divide .*such as scale.* sharding: none"
    ):
        rehearsed(Case(model=Scaled, settings=DIVIDED), tmp_path)


def test_a_block_that_is_not_called_is_found(tmp_path: Path) -> None:
    with pytest.raises(RehearsalError, match=r"training with divided weights \(training.sharding\)"):
        rehearsed(Case(model=Peeking, settings=DIVIDED), tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"compression": {"algorithm": "quantization"}}, "compression.algorithm: must be magnitude_sparsity or filter"),
        ({"second_stage": {"compression": {"algorithm": "quantization"}}}, "sharding: none, or second_stage: null"),
        ({"compression": [{"algorithm": "magnitude_sparsity"}, {"algorithm": "quantization"}]}, "single algorithm"),
        ({"compression": {"algorithm": "magnitude_sparsity", "pattern": "2:4"}}, "compression.pattern: must be null"),
        ({"compression": {"algorithm": "magnitude_sparsity", "shadow_on_host": True}}, "shadow_on_host: must be false"),
        ({"compression": {"algorithm": "filter_pruning", "importance": "taylor"}}, "importance: must not be taylor"),
        ({"training": {"compile": True}}, "compile must be false, but got True"),
        ({"training": {"precision": "fp16"}}, "precision must be fp32 or bf16, but got fp16"),
        ({"training": {"channels_last": True}}, "channels_last must be false"),
        ({"training": {"on_out_of_memory": "halve_batch"}}, "on_out_of_memory must be error"),
        ({"training": {"validate": "tests.training.user_functions.validate"}}, "validate must be null"),
    ],
)
def test_what_is_not_supported_is_refused_with_the_setting(changes: dict[str, Any], words: str) -> None:
    """Before anything is loaded; each of these settings alone is right."""
    whole = settings_of(Case(settings=SPARSE | changes))
    parse(AatSettings, whole)
    whole["training"] = {**whole["training"], "sharding": "fully_shard"}
    with pytest.raises(ConfigurationError) as error:
        parse(AatSettings, whole)
    assert words in str(error.value)
    assert "fully_shard" in str(error.value)


def test_the_goal_of_accuracy_is_refused() -> None:
    goal = {"goal": "accuracy", "export": {"limits": {"parameters": 100}}, "second_stage": None}
    whole = settings_of(Case(settings={"compression": {"algorithm": "filter_pruning"}} | goal))
    whole["search"] = {"kind": "frontier", "num_path_steps": 1}
    parse(AatSettings, whole)
    whole["training"] = {**whole["training"], "sharding": "fully_shard"}
    with pytest.raises(ConfigurationError, match=r"goal: .*size.* training.sharding: fully_shard"):
        parse(AatSettings, whole)
