"""Every compression controller passes the contract suite. Add the settings of a new controller to `CONTROLLERS`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from torch import Tensor, nn

from kedro_aat import CompressionStage
from kedro_aat.compression.build import build_controller
from kedro_aat.compression.composite import CompositeController
from kedro_aat.compression.controller import ModelController
from kedro_aat.compression.schedule import ScheduleSettings
from kedro_aat.compression.settings import (
    Composite,
    CompressionSettings,
    FilterPruning,
    KnowledgeDistillation,
    MagnitudeSparsity,
    Quantization,
)
from kedro_aat.testing.controllers import ControllerContract, dense_parameters
from kedro_aat.testing.training import BATCH, small_net

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
    """A composite is scheduled by its adaptive algorithm; the others may compress the model at rate 0, too."""

    def compress(self, model: nn.Module, settings: Any, schedule: ScheduleSettings | None = None) -> ModelController:
        schedule = schedule or ScheduleSettings(kind="constant")
        if not isinstance(settings, Composite):
            controller: ModelController = super().compress(model, settings, schedule)
            assert controller.name == settings.algorithm
            return controller
        adaptive = type(settings.compressing[0])(**{**dict(settings.compressing[0]), "schedule": schedule})
        others = [part for part in settings.algorithms if part is not settings.compressing[0]]
        settings = Composite(algorithms=(*others, adaptive))
        composite = CompositeController(model, settings, example_input=BATCH["inputs"])
        composite.calibrate([BATCH["inputs"]])  # the ranges depend on the rate at which they are measured
        assert composite.name == settings.algorithm
        return composite

    def stripped_at_rate_0(self, settings: Any) -> nn.Module:
        model: nn.Module = small_net()
        for part in _others(settings):
            model = build_controller(model, part, example_input=BATCH["inputs"]).strip()
        return model

    def parameters_at_rate_0(self, settings: Any) -> dict[str, Tensor]:
        model = small_net()
        for part in _others(settings):
            build_controller(model, part, example_input=BATCH["inputs"])
        return dense_parameters(model)

    def stage(self, settings: Any, own: CompressionStage) -> CompressionStage:
        return own + CompressionStage.FULLY_COMPRESSED if _others(settings) else own


def _others(settings: CompressionSettings) -> Sequence[CompressionSettings]:
    """The algorithms of a composite besides its adaptive one."""
    return settings.compressing[1:] if isinstance(settings, Composite) else ()


@pytest.mark.parametrize(("left", "right"), list(itertools.product(CompressionStage, repeat=2)))
def test_stages_of_two_algorithms_add_up(left: CompressionStage, right: CompressionStage) -> None:
    together = left + right
    assert together is (left if left is right else CompressionStage.PARTIALLY_COMPRESSED)
