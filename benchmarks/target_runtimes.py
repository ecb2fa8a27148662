"""Writes a model for a runtime, and runs the file: ONNX, `.pt2`, the other targets, LiteRT for Microcontrollers."""

from __future__ import annotations

import io
import timeit
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.target_micro import MicroModel
from kedro_aat.export.onnx_file import to_onnx
from kedro_aat.export.program import to_program
from kedro_aat.export.session import OnnxModel, bind_session, open_session
from kedro_aat.export.settings import ExportSettings
from kedro_aat.export.targets.executorch_settings import ExecutorchSettings
from kedro_aat.export.targets.registry import TargetName, target_of
from kedro_aat.export.targets.target import TargetFile
from kedro_aat.export.verify import read_back

BATCH_SIZES = (1, 64)
_NUM_SESSIONS = 5  # a session is faster or slower depending on the addresses of its memory
_TURN = 0.0003  # seconds, short enough to fall between two interruptions

Bind = Callable[[Sequence[NDArray[Any]]], Callable[[], object]]


@dataclass(frozen=True)
class Written:
    """A model's file in a runtime.

    Attributes:
        num_bytes: Of the file.
        loaded: The file as a module that takes any batch size.
        bind: Makes a function that runs the file on arrays, in one thread; None if its time means nothing here.
        batch_size: The only one that the file takes; None for any.
        arena_bytes: Memory for inputs, outputs and values in between; None if it is not planned.
        operators: Number of operators of the runtime that the file needs; None if unknown.
        expected_bytes: The most that `arena_bytes` should be; None if it is not expected.
    """

    num_bytes: int
    loaded: nn.Module
    bind: Bind | None = None
    batch_size: int | None = None
    arena_bytes: int | None = None
    operators: int | None = None
    expected_bytes: int | None = None


class Exported:
    """A trained model and its files, each of which is written once.

    Args:
        model: On the CPU, in evaluation mode; it may be quantized.
        inputs: (B, ...) - examples.
    """

    def __init__(self, model: nn.Module, inputs: Tensor) -> None:
        self.model, self.inputs = model, inputs
        self._settings = ExportSettings(batch_sizes=BATCH_SIZES)

    @cached_property
    def onnx(self) -> onnx.ModelProto:
        return to_onnx(self.model, self.inputs, self._settings)

    @cached_property
    def _litert(self) -> TargetFile:
        return target_of("litert").write(self.model, self.inputs, self._settings, self.onnx)

    def for_torch(self) -> Written:
        return Written(0, self.model, partial(_bind_module, self.model))

    def for_onnx(self) -> Written:
        content = self.onnx.SerializeToString()
        operators = len({node.op_type for node in self.onnx.graph.node})
        bind: Bind = lambda batch: bind_session(open_session(content), batch)  # noqa: E731
        return Written(len(content), OnnxModel(self.onnx), bind, operators=operators)

    def for_pt2(self) -> Written:
        program = to_program(self.model, self.inputs, self._settings)
        file = io.BytesIO()
        torch.export.save(program, file)
        loaded = read_back(program)
        operators = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
        return Written(len(file.getvalue()), loaded, partial(_bind_module, loaded), operators=len(operators))

    def for_target(self, name: TargetName, settings: ExportSettings | None = None) -> Written:
        if name == "litert":
            file = self._litert
        else:
            file = target_of(name).write(self.model, self.inputs, settings or self._settings, self.onnx)
        target, details = target_of(name), file.details
        return Written(
            file.num_bytes,
            target.read_back(file),
            lambda batch: target.bind(file, batch, 1),
            file.batch_size,
            details.arena_bytes,
            len(details.operators) or None,
        )

    def for_portable(self) -> Written:
        portable = ExecutorchSettings(backend="portable")
        return self.for_target("executorch", ExportSettings(batch_sizes=BATCH_SIZES, executorch=portable))

    def for_microcontrollers(self) -> Written:
        content = self._litert.parts[".tflite"]
        model = MicroModel(content, self.inputs[:1])
        details = self._litert.details
        planned = (details.arena_bytes or 0) + (details.runtime_bytes or 0)
        return Written(len(content), model, None, 1, model.arena_bytes, len(details.operators), planned)


RUNTIMES: Mapping[str, Callable[[Exported], Written]] = {
    "onnx": Exported.for_onnx,
    "pt2": Exported.for_pt2,
    "openvino": lambda exported: exported.for_target("openvino"),
    "executorch": lambda exported: exported.for_target("executorch"),
    "executorch-portable": Exported.for_portable,
    "litert": lambda exported: exported.for_target("litert"),
    "litert-micro": Exported.for_microcontrollers,
}


def fastest(binds: Mapping[str, Bind], batch: Sequence[NDArray[Any]], seconds: float) -> dict[str, float]:
    """Milliseconds of the fastest of many short turns of each file, in which all files take part one after the other.

    Args:
        binds: Each opens a file.
        batch: The inputs.
        seconds: Time for all of them together.
    """
    times = dict.fromkeys(binds, float("inf"))
    for _ in range(_NUM_SESSIONS):
        timers = {name: timeit.Timer(bind(batch)) for name, bind in binds.items()}
        counts = {name: max(1, int(_TURN / _warm(timer))) for name, timer in timers.items()}
        deadline = timeit.default_timer() + seconds / _NUM_SESSIONS
        while True:
            for name, timer in timers.items():
                times[name] = min(times[name], 1000 * timer.timeit(counts[name]) / counts[name])
            if timeit.default_timer() > deadline:
                break
    return times


def _warm(timer: timeit.Timer) -> float:
    timer.timeit(3)
    return timer.timeit(3) / 3


def _bind_module(module: nn.Module, batch: Sequence[NDArray[Any]]) -> Callable[[], object]:
    return partial(_call, module, [torch.from_numpy(array) for array in batch])


@torch.no_grad()
def _call(module: nn.Module, tensors: Sequence[Tensor]) -> object:
    return module(*tensors)
