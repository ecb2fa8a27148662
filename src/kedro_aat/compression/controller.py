"""What the training loops know of compression: a rate to set, a rate to read, and a schedule to step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    import pandas as pd


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


@dataclass(frozen=True)
class LayerStatistics:
    """What became of one layer's weight."""

    name: str
    shape: tuple[int, ...]
    num_weights: int
    num_zeros: int

    @property
    def rate(self) -> float:
        """Share of zeros, in [0, 1]."""
        return self.num_zeros / self.num_weights


@dataclass(frozen=True)
class CompressionStatistics:
    """What became of every compressed layer, and of all together.

    Attributes:
        algorithm: Its name.
        layers: All that are not ignored.
        left_dense: Name of a layer's weight -> why it cannot be compressed.
    """

    algorithm: str
    layers: Sequence[LayerStatistics]
    left_dense: Mapping[str, str] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Zeros over the weights of all layers that are not ignored, in [0, 1]; 0 where there are none."""
        num_weights = sum(layer.num_weights for layer in self.layers)
        return sum(layer.num_zeros for layer in self.layers) / num_weights if num_weights else 0.0

    def as_frame(self) -> pd.DataFrame:
        """One row a layer: name, shape, weights, zeros, rate."""
        import pandas as pd

        return pd.DataFrame(
            {
                "layer": [layer.name for layer in self.layers],
                "shape": ["x".join(map(str, layer.shape)) for layer in self.layers],
                "weights": [layer.num_weights for layer in self.layers],
                "zeros": [layer.num_zeros for layer in self.layers],
                "rate": [layer.rate for layer in self.layers],
            }
        )

    def to_str(self) -> str:
        """A table for a terminal."""
        table = self.as_frame().to_string(index=False, float_format=lambda rate: f"{rate:.4f}")
        dense = "".join(f"\n{name} stays dense: {reason}" for name, reason in self.left_dense.items())
        return f"{self.algorithm}: {self.rate:.4f} of the weights are zero\n{table}{dense}"


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


def report(controller: CompressionController) -> CompressionReport:
    """The rates of any controller, also of one that has no `report` of its own."""
    own = getattr(controller, "report", None)
    if own is not None:
        result = own()
        assert isinstance(result, CompressionReport)
        return result
    rate = float(controller.compression_rate)
    return CompressionReport(requested_rate=rate, achieved_rate=rate)


class Uncompressed:
    """A controller that does nothing, so that a baseline is trained by the same functions."""

    name = "uncompressed"
    maximal_compression_rate = 0.0
    compression_rate = 0.0

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.loss = CompressionLoss()
        self.scheduler: CompressionScheduler = self

    def step(self, next_step: int | None = None) -> None:
        """Nothing to step."""

    def epoch_step(self, next_epoch: int | None = None) -> None:
        """Nothing to step."""

    def compression_stage(self) -> CompressionStage:
        """Always UNCOMPRESSED."""
        return CompressionStage.UNCOMPRESSED

    def disable_scheduler(self) -> None:
        """Nothing to disable."""

    def statistics(self) -> CompressionStatistics:
        """No layer is compressed."""
        return CompressionStatistics(self.name, [])

    def get_compression_state(self) -> dict[str, Any]:
        """No state."""
        return {}

    def get_state(self) -> dict[str, Any]:
        """No state."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """No state."""

    def strip(self) -> nn.Module:
        """The model itself."""
        return self.model

    def export_model(self, path: str | Path, *args: Any, **kwargs: Any) -> None:
        """Not for export."""
        raise NotImplementedError("an uncompressed baseline is exported by the export node")
