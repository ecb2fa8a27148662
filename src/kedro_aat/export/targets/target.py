"""What a target is: a format of files, with the runtime that loads them. Each has a file of its own in this folder."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx
import torch
from numpy.typing import NDArray
from pydantic import ConfigDict, RootModel
from torch import Tensor, nn

from kedro_aat.errors import ExportError
from kedro_aat.export.session import FileModel
from kedro_aat.export.settings import ExportSettings
from kedro_aat.export.targets.details import TargetDetails
from kedro_aat.export.targets.registry import TargetName
from kedro_aat.model_inputs import ModelInputs


@dataclass(frozen=True)
class TargetFile:
    """A model in the format of a target; pydantic writes it as JSON.

    Attributes:
        target: Name of the target.
        parts: Suffix of each file -> its contents, such as `.pte`; the first one is the graph.
        inputs: What the model calls each input, in the file's order.
        outputs: What the model calls each output, in the file's order.
        batch_size: The only batch size that the file takes; None for any.
        details: What a device needs to run it.
        batch_axes: The axis of each output that grows with the batch, None for no such axis; empty if it is the first
            one of all.
    """

    __pydantic_config__ = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    target: TargetName
    parts: Mapping[str, bytes]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    batch_size: int | None = None
    details: TargetDetails = field(default_factory=TargetDetails)
    batch_axes: tuple[int | None, ...] = ()

    @property
    def description(self) -> bytes:
        """All but the parts as JSON, which is written beside the file."""
        described = RootModel[TargetFile](self).model_dump(mode="json", exclude={"parts"})
        return json.dumps(described, indent=2).encode()

    @property
    def num_bytes(self) -> int:
        """Size of all parts together."""
        return sum(map(len, self.parts.values()))

    def joined(self, pieces: Sequence[Sequence[Tensor]], batch_size: int, size: int) -> list[Tensor]:
        """The outputs for a batch that was run in pieces.

        Args:
            pieces: The outputs of each piece; the last piece may be smaller, or be filled up.
            batch_size: Number of examples of the first piece, at least 1.
            size: Number of examples of the batch, at least 1.

        Raises:
            ExportError: If an output has no axis for the batch.
        """
        results = []
        for name, axis, *parts in zip(self.outputs, self.batch_axes or (0,) * len(self.outputs), *pieces, strict=True):
            if axis is None:
                raise ExportError(
                    f"{name} has no axis that grows with the batch, so a batch of {size} cannot be run in "
                    f"{len(pieces)} pieces: leave {name} out of `export.outputs`."
                )
            # An example may have several rows, as pixels of an image have.
            num_rows = size * parts[0].shape[axis] // batch_size
            results.append(torch.cat(parts, axis).narrow(axis, 0, num_rows))
        return results


class Target(ABC):
    """Writes models for a runtime, reads them back and runs them; it has no state. `registry.py` lists all targets."""

    @abstractmethod
    def write(
        self, model: nn.Module, inputs: ModelInputs, settings: ExportSettings, onnx_model: onnx.ModelProto
    ) -> TargetFile:
        """Writes a model for the runtime.

        Args:
            model: On the CPU, in evaluation mode; it may be quantized by this package.
            inputs: Example inputs, in any structure; their shapes, types and ranges matter.
            settings: Which outputs are exported, which axes may have any size, and the target's own settings.
            onnx_model: The ONNX file of the model.

        Raises:
            ExportError: If the runtime cannot express the model; the message names the operator.
        """

    @abstractmethod
    def read_back(self, file: TargetFile) -> FileModel:
        """The file as a module that runs it in its runtime, for any batch size.

        Raises:
            ExportError: If the runtime cannot load it.
        """

    @abstractmethod
    def bind(self, file: TargetFile, batch: Sequence[NDArray[Any]], num_threads: int) -> Callable[[], object]:
        """A function that runs the file on a batch, an array per input, to measure the time of one run.

        Args:
            file: The file.
            batch: Inputs, of the file's own batch size if it takes one only.
            num_threads: Number of threads within an operator.

        Raises:
            ExportError: If the runtime cannot load the file.
        """


def in_pieces(
    file: TargetFile, run: Callable[[Sequence[Tensor]], Sequence[Tensor]], tensors: Sequence[Tensor], batch_size: int
) -> list[Tensor]:
    """Runs what takes one batch size on a batch of another; the last piece is filled with its first example.

    Args:
        file: Whose outputs these are.
        run: Takes and returns tensors of `batch_size` examples.
        tensors: Inputs, all with the same number of examples, at least 1.
        batch_size: Number of examples of one run.

    Raises:
        ExportError: If an output has no axis for the batch.
    """
    size = len(tensors[0])
    pieces: list[Sequence[Tensor]] = []
    for start in range(0, size, batch_size):
        index = torch.arange(start, start + batch_size)
        pieces.append(run([tensor[torch.where(index < size, index, start)] for tensor in tensors]))
    return file.joined(pieces, batch_size, size)
