"""The base class of the controllers of single algorithms: their rate is set by a schedule, and later by a search."""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from typing import Any, Generic, TypeVar

from torch import nn

from kedro_aat.compression.controller import CompressionReport, CompressionStage, ModelController
from kedro_aat.compression.own_buffers import exclude_from_ddp
from kedro_aat.compression.quantization.fake import refuse_compressed
from kedro_aat.compression.schedule import EpochScheduler, PathScheduler
from kedro_aat.compression.settings import SingleAlgorithm
from kedro_aat.errors import ConfigurationError
from kedro_aat.model_inputs import ModelInputs
from kedro_aat.search.tactics import Ranking

S = TypeVar("S", bound=SingleAlgorithm)

# Rates are quotients of whole numbers, which computing them in another way may round differently.
_TOLERANCE = 1e-9

logger = logging.getLogger(__name__)


class ScheduledController(ModelController, Generic[S]):
    """The controller of one algorithm. Subclasses add how a rate is set, measured, described and stripped.

    Args:
        model: The model, changed in place.
        settings: Settings of the algorithm; its defaults if None.
        steps_per_epoch: Optimizer steps per epoch, for rates that change within an epoch; counted if None.
        example_input: What the model is called with, for `export_model`, in any structure; None if unknown.
        is_part: Whether it belongs to a composite, whose other algorithms may compress the same model.

    Raises:
        ModelError: If another algorithm compresses the model already.
    """

    refuses_above_maximum = False  # if not, a rate above the maximum stands for all that there is
    raises_above_maximum = False  # whether a schedule above it is an error
    settings: S
    settings_type: type[S]
    scheduler: EpochScheduler | PathScheduler

    def __init__(
        self,
        model: nn.Module,
        settings: S | None = None,
        *,
        steps_per_epoch: int | None = None,
        example_input: ModelInputs | None = None,
        is_part: bool = False,
    ) -> None:
        settings = settings or self.settings_type()
        super().__init__(model, settings, example_input)
        if not is_part:
            refuse_compressed(model)
        self._requested_rate = 0.0
        self._ranked_by = settings  # the settings, with the importance and ranking that a search has chosen
        self._is_ranked_by_search = False
        self.scheduler = EpochScheduler(settings.schedule, self._set_scheduled_rate, self._before_step)
        if steps_per_epoch is not None:
            self.steps_per_epoch = steps_per_epoch
        self._prepare()
        if not is_part:
            exclude_from_ddp(model)

    @abstractmethod
    def _prepare(self) -> None:
        """Changes the model so that it can be compressed, and sets the initial rate of the schedule."""

    @abstractmethod
    def _compress(self, rate: float) -> None:
        """Compresses the model to a rate in [0, 1)."""

    def _before_step(self) -> None:
        """Called before each optimizer step, while the gradients are still those of the previous step."""

    def apply_masks(self) -> None:
        """Sets masked weights to zero again if an optimizer step changed them since the last forward pass."""

    def rank_by(self, ranking: Ranking) -> None:
        changes = {name: value for name, value in ranking if value is not None}
        self._ranked_by = self.settings_type(**{**dict(self.settings), **changes})
        self._is_ranked_by_search = True

    @property
    def steps_per_epoch(self) -> int | None:
        """Optimizer steps per epoch, for rates that change within an epoch; None if unknown."""
        return self.scheduler.steps_per_epoch

    @steps_per_epoch.setter
    def steps_per_epoch(self, number: int) -> None:
        self.scheduler.steps_per_epoch = number

    def _set_rate(self, rate: float) -> None:
        if not 0 <= rate < 1 or math.isnan(rate):
            raise ValueError(f"compression_rate must be in [0, 1), but got {rate}")
        self._compress(float(rate))
        self._requested_rate = float(rate)

    def _check_schedule(self) -> None:
        """Says that the model cannot have the highest rate of the schedule, before the model is changed.

        Raises:
            ConfigurationError: If `raises_above_maximum`; otherwise it is a warning.
        """
        schedule = self.settings.schedule
        asked = max(schedule.initial_rate, schedule.final_rate)
        if not self.refuses_above_maximum or asked <= self.maximal_compression_rate + _TOLERANCE:
            return
        words = f"the schedule asks for a rate of {asked:.4f}, but {self._words_of_maximum()}"
        advice = "Ask for less, or let more be removed (scopes, round_to, minimal_channels)."
        if self.raises_above_maximum:
            raise ConfigurationError("compression", [f"{words}. {advice}"])
        logger.warning("%s: it stays at that. %s", words.capitalize(), advice)

    def _words_of_maximum(self) -> str:
        most = math.floor(self.maximal_compression_rate * 10_000) / 10_000  # rounded down, so that it can be set
        return f"at most {most:.4f} can be reached with this model and these settings of {self.name}"

    def _set_scheduled_rate(self, rate: float) -> None:
        """Sets a rate of the schedule, or the highest one that the model can have."""
        self._set_rate(min(rate, self.maximal_compression_rate) if self.refuses_above_maximum else rate)

    def _check_settable(self, rate: float) -> None:
        if self.refuses_above_maximum and self.maximal_compression_rate + _TOLERANCE < rate < 1:
            raise ValueError(f"compression_rate is {rate}, but {self._words_of_maximum()}")

    def report(self) -> CompressionReport:
        return CompressionReport(requested_rate=self._requested_rate, achieved_rate=self.achieved_rate)

    def compression_stage(self) -> CompressionStage:
        """Returns FULLY_COMPRESSED at the end of the schedule, and always once a search sets the rate."""
        if isinstance(self.scheduler, PathScheduler):
            return CompressionStage.FULLY_COMPRESSED
        final = self.settings.schedule.final_rate
        if self._requested_rate >= (min(final, self.maximal_compression_rate) if self.refuses_above_maximum else final):
            return CompressionStage.FULLY_COMPRESSED
        return CompressionStage.PARTIALLY_COMPRESSED if self._requested_rate else CompressionStage.UNCOMPRESSED

    def disable_scheduler(self) -> None:
        if not isinstance(self.scheduler, PathScheduler):
            self.scheduler = PathScheduler(self._set_rate, self.steps_per_epoch, self._before_step)

    def get_state(self) -> dict[str, Any]:
        return {
            "requested_rate": self._requested_rate,
            "searching": isinstance(self.scheduler, PathScheduler),
            "scheduler": self.scheduler.get_state(),
        } | ({"ranking": self._ranking().model_dump()} if self._is_ranked_by_search else {})

    def load_state(self, state: dict[str, Any]) -> None:
        if state["searching"]:
            self.disable_scheduler()
        self.scheduler.load_state(state["scheduler"])
        self._requested_rate = state["requested_rate"]
        if "ranking" in state:
            self.rank_by(Ranking.model_validate(state["ranking"]))

    def _ranking(self) -> Ranking:
        """The ranking in use."""
        named = {name: getattr(self._ranked_by, name, None) for name in Ranking.model_fields}
        return Ranking.model_validate(named)
