"""Every compression controller passes the contract suite. Add the settings of a new controller to `CONTROLLERS`."""

from __future__ import annotations

import itertools

import pytest

from kedro_aat import CompressionStage
from kedro_aat.compression.schedule import ScheduleSettings
from kedro_aat.compression.settings import (
    Composite,
    CompressionSettings,
    FilterPruning,
    KnowledgeDistillation,
    MagnitudeSparsity,
    Quantization,
)
from tests.compression.controller_contract import ControllerContract

HALF_SPARSE = MagnitudeSparsity(schedule=ScheduleSettings(initial_rate=0.5))
CONTROLLERS: list[CompressionSettings] = [
    MagnitudeSparsity(importance="lamp", ranking="global"),
    MagnitudeSparsity(importance="normed_abs", ranking="local"),
    MagnitudeSparsity(pattern="1:4"),
    FilterPruning(importance="l2", ranking="local"),
    FilterPruning(importance="taylor", ranking="global", rate_of="macs"),
    Quantization(),
    Quantization(calibration_only=True),
    Composite(algorithms=(FilterPruning(), Quantization())),
    Composite(algorithms=(Quantization(), MagnitudeSparsity())),
    Composite(algorithms=(HALF_SPARSE, FilterPruning(rate_of="filters"))),
    Composite(algorithms=(Quantization(), KnowledgeDistillation(type="softmax"))),
]


def _name(settings: CompressionSettings) -> str:
    if isinstance(settings, Composite):
        return "+".join(part.algorithm for part in settings.algorithms)
    chosen = [str(getattr(settings, key)) for key in settings.model_fields_set]
    return "-".join([settings.algorithm, *sorted(chosen)])


@pytest.mark.parametrize("settings", CONTROLLERS, ids=_name)
class TestEveryController(ControllerContract):
    pass


@pytest.mark.parametrize(("left", "right"), list(itertools.product(CompressionStage, repeat=2)))
def test_stages_of_two_algorithms_add_up(left: CompressionStage, right: CompressionStage) -> None:
    together = left + right
    assert together is (left if left is right else CompressionStage.PARTIALLY_COMPRESSED)
