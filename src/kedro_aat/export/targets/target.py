"""What a target is: a format of files, with the runtime that loads them. Each has a file of its own in this folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, ClassVar

import onnx
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from kedro_aat.errors import ExportError
from kedro_aat.export.session import FileModel
from kedro_aat.export.settings import FileSettings, TargetName
from kedro_aat.model_inputs import ModelInputs


class QuantizedPort(BaseModel):
    """How an input or output of a file stores numbers as integers.

    Attributes:
        dtype: Type of the integers, such as `int8`.
        scale: Difference between two numbers whose integers differ by 1.
        zero_point: The integer that stands for 0.
    """

    model_config = ConfigDict(frozen=True)

    dtype: str
    scale: float
    zero_point: int


class TargetDetails(BaseModel):
    """What a device needs to run a file.

    Attributes:
        operators: Operators of the runtime that the file calls, each once, by the runtime's own names.
        arena_bytes: Memory that the file's plan takes for inputs, outputs and values in between, for the batch size
            that was planned; None if the runtime plans none.
        quantized_inputs: Name of an input -> how it stores numbers; empty if inputs are floating-point numbers.
        quantized_outputs: The same of outputs.
    """

    model_config = ConfigDict(frozen=True)

    operators: tuple[str, ...] = ()
    arena_bytes: int | None = None
    quantized_inputs: dict[str, QuantizedPort] = {}
    quantized_outputs: dict[str, QuantizedPort] = {}


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
    """

    __pydantic_config__ = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    target: TargetName
    parts: Mapping[str, bytes]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    batch_size: int | None = None
    details: TargetDetails = field(default_factory=TargetDetails)

    @property
    def num_bytes(self) -> int:
        """Size of all parts together."""
        return sum(map(len, self.parts.values()))


class Target(ABC):
    """Writes models for a runtime, reads them back and runs them. It has no state.

    Attributes:
        name: As in `export.targets`.
        title: As people write it.
        extra: Extra of this package that installs the runtime; None if every installation has it.
        modules: Modules that must be importable.
        round_to: Multiple of channels that the runtime's kernels are fast with; 1 if any number will do.
    """

    name: ClassVar[TargetName]
    title: ClassVar[str]
    extra: ClassVar[str | None] = None
    modules: ClassVar[tuple[str, ...]] = ()
    round_to: ClassVar[int] = 1

    def require(self) -> None:
        """Checks that the runtime is installed.

        Raises:
            ExportError: If it is not; the message names the extra.
        """
        for module in self.modules:
            try:
                import_module(module)
            except ImportError as error:
                raise ExportError(
                    f"{self.title} cannot be imported ({error}): install it with `pip install 'kedro-aat[{self.extra}]'`, "
                    f"or remove {self.name} from export.targets."
                ) from error

    @abstractmethod
    def write(
        self, model: nn.Module, inputs: ModelInputs, settings: FileSettings, onnx_model: onnx.ModelProto
    ) -> TargetFile:
        """Writes a model for the runtime.

        Args:
            model: On the CPU, in evaluation mode; it may be quantized by this package.
            inputs: Example inputs, in any structure; their shapes, types and ranges matter.
            settings: Which outputs are exported, under which names, and which axes may have any size.
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
    run: Callable[[Sequence[Tensor]], Sequence[Tensor]], tensors: Sequence[Tensor], batch_size: int
) -> list[Tensor]:
    """Runs what takes one batch size on a batch of another; the last piece is filled with its first example.

    Args:
        run: Takes and returns tensors of `batch_size` examples.
        tensors: Inputs, all with the same number of examples, at least 1.
        batch_size: Number of examples of one run.
    """
    size = len(tensors[0])
    pieces: list[Sequence[Tensor]] = []
    for start in range(0, size, batch_size):
        index = torch.arange(start, start + batch_size)
        pieces.append(run([tensor[torch.where(index < size, index, start)] for tensor in tensors]))
    return [torch.cat([piece[port] for piece in pieces])[:size] for port in range(len(pieces[0]))]
