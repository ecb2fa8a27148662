"""Open and run ONNX models in onnxruntime, with the same options for verification and for timing."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kedro_aat.errors import ExportError
from kedro_aat.export.signature import select_arguments, structured

METADATA_KEY = "kedro_aat.paths"  # in the metadata of a file whose names differ from the model's


def open_session(file: bytes, num_threads: int = 1) -> Any:
    """Load a serialized ONNX model on the CPU.

    Returns:
        An `onnxruntime.InferenceSession` (onnxruntime ships no types).

    Raises:
        ExportError: onnxruntime cannot load it.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors are raised; on the terminal, those of sizes that are tried look like faults
    try:
        return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the error classes of onnxruntime are private
        raise ExportError(f"onnxruntime cannot load the ONNX model: {error}") from error


def run_session(session: Any, batch: Tensor) -> Tensor:
    """Run a session with one input and return its first output."""
    (name,) = (node.name for node in session.get_inputs())
    return torch.from_numpy(session.run(None, {name: batch.detach().numpy()})[0])


def bind_session(session: Any, batch: Sequence[NDArray[Any]]) -> Callable[[], None]:
    """Return a function that runs a session on a batch, one array per input, without passing arrays each time."""
    binding = session.io_binding()
    for node, array in zip(session.get_inputs(), batch, strict=True):
        binding.bind_cpu_input(node.name, array)
    for output in session.get_outputs():
        binding.bind_output(output.name)
    return partial(session.run_with_iobinding, binding)


class FileModel(nn.Module):
    """A file as a module, so that code that evaluates modules can evaluate the file.

    It is called as the model is: with tensors by position or by name, in structures or alone. It returns a tensor if
    the model does; tuples for lists and tuples; and for mappings and dataclasses `NamedOutputs`, whose parts are found
    by key, attribute and position.

    Args:
        inputs: What the model calls each input of the file, in the file's order.
        outputs: What the model calls each output.
    """

    def __init__(self, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        super().__init__()
        self._inputs, self._outputs = list(inputs), list(outputs)
        # For functions that ask for the device of the first parameter.
        self.no_weights = nn.Parameter(torch.empty(0), requires_grad=False)

    @property
    def names(self) -> tuple[list[str], list[str]]:
        """What the model calls the inputs and outputs, in the file's order."""
        return self._inputs, self._outputs

    def compute(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Runs the file on tensors on the CPU, in the order of its inputs."""
        raise NotImplementedError  # each runtime has its own

    def run(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        """Runs the file on tensors in the order of its inputs; returns its outputs by the model's names for them."""
        device = tensors[0].device if tensors else torch.device("cpu")
        results = self.compute([tensor.detach().cpu() for tensor in tensors])
        return {name: result.to(device) for name, result in zip(self._outputs, results, strict=True)}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the file on the CPU; the outputs are on the device of the inputs."""
        return structured(self.run(select_arguments(self._inputs, args, kwargs)))


class OnnxModel(FileModel):
    """An ONNX model as a module.

    Args:
        model: The model as it is written to the file.

    Raises:
        ExportError: onnxruntime cannot load it.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        paths = paths_of(model)
        super().__init__(
            [paths.get(each.name, each.name) for each in model.graph.input],
            [paths.get(each.name, each.name) for each in model.graph.output],
        )
        self._session = open_session(model.SerializeToString())
        self._names = [node.name for node in self._session.get_inputs()]

    def compute(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Runs onnxruntime."""
        feed = {name: tensor.numpy() for name, tensor in zip(self._names, tensors, strict=True)}
        return [torch.from_numpy(np.asarray(array)) for array in self._session.run(None, feed)]


def paths_of(model: onnx.ModelProto) -> dict[str, str]:
    """Name in the file -> name in the model, for inputs and outputs that have another name in the file."""
    texts = [each.value for each in model.metadata_props if each.key == METADATA_KEY]
    try:
        known = json.loads(texts[0]) if texts else {}
    except ValueError:
        return {}
    return {str(name): str(path) for name, path in known.items()} if isinstance(known, dict) else {}
