"""Verify that an exported file computes what its model computes: read it back, run it, and compare the outputs."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn
from torch.export import ExportedProgram

from kedro_aat.errors import ExportError
from kedro_aat.export.difference import largest_difference
from kedro_aat.export.session import FileModel, OnnxModel
from kedro_aat.export.signature import output_tensors, select_arguments, structured
from kedro_aat.model_inputs import ModelInputs, call_model, num_examples, take_examples
from kedro_aat.modes import evaluating, quiet


@dataclass(frozen=True)
class Agreement:
    """How closely an exported file agrees with its model.

    Attributes:
        difference: Largest absolute difference between two outputs, as a fraction of the largest absolute output of
            the model; for outputs that are whole numbers, the share that differs; 0 is perfect.
        same_labels: Fraction in [0, 1] of equal labels, that is, indices of the largest output along dimension 1
            (the classes); None if the outputs have fewer than two classes.
        batch_sizes: The batch sizes that were compared.
    """

    difference: float
    same_labels: float | None
    batch_sizes: tuple[int, ...]


def verify_onnx(
    onnx_model: onnx.ModelProto, model: nn.Module, inputs: ModelInputs, *, tolerance: float = 1e-4
) -> Agreement:
    """Run an ONNX model in onnxruntime on the CPU, and compare it with its model in evaluation mode.

    The ONNX model is serialized and read back first. Both run all inputs in one batch, and the first input alone.

    Args:
        onnx_model: Result of `to_onnx` for the model.
        model: The torch model, on the CPU.
        inputs: What the model is called with, for at least one example; real ones reveal more than random numbers.
        tolerance: Largest `Agreement.difference` that passes. float32 gives about 1e-6; int8 needs more.

    Returns:
        The agreement, within the tolerance.

    Raises:
        ExportError: The outputs differ by more than the tolerance, or in shape, or the file does not run.
    """
    return _compare("ONNX file", OnnxModel(onnx_model), model, inputs, tolerance)


def verify_program(
    program: ExportedProgram, model: nn.Module, inputs: ModelInputs, *, tolerance: float = 1e-4
) -> Agreement:
    """Save a program in the format of a `.pt2` file, load it, and compare it with its model in evaluation mode.

    Args:
        program: Result of `to_program` for the model.
        model: The torch model, on the CPU.
        inputs: What the model is called with, for at least one example.
        tolerance: Largest `Agreement.difference` that passes; a program usually agrees exactly.

    Returns:
        The agreement, within the tolerance.

    Raises:
        ExportError: The outputs differ by more than the tolerance, or in shape, or the file does not run.
    """
    return _compare("exported program", read_back(program), model, inputs, tolerance)


def verify_file(
    title: str, file: FileModel, model: nn.Module, inputs: ModelInputs, *, tolerance: float = 1e-4
) -> Agreement:
    """Run a target's file in its runtime, and compare it with its model in evaluation mode.

    Args:
        title: What the file is called in errors, such as `OpenVINO file`.
        file: The file, as `Target.read_back` returns it.
        model: The torch model, on the CPU.
        inputs: What the model is called with, for at least one example.
        tolerance: Largest `Agreement.difference` that passes. float32 gives about 1e-6; int8 needs more.

    Returns:
        The agreement, within the tolerance.

    Raises:
        ExportError: The outputs differ by more than the tolerance, or in shape, or the file does not run.
    """
    return _compare(title, file, model, inputs, tolerance)


class ProgramModel(FileModel):
    """A loaded program as a module that accepts `eval()`, which the program's own module refuses.

    Args:
        program: The program that was read.
        num_bytes: Size of the file in bytes.
    """

    def __init__(self, program: ExportedProgram, num_bytes: int) -> None:
        super().__init__([str(name) for name in program.graph_signature.user_inputs], [])
        self.num_bytes = num_bytes
        self._run = [program.module()]  # in a list, so that it is not a submodule that eval() reaches

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        outputs = self._run[0](*select_arguments(self._inputs, args, kwargs))
        return structured(output_tensors(outputs))


def read_back(program: ExportedProgram) -> ProgramModel:
    """Write a program in the format of a `.pt2` file, and return the program that is read from it as a module.

    Reading runs code that is in the file, so it stays in memory, where nobody else can write.
    """
    file = io.BytesIO()
    with quiet():
        torch.export.save(program, file)
        file.seek(0)
        return ProgramModel(torch.export.load(file), len(file.getbuffer()))


def count_zeros(onnx_model: onnx.ModelProto, names: Iterable[str]) -> tuple[int, int]:
    """Count zeros in weights of an ONNX model, to measure a compression rate on the file itself.

    Args:
        onnx_model: Result of `to_onnx` for a model that is not quantized; weights of a quantized one have other names.
        names: Names of the weights in `model.named_parameters()`.

    Returns:
        The number of zeros in these weights, and the number of all their elements.

    Raises:
        ExportError: Weights are not in the file under their names; the message lists all of them.
    """
    tensors = {tensor.name: tensor for tensor in onnx_model.graph.initializer}
    wanted = list(names)
    if missing := [name for name in wanted if name not in tensors]:
        raise ExportError(
            f"no weight named {', '.join(missing)} is in the ONNX model, so its zeros cannot be counted. The "
            "exporter renames weights that it computes (those of parametrized or quantized layers) and drops "
            "weights that the forward pass does not use: remove them from `names`."
        )
    arrays = [numpy_helper.to_array(tensors[name]) for name in wanted]
    return sum(int(np.sum(array == 0)) for array in arrays), sum(array.size for array in arrays)


def _compare(kind: str, exported: nn.Module, model: nn.Module, inputs: ModelInputs, tolerance: float) -> Agreement:
    more = inputs if num_examples(inputs) > 1 else take_examples(inputs, torch.zeros(2, dtype=torch.long))
    differences, labels = [], []
    for batch in (more, take_examples(inputs, slice(1))):
        size = num_examples(batch)
        with evaluating(model), torch.no_grad():
            every = output_tensors(call_model(model, batch))
        try:
            with torch.no_grad():
                got = output_tensors(call_model(exported, batch))
        except Exception as error:  # each runtime has its own classes of errors
            raise ExportError(f"the {kind} does not run with a batch of {size}: {error}") from error
        # The settings may leave out some of the model's outputs.
        expected = {name: every[name] for name in got if name in every}
        try:
            differences.append(largest_difference(got, expected))
        except ExportError as error:
            raise ExportError(f"the {kind}, for a batch of {size}, {error}") from error
        labels += [
            float((got[name].argmax(1) == tensor.argmax(1)).double().mean())
            for name, tensor in expected.items()
            if tensor.ndim >= 2 and tensor.shape[1] >= 2 and tensor.is_floating_point()
        ]

    # The worse of the two batches. Unlike np.max, max() can ignore a NaN.
    agreement = Agreement(
        difference=float(np.max(differences)),
        same_labels=min(labels) if labels else None,
        batch_sizes=(num_examples(more), 1),
    )
    if not agreement.difference <= tolerance:
        raise ExportError(_disagreement(kind, agreement, tolerance))
    return agreement


def _disagreement(kind: str, agreement: Agreement, tolerance: float) -> str:
    if not math.isfinite(agreement.difference):
        return f"the {kind} or its model gives outputs that are not finite: check the model with these inputs."
    labels = "" if agreement.same_labels is None else f"; {agreement.same_labels:.1%} of the labels are equal"
    return (
        f"the {kind} differs from its model by {agreement.difference:.2g} of the largest output, more than "
        f"the tolerance of {tolerance:.2g}{labels}. Was the model changed after it was exported? Does its "
        "forward draw random numbers? If the file is quantized, raise `tolerance`."
    )
