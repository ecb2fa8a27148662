"""OpenVINO's own two files, made of an ONNX model. openvino is an extra, and is imported only when it is asked for."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kedro_aat.errors import ExportError


@dataclass(frozen=True)
class OpenvinoFiles:
    """A model as OpenVINO writes it.

    Attributes:
        graph: What stands in the `.xml` file.
        weights: What stands in the `.bin` file beside it.
    """

    graph: bytes
    weights: bytes

    @property
    def num_bytes(self) -> int:
        """Of both files."""
        return len(self.graph) + len(self.weights)


def to_openvino(onnx_model: onnx.ModelProto) -> OpenvinoFiles:
    """Convert an ONNX model to OpenVINO's files, in the precision that it has.

    Raises:
        ExportError: OpenVINO cannot convert it.
    """
    import openvino

    try:
        model = openvino.convert_model(io.BytesIO(onnx_model.SerializeToString()))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.xml")
            openvino.save_model(model, path, compress_to_fp16=False)  # by default it rounds weights to 16 bits
            return OpenvinoFiles(path.read_bytes(), path.with_suffix(".bin").read_bytes())
    except Exception as error:  # OpenVINO's kinds of error are many
        raise ExportError(f"OpenVINO cannot convert the ONNX model: {error}") from error


def compile_openvino(files: OpenvinoFiles, num_threads: int = 1) -> Any:
    """Read OpenVINO's files and compile them for the CPU, in float32 where they are.

    Returns:
        An `openvino.CompiledModel`.

    Raises:
        ExportError: OpenVINO cannot load them.
    """
    options = {
        "INFERENCE_PRECISION_HINT": "f32",  # some processors would otherwise compute in bf16
        "INFERENCE_NUM_THREADS": num_threads,
        "NUM_STREAMS": 1,
    }
    try:
        return _core().compile_model(_core().read_model(files.graph, files.weights), "CPU", options)
    except Exception as error:  # likewise
        raise ExportError(f"OpenVINO cannot load its files: {error}") from error


@cache
def _core() -> Any:
    """The one of this process.

    Each core gives signal handlers a stack and takes it away when it is deleted; after a second core, deleted last, the
    next signal that Python handles (Ctrl-C, the end of a data loader's worker) would be a segmentation fault.
    """
    import openvino

    return openvino.Core()


def run_openvino(compiled: Any, batch: Tensor) -> Tensor:
    """Run a compiled model with one input and return its first output."""
    return torch.from_numpy(compiled(batch.detach().numpy())[0])


def bound_openvino_run(compiled: Any, batch: NDArray[Any]) -> Callable[[], object]:
    """What runs a compiled model with one input on a batch, without taking arrays in and out each time."""
    import openvino

    request = compiled.create_infer_request()
    request.set_input_tensor(openvino.Tensor(batch, shared_memory=True))
    return partial(request.infer, share_outputs=True)


class OpenvinoModel(nn.Module):
    """OpenVINO's files as a module, so that whatever evaluates modules evaluates the files.

    Args:
        files: As they are written.
    """

    def __init__(self, files: OpenvinoFiles) -> None:
        super().__init__()
        self._compiled = compile_openvino(files)

    def forward(self, inputs: Tensor) -> Tensor:
        """Runs OpenVINO on the CPU; (B, ...) -> (B, ...), on the device of the inputs."""
        return run_openvino(self._compiled, inputs.cpu()).to(inputs.device)
