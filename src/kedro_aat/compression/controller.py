"""What the training loops know of compression, and what all controllers of this package share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from kedro_aat.compression.layer_table import LayerTable, LayerTables
from kedro_aat.errors import ModelError

if TYPE_CHECKING:
    from kedro_aat.compression.settings import CompressionSettings


class CompressionStage(IntEnum):
    """How far a controller's own schedule has come. Two that differ combine to PARTIALLY_COMPRESSED."""

    UNCOMPRESSED = 0
    PARTIALLY_COMPRESSED = 1
    FULLY_COMPRESSED = 2

    def __add__(self, other: int) -> CompressionStage:
        return self if self == other else CompressionStage.PARTIALLY_COMPRESSED


@runtime_checkable
class CompressionScheduler(Protocol):
    """Moves the rate as training goes on."""

    def step(self, next_step: int | None = None) -> None:
        """To be called before each optimizer step."""
        ...

    def epoch_step(self, next_epoch: int | None = None) -> None:
        """To be called before each epoch."""
        ...

    def get_state(self) -> dict[str, Any]:
        """Plain data from which `load_state` goes on."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes on from what `get_state` gave."""
        ...


@dataclass(frozen=True)
class CompressionReport:
    """The rate asked for and the rate reached.

    Attributes:
        requested_rate: In [0, 1).
        achieved_rate: What the user gets, in [0, 1]; measured on the model.
    """

    requested_rate: float
    achieved_rate: float


class CompressionLoss(nn.Module):
    """The loss that an algorithm adds to the task's; ours add none."""

    def forward(self) -> Tensor:
        """A scalar to be added to the task's loss."""
        return torch.zeros(())

    def calculate(self) -> Tensor:
        """The same under its other name."""
        return self.forward()


@runtime_checkable
class CompressionController(Protocol):
    """A model under compression, as the training loops see it. Any object with these works.

    `report()` is asked for where it exists; without it the achieved rate is `compression_rate`.
    """

    name: str
    loss: Any

    @property
    def model(self) -> nn.Module:
        """The model under compression."""
        ...

    @property
    def scheduler(self) -> CompressionScheduler:
        """Moves the rate until `disable_scheduler`."""
        ...

    compression_rate: float
    maximal_compression_rate: float

    def compression_stage(self) -> CompressionStage:
        """How far the controller's own schedule has come."""
        ...

    def disable_scheduler(self) -> None:
        """From now on the rate is set from outside alone."""
        ...

    def statistics(self) -> Any:
        """An object with `to_str()`."""
        ...

    def get_compression_state(self) -> dict[str, Any]:
        """Plain data from which the controller can be built again."""
        ...

    def get_state(self) -> dict[str, Any]:
        """Plain data that changes during training."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes on from what `get_state` gave."""
        ...

    def strip(self) -> nn.Module:
        """The model as it would be exported."""
        ...

    def export_model(self, path: str | Path, *args: Any, **kwargs: Any) -> None:
        """Writes the stripped model to a file."""
        ...


def rates_of(controller: CompressionController) -> CompressionReport:
    """The rates of any controller, also of one that has no `report` of its own."""
    own = getattr(controller, "report", None)
    if own is not None:
        result = own()
        assert isinstance(result, CompressionReport)
        return result
    rate = float(controller.compression_rate)
    return CompressionReport(requested_rate=rate, achieved_rate=rate)


Exporter = Callable[[nn.Module, Tensor, Path], object]


class ModelController(ABC):
    """A controller that owns its model, so that the two pass between nodes, and are deep-copied, as one.

    Args:
        model: The model, changed in place.
        settings: Of the algorithm, or of the composite.
        example_input: A batch for `export_model`, (N, ...), None if unknown.

    Attributes:
        model: Likewise.
        settings: Likewise.
        loss: What the compression adds to the task's loss; there for training functions that add it.
        scheduler: Steps the schedule until `disable_scheduler`, then follows the search.
        example_input: Likewise.
        exporter: Writes a model for an example input to a path, for `export_model`; None if there is none.

    Raises:
        ModelError: If the example input is no tensor.
    """

    name: str
    maximal_compression_rate: float = 1.0
    scheduler: CompressionScheduler

    def __init__(self, model: nn.Module, settings: CompressionSettings, example_input: Tensor | None) -> None:
        require_one_tensor(example_input)
        self.model = model
        self.settings = settings
        self.loss = CompressionLoss()
        self.example_input = example_input
        self.exporter: Exporter | None = None

    @abstractmethod
    def _set_rate(self, rate: float) -> None:
        """Brings the model to a rate in [0, 1), else ValueError."""

    @property
    @abstractmethod
    def achieved_rate(self) -> float:
        """The rate that the model has, in [0, 1]."""

    @property
    def weight_names(self) -> list[str]:
        """Names of the parameters whose zeros are the rate; none where the rate is of something else."""
        return []

    @property
    @abstractmethod
    def steps_per_epoch(self) -> int | None:
        """Optimizer steps in an epoch, for rates that move within one; None if unknown."""

    @steps_per_epoch.setter
    @abstractmethod
    def steps_per_epoch(self, number: int) -> None: ...

    @abstractmethod
    def report(self) -> CompressionReport:
        """The rate asked for, and the rate counted on the model."""

    @abstractmethod
    def compression_stage(self) -> CompressionStage:
        """How far the schedule has come."""

    @abstractmethod
    def disable_scheduler(self) -> None:
        """Ends the schedule; the rate stays what it is until it is set."""

    @abstractmethod
    def statistics(self) -> LayerTable | LayerTables:
        """What the compression did to each layer."""

    @abstractmethod
    def get_state(self) -> dict[str, Any]:
        """What changes during training and is not in the model's `state_dict`, as plain data."""

    @abstractmethod
    def load_state(self, state: dict[str, Any]) -> None:
        """Goes on from `get_state`; tensors come with the model's `state_dict`. A search is never undone."""

    @abstractmethod
    def strip(self, do_copy: bool = True) -> nn.Module:
        """The model as it would be exported.

        Args:
            do_copy: Whether to leave the model under training as it is.
        """

    @property
    def compression_rate(self) -> float:
        """The achieved rate, in [0, 1]. What is set is the requested one, in [0, 1), else ValueError."""
        return self.achieved_rate

    @compression_rate.setter
    def compression_rate(self, rate: float) -> None:
        self._set_rate(rate)

    def get_compression_state(self) -> dict[str, Any]:
        """Settings and state: with the model's `state_dict` all that is needed to build this again."""
        return {"settings": self.settings.model_dump(mode="json"), "state": self.get_state()}

    def export_model(self, path: str | Path, *args: Any, **kwargs: Any) -> None:
        """Writes the stripped model to a file, as NNCF's scripts do.

        Args:
            path: The file.
            *args: Accepted for NNCF's sake (`save_format`, names of inputs) and without effect.
            **kwargs: Likewise.

        Raises:
            ModelError: If no exporter or no example input is known.
        """
        if self.example_input is None:
            raise ModelError(
                "export_model needs an example input: give create_compressed_model a config with "
                "input_info.sample_size, or an example_input."
            )
        if self.exporter is None:
            raise ModelError(
                "export_model needs a controller from create_compressed_model; for this one, call "
                "kedro_aat.export.onnx_file.to_onnx(controller.strip(), example_input)."
            )
        self.exporter(self.strip().cpu(), self.example_input.cpu(), Path(path))


def require_one_tensor(example_input: object) -> None:
    """Sees to it that an example input is a tensor, if there is one.

    Raises:
        ModelError: Says what can be done for a model of several inputs.
    """
    if example_input is not None and not isinstance(example_input, Tensor):
        raise ModelError(
            f"example_input must be one tensor, (N, ...), but got a {type(example_input).__name__}: filter pruning and "
            "export_model know models of one input. For several, magnitude_sparsity and quantization work without an "
            "example_input."
        )
