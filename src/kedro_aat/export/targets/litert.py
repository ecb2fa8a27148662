"""LiteRT, the former TensorFlow Lite: `.tflite` files for phones, embedded Linux and microcontrollers.

The file takes one example, in the layout of the model: (1, channels, height, width) for images. LiteRT's convolutions
have the channels last, so the file begins with a transposition if there are several channels.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kedro_aat.compression.quantization.layers import quantized_spec
from kedro_aat.errors import ExportError
from kedro_aat.export.session import FileModel
from kedro_aat.export.settings import ExportSettings
from kedro_aat.export.signature import input_tensors, output_tensors
from kedro_aat.export.subject import Subject, require_cpu
from kedro_aat.export.targets.litert_file import Flatbuffer
from kedro_aat.export.targets.litert_integers import Rescaling, complete
from kedro_aat.export.targets.target import Target, TargetFile, in_pieces
from kedro_aat.model_inputs import ModelInputs
from kedro_aat.modes import evaluating, first_cause, quiet
from kedro_aat.wrapped import unwrapped

_SUFFIX = ".tflite"
_OPERATOR = re.compile(r"\b(?:aten|tfl|stablehlo|quantized_decomposed)(?:::|\.)\w+(?:\.\w+)*")
# Examples from which ranges are taken that were not trained.
_MOST_EXAMPLES = 256


class LitertTarget(Target):
    """A `.tflite` file for one example, in float32 or int8."""

    def write(
        self, model: nn.Module, inputs: ModelInputs, settings: ExportSettings, onnx_model: onnx.ModelProto
    ) -> TargetFile:
        """Traces the model and converts it; all axes keep the size of the example.

        A quantized model becomes int8 where LiteRT has int8 kernels, with its trained ranges; ranges that were not
        trained are those of up to 256 examples.

        Args:
            model: On the CPU; it may be quantized by this package.
            inputs: Example inputs; with a quantized model, their values matter.
            settings: Which outputs are exported, under which names, and whether the file takes integers.
            onnx_model: Unused, since the file is written from the model.
        """
        model = unwrapped(model)
        require_cpu(model)
        subject = Subject(model, inputs, settings)
        axes = subject.output_axes()
        for name, axis in zip(subject.outputs, axes, strict=True):
            if subject.batched and axis is None:
                raise ExportError(
                    f"{subject.name} cannot be written for LiteRT, whose file takes one example: the output {name} of "
                    f"shape {tuple(subject.outputs[name].shape)} for 2 examples has no axis that grows with the "
                    "batch. Name the other outputs under `export.outputs`."
                )
        is_quantized = quantized_spec(model) is not None
        # Neither the guards nor the mode of training concern the converter.
        module = subject.trace_batch(1, "decomposed" if is_quantized else "plain").module(check_guards=False)
        module.training = False
        rescalings: set[Rescaling] = set()
        if is_quantized:
            with evaluating(model), quiet():
                rescalings = complete(module, _single_examples(input_tensors(model, inputs), subject.batched))
        tensors = _first(subject.inputs, subject.batched)
        listed = module if subject.is_plain else _Listed(module)
        flat = Flatbuffer(_converted(listed, tensors, is_quantized, subject.name))
        flat.name_ports(settings.input_names or tuple(subject.inputs), settings.output_names or tuple(subject.outputs))
        flat.rescale(rescalings)
        if not settings.litert.integer_io:
            flat.take_floats()
        return TargetFile(
            "litert",
            {_SUFFIX: flat.to_bytes()},
            tuple(subject.inputs),
            tuple(subject.outputs),
            batch_size=1 if subject.batched else None,
            batch_axes=axes if subject.batched else (),
            details=flat.details(),
        )

    def read_back(self, file: TargetFile) -> FileModel:
        """The file as a module that runs it for any number of examples, one after the other.

        Raises:
            ExportError: If LiteRT cannot load it.
        """
        return _LitertModel(file)

    def bind(self, file: TargetFile, batch: Sequence[NDArray[Any]], num_threads: int) -> Callable[[], object]:
        """A function that runs the file on one example.

        Args:
            file: The file.
            batch: An array per input, with one example.
            num_threads: Number of threads within an operator.

        Raises:
            ExportError: If LiteRT cannot load the file.
        """
        interpreter = _interpreter(file, num_threads)
        for port, array in zip(interpreter.get_input_details(), batch, strict=True):
            interpreter.set_tensor(port["index"], _to_port(array, port))
        return interpreter.invoke  # type: ignore[no-any-return]  # ai_edge_litert ships no types


class _Listed(nn.Module):
    """A program with its outputs in a row, since the converter names those of a mapping by their keys."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(output_tensors(self.program(*tensors)).values())


class _LitertModel(FileModel):
    def __init__(self, file: TargetFile) -> None:
        super().__init__(file.inputs, file.outputs)
        self._file = file
        self._interpreter = _interpreter(file, num_threads=1)

    def compute(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Runs LiteRT."""
        with torch.no_grad():
            return in_pieces(self._file, self._run, tensors, 1)

    def _run(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        for port, tensor in zip(self._interpreter.get_input_details(), tensors, strict=True):
            self._interpreter.set_tensor(port["index"], _to_port(tensor.numpy(), port))
        self._interpreter.invoke()
        return [
            torch.from_numpy(_from_port(self._interpreter.get_tensor(port["index"]), port))
            for port in self._interpreter.get_output_details()
        ]


def _interpreter(file: TargetFile, num_threads: int) -> Any:
    """An `ai_edge_litert.interpreter.Interpreter` that is ready to run."""
    try:
        with _silent():
            interpreter = import_module("ai_edge_litert.interpreter").Interpreter(
                model_content=file.parts[_SUFFIX], num_threads=num_threads
            )
            interpreter.allocate_tensors()
    except Exception as error:  # ValueError, RuntimeError and others
        raise ExportError(f"LiteRT cannot load its file: {first_cause(error)}") from error
    return interpreter


def _to_port(array: NDArray[Any], port: Mapping[str, Any]) -> NDArray[Any]:
    """The numbers as the file takes them."""
    scale, zero_point = port["quantization"]
    if not scale:
        return np.ascontiguousarray(array, dtype=port["dtype"])
    limits = np.iinfo(port["dtype"])
    integers: NDArray[Any] = np.clip(np.round(array / scale) + zero_point, limits.min, limits.max).astype(port["dtype"])
    return integers


def _from_port(array: NDArray[Any], port: Mapping[str, Any]) -> NDArray[Any]:
    """The numbers that the file gave."""
    scale, zero_point = port["quantization"]
    return (array.astype(np.float32) - zero_point) * np.float32(scale) if scale else array


def _single_examples(tensors: Mapping[str, Tensor], batched: Sequence[str]) -> Iterator[tuple[Tensor, ...]]:
    size = min([len(tensors[name]) for name in batched] + [_MOST_EXAMPLES])
    for number in range(size if batched else 1):
        yield _first(
            {name: tensor[number:] if name in batched else tensor for name, tensor in tensors.items()}, batched
        )


def _first(tensors: Mapping[str, Tensor], batched: Sequence[str]) -> tuple[Tensor, ...]:
    """The first example of a batch, as a batch of 1."""
    return tuple(tensor[:1] if name in batched else tensor for name, tensor in tensors.items())


def _converted(module: nn.Module, tensors: tuple[Tensor, ...], is_quantized: bool, name: str) -> bytes:
    """The file as LiteRT's converter writes it."""
    os.environ.setdefault("LITERT_TORCH_SHOW_PROGRESS", "n")
    try:
        with _silent(), quiet():
            litert_torch = import_module("litert_torch")
            config = None
            if is_quantized:
                quantizer = import_module("litert_torch.quantize.pt2e_quantizer")
                scheme = quantizer.get_symmetric_quantization_config(is_per_channel=True)
                config = import_module("litert_torch.quantize.quant_config").QuantConfig(
                    pt2e_quantizer=quantizer.PT2EQuantizer().set_global(scheme)
                )
            content: bytes = litert_torch.convert(module, tensors, quant_config=config).model_content()
    except Exception as error:  # the converter raises many kinds of error
        found = _OPERATOR.findall(str(error))
        operator = f" because of the operator {found[-1]}" if found else ""
        raise ExportError(
            f"{name} cannot be written for LiteRT{operator}. LiteRT says: {first_cause(error)}"
        ) from error
    return content


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keeps what LiteRT's C++ code writes to the standard error stream off the terminal."""
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(saved, 2)
        os.close(saved)
