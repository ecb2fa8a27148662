"""Convert an ONNX model to OpenVINO's two files, and run them. OpenVINO is an extra, imported only when it is used."""

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
from pydantic import ConfigDict
from torch import Tensor, nn

from kedro_aat.errors import ExportError

# Options under which OpenVINO's files are verified and measured.
CPU_OPTIONS = {
    # By default, a CPU with bf16 instructions rounds float32 models to bf16: outputs changed by up to 6 %, measured on
    # the residual network of the tests with OpenVINO 2026.4 and AVX512_BF16.
    "INFERENCE_PRECISION_HINT": "f32",
    "NUM_STREAMS": 1,
}


@dataclass(frozen=True)
class OpenvinoFiles:
    """A model in OpenVINO's format.

    Attributes:
        graph: Contents of the `.xml` file.
        weights: Contents of the `.bin` file with the same stem.
    """

    __pydantic_config__ = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    graph: bytes
    weights: bytes

    @property
    def num_bytes(self) -> int:
        """Size of both files together."""
        return len(self.graph) + len(self.weights)


def to_openvino(onnx_model: onnx.ModelProto) -> OpenvinoFiles:
    """Convert an ONNX model to OpenVINO's files without changing its precision.

    Raises:
        ExportError: OpenVINO cannot convert it.
    """
    import openvino

    try:
        model = openvino.convert_model(io.BytesIO(onnx_model.SerializeToString()))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.xml")
            openvino.save_model(model, path, compress_to_fp16=False)  # the default rounds weights to 16 bits
            return OpenvinoFiles(path.read_bytes(), path.with_suffix(".bin").read_bytes())
    except Exception as error:  # OpenVINO raises many kinds of error
        raise ExportError(f"OpenVINO cannot convert the ONNX model: {error}") from error


def compile_openvino(files: OpenvinoFiles, num_threads: int = 1) -> Any:
    """Read OpenVINO's files and compile them for the CPU; what is stored in float32 is computed in float32.

    Returns:
        An `openvino.CompiledModel`.

    Raises:
        ExportError: OpenVINO cannot load them.
    """
    options = CPU_OPTIONS | {"INFERENCE_NUM_THREADS": num_threads}
    try:
        return openvino_core().compile_model(openvino_core().read_model(files.graph, files.weights), "CPU", options)
    except Exception as error:  # as above
        raise ExportError(f"OpenVINO cannot load its files: {error}") from error


@cache
def openvino_core() -> Any:
    """Return the only `openvino.Core` of this process; never create another one.

    Each core gives signal handlers a stack and removes it when the core is deleted. After a second core was deleted,
    the next signal that Python handles (Ctrl-C, the end of a data loader's worker) would be a segmentation fault.
    """
    import openvino

    return openvino.Core()


def bind_openvino(compiled: Any, batch: NDArray[Any]) -> Callable[[], object]:
    """Return a function that runs a compiled model with one input on a batch, without passing arrays each time."""
    import openvino

    request = compiled.create_infer_request()
    request.set_input_tensor(openvino.Tensor(batch, shared_memory=True))
    return partial(request.infer, share_outputs=True)


class OpenvinoModel(nn.Module):
    """OpenVINO's files as a module, so that code that evaluates modules can evaluate the files.

    Args:
        files: Contents of the two files.

    Raises:
        ExportError: OpenVINO cannot load them.
    """

    def __init__(self, files: OpenvinoFiles) -> None:
        super().__init__()
        self._compiled = compile_openvino(files)
        self.no_weights = torch.nn.Parameter(torch.empty(0), requires_grad=False)  # as in `OnnxModel`

    def forward(self, inputs: Tensor) -> Tensor:
        """Run OpenVINO on the CPU: (B, ...) -> (B, ...), on the device of the inputs."""
        return torch.from_numpy(self._compiled(inputs.detach().cpu().numpy())[0]).to(inputs.device)
