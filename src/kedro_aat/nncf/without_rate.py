"""The controller of a configuration that names no algorithm with a rate: none at all, or distillation alone."""

from __future__ import annotations

import copy
from typing import Any, Literal

from torch import nn

from kedro_aat.compression.controller import CompressionReport, CompressionStage, ModelController
from kedro_aat.compression.distillation import DistillationLoss
from kedro_aat.compression.layer_table import LayerTables
from kedro_aat.compression.settings import KnowledgeDistillation
from kedro_aat.errors import ModelError
from kedro_aat.model_inputs import ModelInputs
from kedro_aat.validated import Settings


class WithoutRate(Settings):
    """What `get_compression_state` says of such a configuration.

    Attributes:
        algorithm: Says that nothing is compressed.
        distillation: Settings of the distillation loss, if there is one.
    """

    algorithm: Literal["none"] = "none"
    distillation: KnowledgeDistillation | None = None


class _NoSchedule:
    """A scheduler that counts nothing and sets nothing."""

    def step(self, next_step: int | None = None) -> None: ...

    def epoch_step(self, next_epoch: int | None = None) -> None: ...

    def get_state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None: ...


class RatelessController(ModelController):
    """Leaves a model as it is; with distillation, its loss keeps the outputs close to those of the model as it was.

    As in NNCF, it counts as fully compressed with distillation, and as uncompressed without.

    Args:
        model: The model; it gets the hooks of the distillation loss.
        settings: What the configuration names.
        example_input: What the model is called with, for `export_model`.
    """

    name = "none"

    def __init__(self, model: nn.Module, settings: WithoutRate, example_input: ModelInputs | None) -> None:
        super().__init__(model, settings, example_input)  # type: ignore[arg-type]  # no algorithm has these settings
        self._distillation = settings.distillation
        self.scheduler = _NoSchedule()
        if settings.distillation is not None:
            self.name = "knowledge_distillation"
            self.loss = DistillationLoss(model, settings.distillation)

    def _set_rate(self, rate: float) -> None:
        raise ModelError(
            f"compression_rate cannot be {rate:g}: the configuration names no algorithm with a rate "
            "(magnitude_sparsity, filter_pruning, quantization). The mode early_exit needs none."
        )

    @property
    def achieved_rate(self) -> float:
        """Always 0."""
        return 0.0

    @property
    def steps_per_epoch(self) -> int | None:
        """None, since no rate changes."""
        return None

    @steps_per_epoch.setter
    def steps_per_epoch(self, number: int) -> None: ...

    def report(self) -> CompressionReport:
        return CompressionReport(requested_rate=0.0, achieved_rate=0.0)

    def compression_stage(self) -> CompressionStage:
        return CompressionStage.FULLY_COMPRESSED if self._distillation else CompressionStage.UNCOMPRESSED

    def disable_scheduler(self) -> None:
        """Does nothing: there is no schedule."""

    def statistics(self, quickly_collected_only: bool = False) -> LayerTables:
        """Returns no table."""
        return LayerTables(())

    def get_state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Does nothing; a teacher is in the model's `state_dict`."""

    def strip(self, do_copy: bool = True) -> nn.Module:
        controller = copy.deepcopy(self) if do_copy else self
        if isinstance(controller.loss, DistillationLoss):
            controller.loss.detach()
        return controller.model
