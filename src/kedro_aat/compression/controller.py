"""The protocol that the training loops ask of a controller, and the base class of all controllers in this package."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from kedro_aat.compression.exporting import Exporter, ExportWishes, write_stripped
from kedro_aat.compression.layer_table import LayerTable, LayerTables
from kedro_aat.compression.rate_limit import LIMIT_STEP, RateLimit
from kedro_aat.errors import ModelError
from kedro_aat.model_inputs import ModelInputs
from kedro_aat.ranks import group

if TYPE_CHECKING:
    from kedro_aat.compression.filters.compact import CompactModel
    from kedro_aat.compression.settings import CompressionSettings
    from kedro_aat.search.tactics import Ranking


class CompressionStage(IntEnum):
    """How far a controller's own schedule has come. Two different stages add up to PARTIALLY_COMPRESSED."""

    UNCOMPRESSED = 0
    PARTIALLY_COMPRESSED = 1
    FULLY_COMPRESSED = 2

    def __add__(self, other: int) -> CompressionStage:
        return self if self == other else CompressionStage.PARTIALLY_COMPRESSED


@runtime_checkable
class CompressionScheduler(Protocol):
    """Changes the rate during training."""

    def step(self, next_step: int | None = None) -> None:
        """Begins an optimizer step: the next one, or the given one. Call it before each step."""
        ...

    def epoch_step(self, next_epoch: int | None = None) -> None:
        """Begins an epoch: the next one, or the given one. Call it before each epoch."""
        ...

    def get_state(self) -> dict[str, Any]:
        """Returns plain data for `load_state`."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Continues from what `get_state` returned."""
        ...


@dataclass(frozen=True)
class CompressionReport:
    """The requested and the achieved compression rate.

    Attributes:
        requested_rate: The rate that was set, in [0, 1).
        achieved_rate: The rate measured on the model, in [0, 1].
    """

    requested_rate: float
    achieved_rate: float


class CompressionLoss(nn.Module):
    """The term that an algorithm adds to the task's loss; 0 for all algorithms here except distillation."""

    def forward(self) -> Tensor:
        """Returns a scalar to add to the task's loss."""
        return torch.zeros(())

    def calculate(self) -> Tensor:
        """Calls `forward`, under NNCF's other name for it."""
        return self.forward()


@runtime_checkable
class CompressionController(Protocol):
    """A model under compression, as the training loops see it. Any object with these members works.

    If it also has `report()`, the loops take both rates from there; otherwise `compression_rate` is the requested and
    the achieved rate.
    """

    name: str
    loss: Any

    @property
    def model(self) -> nn.Module:
        """The model under compression."""
        ...

    @property
    def scheduler(self) -> CompressionScheduler:
        """Changes the rate until `disable_scheduler` is called."""
        ...

    compression_rate: float
    maximal_compression_rate: float

    def compression_stage(self) -> CompressionStage:
        """How far the controller's own schedule has come."""
        ...

    def disable_scheduler(self) -> None:
        """Ends the schedule: from now on the rate changes only when it is set."""
        ...

    def statistics(self) -> Any:
        """Returns an object with `to_str()`."""
        ...

    def get_compression_state(self) -> dict[str, Any]:
        """Returns plain data from which the controller can be rebuilt."""
        ...

    def get_state(self) -> dict[str, Any]:
        """Returns plain data that changes during training."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Continues from what `get_state` returned."""
        ...

    def strip(self) -> nn.Module:
        """Returns the model as it would be exported."""
        ...

    def export_model(self, path: str | Path, *args: Any, **kwargs: Any) -> None:
        """Writes the stripped model to a file.

        Args:
            path: The file.
            *args: As those of `ModelController.export_model`.
            **kwargs: Likewise.
        """
        ...


@runtime_checkable
class RanksByTactic(Protocol):
    """A controller that can rank what it removes in several ways."""

    first_target_rate: float
    regrows: bool

    @property
    def rankings(self) -> tuple[Ranking, ...]:
        """The ways, the configured one first."""
        ...

    def rank_by(self, ranking: Ranking) -> None:
        """Ranks in this way from now on."""
        ...


def rates_of(controller: CompressionController) -> CompressionReport:
    """Returns the rates of any controller, with or without a `report` method."""
    own = getattr(controller, "report", None)
    if own is not None:
        result = own()
        assert isinstance(result, CompressionReport)
        return result
    rate = float(controller.compression_rate)
    return CompressionReport(requested_rate=rate, achieved_rate=rate)


class ModelController(ABC):
    """A controller that owns its model, so that the two are passed between nodes and deep-copied as one object.

    Args:
        model: The model, changed in place.
        settings: Settings of the algorithm, or of the composite.
        example_input: What the model is called with, for `export_model`, in any structure; None if unknown.

    Attributes:
        maximal_compression_rate: Highest rate that the model can have.
        first_target_rate: A rate that most models bear, at which a search may begin.
        rankings: The ways to rank what is removed, the configured one first; empty if there is no choice.
        regrows: Whether what comes back as zeros, when the rate falls, learns again. Filters before a normalization do
            not, since their scale is zero as well.
        model: The model under compression.
        settings: The settings that were passed in.
        loss: The term that training functions add to the task's loss.
        scheduler: Follows the schedule until `disable_scheduler` is called, then the rate paths of the search.
        example_input: The batch that was passed in.
        exporter: Writes a model with an example input to a path, for `export_model`; None if there is none.
        limit: Where the same rate can cost more or less, a rate that is set is raised until this holds; None for none.
    """

    name: str
    maximal_compression_rate: float = 1.0
    first_target_rate: float = 0.5
    rankings: tuple[Ranking, ...] = ()
    regrows: bool = False
    scheduler: CompressionScheduler

    def __init__(self, model: nn.Module, settings: CompressionSettings, example_input: ModelInputs | None) -> None:
        self.model = model
        self.settings = settings
        self.loss = CompressionLoss()
        self.example_input = example_input
        self.exporter: Exporter | None = None
        self.limit: RateLimit | None = None

    @abstractmethod
    def _set_rate(self, rate: float) -> None:
        """Compresses the model to a rate in [0, 1); raises ValueError for any other."""

    def _check_settable(self, rate: float) -> None:  # noqa: B027 - most controllers accept every rate
        """Raises ValueError if a rate in [0, 1) is above the maximum of the model."""

    @property
    @abstractmethod
    def achieved_rate(self) -> float:
        """The rate measured on the model, in [0, 1]."""

    @property
    def weight_names(self) -> list[str]:
        """Names of the parameters whose share of zeros is the rate; empty if the rate is not about zeros."""
        return []

    @property
    def rated_parameters(self) -> tuple[int, int] | None:
        """Number of parameters that the rate counts, and of all parameters; None if the rate counts something else."""
        return None

    @property
    def rate_words(self) -> str | None:
        """What the rate is the share of, such as `parameters removed`; None if it is not known."""
        return None

    @property
    @abstractmethod
    def steps_per_epoch(self) -> int | None:
        """Optimizer steps per epoch, for rates that change within an epoch; None if unknown."""

    @steps_per_epoch.setter
    @abstractmethod
    def steps_per_epoch(self, number: int) -> None: ...

    @abstractmethod
    def report(self) -> CompressionReport:
        """Returns the requested rate and the rate measured on the model."""

    @abstractmethod
    def compression_stage(self) -> CompressionStage:
        """Returns how far the schedule has come."""

    @abstractmethod
    def disable_scheduler(self) -> None:
        """Ends the schedule; the rate stays the same until it is set."""

    @abstractmethod
    def statistics(self, quickly_collected_only: bool = False) -> LayerTable | LayerTables:
        """Returns what the compression did to each layer.

        Args:
            quickly_collected_only: An argument of NNCF's, without effect: everything is collected quickly.
        """

    @abstractmethod
    def get_state(self) -> dict[str, Any]:
        """Returns what changes during training and is not in the model's `state_dict`, as plain data."""

    @abstractmethod
    def load_state(self, state: dict[str, Any]) -> None:
        """Continues from `get_state`; the tensors are in the model's `state_dict`.

        A controller that a search has taken over does not return to its schedule.
        """

    @abstractmethod
    def strip(self, do_copy: bool = True) -> nn.Module:
        """Returns the model as it would be exported.

        Args:
            do_copy: Whether to strip a copy and leave the model under training unchanged.
        """

    @property
    def compression_rate(self) -> float:
        """The achieved rate, in [0, 1].

        Setting it sets the requested rate, in [0, 1), or raises ValueError; so does a rate above the model's maximum.
        """
        return self.achieved_rate

    @compression_rate.setter
    def compression_rate(self, rate: float) -> None:
        self._check_settable(rate)
        self._set_rate(rate)
        if self.limit is None or rate < self.limit.rate:
            return
        while not self.limit.holds(self) and (rate := 1 - (1 - rate) * LIMIT_STEP) <= self.maximal_compression_rate:
            self._set_rate(rate)

    def rank_by(self, ranking: Ranking) -> None:  # noqa: B027 - without a choice there is nothing to do
        """Ranks what is removed in one of `rankings` from now on.

        From then on, what comes back when the rate falls begins at zero.
        """

    def compact(self, last: CompactModel | None = None, *, to_train: bool = False) -> CompactModel | None:
        """Returns a cut copy of the model as it is now, which computes the same and costs less.

        Args:
            last: What the previous call returned; returned again, with the present weights, if the cut is the same.
            to_train: Whether the copy shall be trained for the rest of an epoch.

        Returns:
            None if the algorithm cuts nothing, or if the copy cannot be trained because the rate changes meanwhile.

        Raises:
            ModelError: If there should be a copy, but the model cannot be copied, or its copy does not run.
        """
        return None

    def compiled(self, mode: str | None = None) -> Callable[..., Any]:
        """Returns the model as `torch.compile` makes it for training; calls of the model itself stay as they are.

        Args:
            mode: Mode of `torch.compile`; None for its default.
        """
        model: Any = torch.compile(self.model, mode=mode)
        self._mask_before(model)
        return model  # type: ignore[no-any-return]  # torch's stubs promise a callable, and it is a module

    def _mask_before(self, compiled: nn.Module) -> None:  # noqa: B027 - not all algorithms have masks
        """Applies the masks before each call of a compiled form of the model, if there are any."""

    def divide(self) -> None:
        """Divides masks as `fully_shard` has divided the weights; all ranks then set and measure rates together.

        Raises:
            ModelError: If the algorithm cannot work on divided weights.
        """
        raise ModelError(f"{self.name} cannot compress divided weights; set training.sharding: none.")

    @property
    def macs_share(self) -> float:
        """Share of the multiply-accumulate operations that a cut copy of the model has left, in (0, 1]."""
        return 1.0

    def get_compression_state(self) -> dict[str, Any]:
        """Returns settings and state; with the model's `state_dict` they are enough to rebuild the controller."""
        return {"settings": self.settings.model_dump(mode="json"), "state": self.get_state()}

    def distributed(self) -> None:
        """Gives all ranks rank 0's parameters, buffers and state; nothing in a single process.

        Scripts for NNCF call it on all ranks when they put `DistributedDataParallel` around the model, before or after.
        """
        if not group.is_distributed():
            return
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            group.copied(tensor.detach())
        state = group.told(self.get_state())
        if not group.is_main():
            self.load_state(state)

    def export_model(
        self,
        path: str | Path,
        save_format: str | None = None,
        input_names: Sequence[str] | None = None,
        output_names: Sequence[str] | None = None,
        model_args: Sequence[Any] | None = None,
    ) -> None:
        """Writes the stripped model to a file, as NNCF's scripts do; with several ranks, rank 0 alone does.

        Args:
            path: The file to write.
            save_format: `onnx`, or `onnx_20` for version 20 of ONNX's operators, of which a warning says if the model
                cannot be written in it; None for the version that fits best.
            input_names: Names of the inputs in the file, in the order of the example input.
            output_names: Names of the outputs in the file.
            model_args: What the model needs beside its example input: further positional arguments, and at the end a
                mapping of keyword arguments.

        Raises:
            ModelError: If the controller has no exporter or no example input, or the format is another one.
            ExportError: If the names do not fit the model, or it cannot be exported.
        """
        write_stripped(self, path, ExportWishes.parse(save_format, input_names, output_names), model_args)
