"""What `export_model` of a controller does, which NNCF's scripts call."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from kedro_aat.errors import ModelError
from kedro_aat.model_inputs import ModelInputs, arguments_of, inputs_of_arguments, map_tensors
from kedro_aat.ranks import group
from kedro_aat.storage import local_path

if TYPE_CHECKING:
    from kedro_aat.compression.controller import ModelController


@dataclass(frozen=True)
class ExportWishes:
    """What a script asks of an exported file; None for the exporter's choice.

    Attributes:
        input_names: Names of the inputs.
        output_names: Names of the outputs.
        opset: Version of ONNX's operators.
    """

    input_names: Sequence[str] | None = None
    output_names: Sequence[str] | None = None
    opset: int | None = None

    @classmethod
    def parse(
        cls, save_format: str | None, input_names: Sequence[str] | None, output_names: Sequence[str] | None
    ) -> ExportWishes:
        """Reads the arguments of NNCF's `export_model`.

        Args:
            save_format: `onnx`, or `onnx_` and a version of ONNX's operators; None for `onnx`.
            input_names: Names of the inputs; None for the exporter's.
            output_names: Names of the outputs; None for the exporter's.

        Raises:
            ModelError: If the format is neither `onnx` nor `onnx_` and a number.
        """
        found = re.fullmatch(r"onnx(?:_(\d+))?", save_format or "onnx")
        if found is None:
            raise ModelError(
                f"save_format must be onnx, or onnx_ and a version of its operators, but got {save_format!r}."
            )
        return cls(input_names, output_names, int(found[1]) if found[1] else None)


Exporter = Callable[[nn.Module, ModelInputs, Path, ExportWishes], object]


def write_stripped(
    controller: ModelController, path: str | Path, wishes: ExportWishes, model_args: Sequence[Any] | None
) -> None:
    """Writes the stripped model of a controller to a file; with several ranks, rank 0 alone does.

    Args:
        controller: The controller with its model.
        path: The file to write.
        wishes: What the file shall be like.
        model_args: What the model needs beside its example input, as in `ModelController.export_model`.

    Raises:
        ModelError: If the controller has no exporter or no example input.
    """
    if controller.example_input is None:
        raise ModelError(
            "export_model needs an example input: pass create_compressed_model an example_input, or a config with "
            "input_info.sample_size."
        )
    if controller.exporter is None:
        raise ModelError(
            "export_model only works for controllers from create_compressed_model; for this one, call "
            "kedro_aat.export.onnx_file.to_onnx(controller.strip(), example_input)."
        )
    if not group.is_main():
        return
    inputs = controller.example_input
    if model_args:
        args, kwargs = arguments_of(controller.model, inputs)
        inputs = inputs_of_arguments(controller.model, (*args, *model_args[:-1]), {**kwargs, **model_args[-1]})
    controller.exporter(controller.strip().cpu(), map_tensors(Tensor.cpu, inputs), local_path(path), wishes)
