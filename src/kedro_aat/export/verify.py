"""Verify that an exported file computes what its model computes: read it back, run it, and compare the outputs."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.export import ExportedProgram

from kedro_aat.errors import ExportError
from kedro_aat.export.openvino_file import OpenvinoFiles, OpenvinoModel
from kedro_aat.export.session import OnnxModel
from kedro_aat.modes import evaluating, quiet


@dataclass(frozen=True)
class Agreement:
    """How closely an exported file agrees with its model.

    Attributes:
        difference: Largest absolute difference between two outputs, as a fraction of the largest absolute output of
            the model; 0 is perfect.
        same_labels: Fraction in [0, 1] of equal labels, that is, indices of the largest output along dimension 1
            (the classes); None if the outputs have fewer than two classes.
        batch_sizes: The batch sizes that were compared.
    """

    difference: float
    same_labels: float | None
    batch_sizes: tuple[int, ...]


def verify_onnx(onnx_model: onnx.ModelProto, model: nn.Module, inputs: Tensor, *, tolerance: float = 1e-4) -> Agreement:
    """Run an ONNX model in onnxruntime on the CPU, and compare it with its model in evaluation mode.

    The ONNX model is serialized and read back first. Both run all inputs in one batch, and the first input alone.

    Args:
        onnx_model: Result of `to_onnx` for the model.
        model: The torch model, on the CPU.
        inputs: (B, ...) with B at least 1; real examples reveal more than random numbers.
        tolerance: Largest `Agreement.difference` that passes. float32 gives about 1e-6; int8 needs more.

    Returns:
        The agreement, within the tolerance.

    Raises:
        ExportError: The outputs differ by more than the tolerance, or in shape, or the file does not run.
    """
    return _compare("ONNX file", OnnxModel(onnx_model), model, inputs, tolerance)


def verify_program(program: ExportedProgram, model: nn.Module, inputs: Tensor, *, tolerance: float = 1e-4) -> Agreement:
    """Save a program in the format of a `.pt2` file, load it, and compare it with its model in evaluation mode.

    Args:
        program: Result of `to_program` for the model.
        model: The torch model, on the CPU.
        inputs: (B, ...) with B at least 1.
        tolerance: Largest `Agreement.difference` that passes; a program usually agrees exactly.

    Returns:
        The agreement, within the tolerance.

    Raises:
        ExportError: The outputs differ by more than the tolerance, or in shape, or the file does not run.
    """
    return _compare("exported program", read_back(program), model, inputs, tolerance)


def verify_openvino(files: OpenvinoFiles, model: nn.Module, inputs: Tensor, *, tolerance: float = 1e-4) -> Agreement:
    """Run OpenVINO's files in OpenVINO on the CPU, and compare them with their model in evaluation mode.

    Args:
        files: Result of `to_openvino` for the ONNX file of the model.
        model: The torch model, on the CPU.
        inputs: (B, ...) with B at least 1.
        tolerance: Largest `Agreement.difference` that passes. float32 gives about 1e-6; int8 needs more.

    Returns:
        The agreement, within the tolerance.

    Raises:
        ExportError: The outputs differ by more than the tolerance, or in shape, or the files do not run.
    """
    return _compare("OpenVINO model", OpenvinoModel(files), model, inputs, tolerance)


class _Program(nn.Module):
    """A loaded program as a module that accepts `eval()`, which the program's own module refuses."""

    def __init__(self, program: ExportedProgram) -> None:
        super().__init__()
        self._run = [program.module()]  # in a list, so that it is not a submodule that eval() reaches

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self._run[0](inputs)
        return outputs


def read_back(program: ExportedProgram) -> nn.Module:
    """Write a program in the format of a `.pt2` file, and return the program that is read from it as a module.

    Reading runs code that is in the file, so it stays in memory, where nobody else can write.
    """
    file = io.BytesIO()
    with quiet():
        torch.export.save(program, file)
        file.seek(0)
        return _Program(torch.export.load(file))


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


def _compare(kind: str, exported: nn.Module, model: nn.Module, inputs: Tensor, tolerance: float) -> Agreement:
    batches = [inputs if len(inputs) > 1 else torch.cat([inputs, inputs]), inputs[:1]]
    differences, labels = [], []
    for batch in batches:
        with evaluating(model), torch.no_grad():
            expected = model(batch)
        try:
            with torch.no_grad():
                got = exported(batch)
        except Exception as error:  # each runtime has its own classes of errors
            raise ExportError(f"the {kind} does not run with a batch of {len(batch)}: {error}") from error
        if got.shape != expected.shape:
            raise ExportError(
                f"the {kind} gives an output of shape {tuple(got.shape)} for a batch of {len(batch)}, "
                f"but the model gives {tuple(expected.shape)}."
            )
        differences.append(_difference(got, expected))
        if expected.ndim >= 2 and expected.shape[1] >= 2:
            labels.append(float((got.argmax(1) == expected.argmax(1)).double().mean()))

    # The worse of the two batches. Unlike np.max, max() can ignore a NaN.
    agreement = Agreement(
        difference=float(np.max(differences)),
        same_labels=min(labels) if labels else None,
        batch_sizes=tuple(len(batch) for batch in batches),
    )
    if not agreement.difference <= tolerance:
        raise ExportError(_disagreement(kind, agreement, tolerance))
    return agreement


def _difference(got: Tensor, expected: Tensor) -> float:
    largest = float(expected.abs().max())
    difference = float((got - expected).abs().max())
    return difference / largest if largest > 0 else difference


def _disagreement(kind: str, agreement: Agreement, tolerance: float) -> str:
    if not math.isfinite(agreement.difference):
        return f"the {kind} or its model gives outputs that are not finite: check the model with these inputs."
    labels = "" if agreement.same_labels is None else f"; {agreement.same_labels:.1%} of the labels are equal"
    return (
        f"the {kind} differs from its model by {agreement.difference:.2g} of the largest output, more than "
        f"the tolerance of {tolerance:.2g}{labels}. Was the model changed after it was exported? Does its "
        "forward draw random numbers? If the file is quantized, raise `tolerance`."
    )
