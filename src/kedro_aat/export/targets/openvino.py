"""OpenVINO as a target: its files are converted from the ONNX model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx
from numpy.typing import NDArray
from torch import nn

from kedro_aat.export.openvino_file import OpenvinoFiles, OpenvinoModel, bind_openvino, compile_openvino, to_openvino
from kedro_aat.export.session import FileModel, paths_of
from kedro_aat.export.settings import ExportSettings
from kedro_aat.export.targets.target import Target, TargetFile
from kedro_aat.model_inputs import ModelInputs


class OpenvinoTarget(Target):
    """OpenVINO's graph and weights, in the precision of the ONNX file."""

    def write(
        self, model: nn.Module, inputs: ModelInputs, settings: ExportSettings, onnx_model: onnx.ModelProto
    ) -> TargetFile:
        """Converts the ONNX model.

        Args:
            model: As in `Target.write`; not used.
            inputs: As there; not used.
            settings: As there; not used.
            onnx_model: The ONNX file of the model.
        """
        return from_files(to_openvino(onnx_model), onnx_model)

    def read_back(self, file: TargetFile) -> FileModel:
        """The files in OpenVINO, compiled for the CPU."""
        return OpenvinoModel(to_files(file), names=(file.inputs, file.outputs))

    def bind(self, file: TargetFile, batch: Sequence[NDArray[Any]], num_threads: int) -> Callable[[], object]:
        """Runs OpenVINO with the arrays in place.

        Args:
            file: OpenVINO's graph and weights.
            batch: As in `Target.bind`.
            num_threads: As there.
        """
        return bind_openvino(compile_openvino(to_files(file), num_threads), batch)


def to_files(file: TargetFile) -> OpenvinoFiles:
    """The files as the catalog keeps them."""
    return OpenvinoFiles(file.parts[".xml"], file.parts[".bin"])


def from_files(files: OpenvinoFiles, onnx_model: onnx.ModelProto) -> TargetFile:
    """The files with the names that the model has for its inputs and outputs.

    Args:
        files: Converted from the ONNX model.
        onnx_model: It knows these names.
    """
    inputs, outputs = OpenvinoModel(files, paths_of(onnx_model)).names
    return TargetFile("openvino", {".xml": files.graph, ".bin": files.weights}, tuple(inputs), tuple(outputs))
