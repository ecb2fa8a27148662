"""What our own controllers share: a rate that a schedule moves, and later a search."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kedro_aat.compression.controller import CompressionLoss, CompressionReport, CompressionStage
from kedro_aat.compression.schedule import EpochScheduler, PathScheduler
from kedro_aat.compression.settings import AlgorithmSettings
from kedro_aat.errors import ModelError
from kedro_aat.export.onnx_file import to_onnx


class ScheduledController(ABC):
    """A controller of ours; an algorithm adds how a rate is set, counted, described and stripped.

    It owns its model, so that the two pass between nodes, and are deep-copied, as one.

    Args:
        model: The model, changed in place.
        settings: Of the algorithm.
        steps_per_epoch: Optimizer steps in an epoch, for rates that move within one; counted if None.
        example_input: A batch for `export_model`, (N, ...), None if unknown.

    Attributes:
        model: Likewise.
        settings: Likewise.
        loss: Adds nothing; there for training functions that add a compression loss.
        scheduler: Steps the schedule until `disable_scheduler`, then follows the search.
        example_input: Likewise.
    """

    name: str
    maximal_compression_rate = 1.0

    def __init__(
        self,
        model: nn.Module,
        settings: AlgorithmSettings,
        *,
        steps_per_epoch: int | None = None,
        example_input: Tensor | None = None,
    ) -> None:
        self.model = model
        self.settings = settings
        self.loss = CompressionLoss()
        self.example_input = example_input
        self._requested_rate = 0.0
        self.scheduler: EpochScheduler | PathScheduler = EpochScheduler(
            settings.schedule, self._set_rate, self._before_step
        )
        if steps_per_epoch is not None:
            self.steps_per_epoch = steps_per_epoch

    @abstractmethod
    def _compress(self, rate: float) -> None:
        """Brings the model to a rate in [0, 1)."""

    def _before_step(self) -> None:  # noqa: B027 - most algorithms do nothing here
        """Called before each optimizer step, when the gradients are still those of the step before."""

    @property
    @abstractmethod
    def achieved_rate(self) -> float:
        """The rate that the model has, in [0, 1]."""

    @property
    def weight_names(self) -> list[str]:
        """Names of the parameters whose zeros are the rate; none where the rate is of something else."""
        return []

    @abstractmethod
    def statistics(self) -> Any:
        """What became of each layer: `as_frame()` and `to_str()`."""

    @abstractmethod
    def strip(self, do_copy: bool = True) -> nn.Module:
        """The model as it would be exported.

        Args:
            do_copy: Whether to leave the model under training as it is.
        """

    @property
    def steps_per_epoch(self) -> int | None:
        """Optimizer steps in an epoch, for rates that move within one; None if unknown."""
        return self.scheduler.steps_per_epoch

    @steps_per_epoch.setter
    def steps_per_epoch(self, number: int) -> None:
        self.scheduler.steps_per_epoch = number

    @property
    def compression_rate(self) -> float:
        """The achieved rate, in [0, 1]. What is set is the requested one, in [0, 1), else ValueError."""
        return self.achieved_rate

    @compression_rate.setter
    def compression_rate(self, rate: float) -> None:
        self._set_rate(rate)

    def _set_rate(self, rate: float) -> None:
        if not 0 <= rate < 1 or math.isnan(rate):
            raise ValueError(f"compression_rate must be in [0, 1), but got {rate}")
        self._compress(float(rate))
        self._requested_rate = float(rate)

    def report(self) -> CompressionReport:
        """The rate asked for, and the rate counted on the model."""
        return CompressionReport(requested_rate=self._requested_rate, achieved_rate=self.achieved_rate)

    def compression_stage(self) -> CompressionStage:
        """FULLY_COMPRESSED at the end of the schedule, and always once a search sets the rate."""
        if isinstance(self.scheduler, PathScheduler):
            return CompressionStage.FULLY_COMPRESSED
        if self._requested_rate >= self.settings.schedule.final_rate:
            return CompressionStage.FULLY_COMPRESSED
        return CompressionStage.PARTIALLY_COMPRESSED if self._requested_rate else CompressionStage.UNCOMPRESSED

    def disable_scheduler(self) -> None:
        """Ends the schedule; the rate stays what it is until it is set."""
        if not isinstance(self.scheduler, PathScheduler):
            self.scheduler = PathScheduler(self._set_rate, self.steps_per_epoch, self._before_step)

    def get_state(self) -> dict[str, Any]:
        """What changes during training and is not in the model's `state_dict`, as plain data."""
        return {
            "requested_rate": self._requested_rate,
            "searching": isinstance(self.scheduler, PathScheduler),
            "scheduler": self.scheduler.get_state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes on from `get_state`; tensors come with the model's `state_dict`. A search is never undone."""
        if state["searching"]:
            self.disable_scheduler()
        self.scheduler.load_state(state["scheduler"])
        self._requested_rate = state["requested_rate"]

    def get_compression_state(self) -> dict[str, Any]:
        """Settings and state: with the model's `state_dict` all that is needed to build this again."""
        return {"settings": self.settings.model_dump(mode="json"), "state": self.get_state()}

    def export_model(self, path: str | Path, *args: Any, **kwargs: Any) -> None:
        """Writes the stripped model as ONNX.

        Args:
            path: The file.
            *args: Accepted for NNCF's sake (`save_format`, names of inputs) and without effect.
            **kwargs: Likewise.

        Raises:
            ModelError: If no example input is known.
        """
        if self.example_input is None:
            raise ModelError(
                "export_model needs an example input: give create_compressed_model a config with "
                "input_info.sample_size, or an example_input."
            )
        Path(path).write_bytes(to_onnx(self.strip().cpu(), self.example_input.cpu()).SerializeToString())
