"""Convert an ONNX model to OpenVINO's two files, and run them. OpenVINO is an extra, imported only when it is used."""

from __future__ import annotations

import io
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from pydantic import ConfigDict
from torch import Tensor

from kedro_aat.errors import ExportError
from kedro_aat.export.session import FileModel
from kedro_aat.modes import quiet

# Options under which OpenVINO's files are verified and measured.
CPU_OPTIONS = {
    # By default, a CPU with bf16 instructions rounds float32 models to bf16: outputs changed by up to 6 %, measured on
    # the residual network of the tests with OpenVINO 2026.4 and AVX512_BF16.
    "INFERENCE_PRECISION_HINT": "f32",
    "NUM_STREAMS": 1,
}


# A name that OpenVINO gives an operator: one of its types, and a number.
_COUNTED = re.compile(r"[A-Za-z]\w*_\d+")


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
        with quiet():  # its telemetry forks, of which JAX warns, where LiteRT has loaded it
            model = openvino.convert_model(io.BytesIO(onnx_model.SerializeToString()))
        _number_operators(model, onnx_model)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.xml")
            openvino.save_model(model, path, compress_to_fp16=False)  # the default rounds weights to 16 bits
            return OpenvinoFiles(path.read_bytes(), path.with_suffix(".bin").read_bytes())
    except Exception as error:  # OpenVINO raises many kinds of error
        raise ExportError(f"OpenVINO cannot convert the ONNX model: {error}") from error


def _number_operators(model: Any, onnx_model: onnx.ModelProto) -> None:
    """Names what OpenVINO named itself by its place in the graph.

    OpenVINO counts on through the whole process, so that a second file of the same model would have other bytes.
    """
    graph = onnx_model.graph
    values = [*graph.input, *graph.output, *graph.initializer, *graph.node]
    known = {each.name for each in values} | {name for node in graph.node for name in node.output}
    for number, operator in enumerate(model.get_ordered_ops()):
        name = operator.get_friendly_name()
        if name not in known and _COUNTED.fullmatch(name):
            operator.set_friendly_name(f"{operator.get_type_name()}_{number}_")  # OpenVINO ends no name like this


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


def bind_openvino(compiled: Any, batch: Sequence[NDArray[Any]]) -> Callable[[], object]:
    """Return a function that runs a compiled model on a batch, an array per input, without passing arrays each time."""
    import openvino

    request = compiled.create_infer_request()
    for index, array in enumerate(batch):
        request.set_input_tensor(index, openvino.Tensor(array, shared_memory=True))
    return partial(request.infer, share_outputs=True)


class OpenvinoModel(FileModel):
    """OpenVINO's files as a module.

    Args:
        files: Contents of the two files.
        paths: Name in the files -> name in the model, where they differ: `paths_of` the ONNX model.
        names: What the model calls the inputs and outputs, in the order of the files; None for the names in the files.

    Raises:
        ExportError: OpenVINO cannot load them.
    """

    def __init__(
        self,
        files: OpenvinoFiles,
        paths: Mapping[str, str] | None = None,
        names: tuple[Sequence[str], Sequence[str]] | None = None,
    ) -> None:
        compiled = compile_openvino(files)
        known = paths or {}
        in_files = (
            [known.get(name, name) for port in ports for name in [port.get_any_name()]]
            for ports in (compiled.inputs, compiled.outputs)
        )
        super().__init__(*(names or in_files))
        self._compiled = compiled

    def compute(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Runs OpenVINO."""
        results = self._compiled([tensor.numpy() for tensor in tensors])
        return [torch.from_numpy(np.array(results[index])) for index in range(len(self._compiled.outputs))]
