"""Open and run ONNX models in onnxruntime, with the same options for verification and for timing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kedro_aat.errors import ExportError


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
    options.log_severity_level = 3  # errors only
    try:
        return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the error classes of onnxruntime are private
        raise ExportError(f"onnxruntime cannot load the ONNX model: {error}") from error


def run_session(session: Any, batch: Tensor) -> Tensor:
    """Run a session with one input and return its first output."""
    (name,) = (node.name for node in session.get_inputs())
    return torch.from_numpy(session.run(None, {name: batch.detach().numpy()})[0])


def bind_session(session: Any, batch: NDArray[Any]) -> Callable[[], None]:
    """Return a function that runs a session with one input on a batch, without passing arrays each time."""
    binding = session.io_binding()
    binding.bind_cpu_input(session.get_inputs()[0].name, batch)
    for output in session.get_outputs():
        binding.bind_output(output.name)
    return partial(session.run_with_iobinding, binding)


class OnnxModel(nn.Module):
    """An ONNX model as a module, so that code that evaluates modules can evaluate the file.

    Args:
        model: The model as it is written to the file.

    Raises:
        ExportError: onnxruntime cannot load it.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        self._session = open_session(model.SerializeToString())
        # For functions that ask for the device of the first parameter.
        self.no_weights = nn.Parameter(torch.empty(0), requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Run onnxruntime on the CPU: (B, ...) -> (B, ...), on the device of the inputs."""
        return run_session(self._session, inputs.cpu()).to(inputs.device)
