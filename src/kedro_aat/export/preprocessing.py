"""An ONNX file that takes raw numbers: the preprocessing that the settings state, as nodes in front of the model."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from kedro_aat.errors import ExportError
from kedro_aat.export.described import Preprocessing, Scaling
from kedro_aat.export.difference import largest_difference
from kedro_aat.export.sample import dtype_of, is_quantized, sample_inputs
from kedro_aat.export.session import METADATA_KEY, open_session, paths_of
from kedro_aat.export.signature import unique_names

# Largest difference of the outputs, as a fraction of the largest: both compute the same, but in another order perhaps.
_TOLERANCE, _QUANTIZED_TOLERANCE = 1e-4, 0.1


def with_preprocessing(model: onnx.ModelProto, preprocessing: Preprocessing) -> onnx.ModelProto:
    """A copy of a model that takes raw numbers.

    Each input that is prepared gets a name of its own, `raw_NAME`, so that nobody gives it prepared numbers; the others
    stay as they are. What is computed is `scaled` of the raw numbers, in the type of the model's input.

    Args:
        model: The delivered file.
        preprocessing: What is to be computed; its `inputs` are names of inputs of the file.

    Raises:
        ExportError: If the file has no such input, or one of another number of channels, or of whole numbers.
    """
    raw = onnx.ModelProto()
    raw.CopyFrom(model)
    inputs, paths, names = {value.name: value for value in raw.graph.input}, paths_of(model), _Names(raw.graph)
    nodes: list[onnx.NodeProto] = []
    for name, scaling in preprocessing.inputs.items():
        if name not in inputs:
            raise ExportError(f"export.preprocessing names the input {name}, but the file has {', '.join(inputs)}.")
        value, kind = inputs[name], dtype_of(inputs[name])
        if kind.kind != "f":
            raise ExportError(f"export.preprocessing scales the input {name}, but it takes {kind}, not fractions.")
        steps = _steps(name, scaling, [size.dim_value for size in value.type.tensor_type.shape.dim])
        value.name = names.free(f"raw_{name}")
        # The last result is the model's own input, so that nothing after it changes.
        results = [*(names.free(f"{value.name}_{operator.lower()}") for operator, _ in steps[:-1]), name]
        for given, (operator, constant), result in zip([value.name, *results], steps, results, strict=False):
            if operator == "Cast":
                nodes.append(helper.make_node("Cast", [given], [result], to=value.type.tensor_type.elem_type))
                continue
            factor = names.free(f"{result}_factor")
            raw.graph.initializer.append(numpy_helper.from_array(constant.astype(kind), factor))
            nodes.append(helper.make_node(operator, [given, factor], [result]))
        value.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(scaling.raw_type))
        paths[value.name] = paths.pop(name, name)
    later = list(raw.graph.node)
    del raw.graph.node[:]
    raw.graph.node.extend([*nodes, *later])
    _write_paths(raw, paths)
    onnx.checker.check_model(raw, full_check=True)
    return raw


class _Names:
    """Names that are free in a graph."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._taken = {value.name for value in (*graph.input, *graph.initializer)}
        self._taken |= {name for node in graph.node for name in (*node.input, *node.output)}

    def free(self, wanted: str) -> str:
        (name,) = unique_names([wanted], self._taken, "_")
        self._taken.add(name)
        return name


def _write_paths(model: onnx.ModelProto, paths: Mapping[str, str]) -> None:
    """Writes what the model calls its inputs and outputs, as `paths_of` reads it."""
    kept = [each for each in model.metadata_props if each.key != METADATA_KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    if renamed := {name: path for name, path in paths.items() if name != path}:
        model.metadata_props.add(key=METADATA_KEY, value=json.dumps(renamed))


def verified_with_preprocessing(model: onnx.ModelProto, preprocessing: Preprocessing) -> onnx.ModelProto:
    """The result of `with_preprocessing`, run on made-up raw numbers and compared with what the model gives by hand.

    Args:
        model: The delivered file.
        preprocessing: What is to be computed.

    Raises:
        ExportError: As `with_preprocessing`, or if the outputs differ.
    """
    raw = with_preprocessing(model, preprocessing)
    prepared, given = sample_inputs(model), {}
    for before, after in zip(model.graph.input, raw.graph.input, strict=True):
        given[after.name] = prepared[before.name]
        if (scaling := preprocessing.inputs.get(before.name)) is not None:
            numbers = _raw_numbers(prepared[before.name].shape, scaling)
            given[after.name] = numbers
            prepared[before.name] = scaled(numbers, scaling).astype(prepared[before.name].dtype)
    expected = _outputs(model, prepared)
    found = largest_difference(_outputs(raw, given), expected)
    tolerance = _QUANTIZED_TOLERANCE if is_quantized(model) else _TOLERANCE
    if not found <= tolerance:
        raise ExportError(
            f"{found:.2g} of the largest output is the difference between the file for raw numbers and the delivered "
            f"one with inputs prepared by hand, where at most {tolerance:g} is allowed: leave out "
            "export.preprocessing.in_file, and prepare inputs before the model."
        )
    return raw


def _outputs(model: onnx.ModelProto, inputs: Mapping[str, NDArray[Any]]) -> dict[str, torch.Tensor]:
    session = open_session(model.SerializeToString())
    names = [output.name for output in session.get_outputs()]
    try:
        arrays = session.run(None, dict(inputs))
    except Exception as error:  # the error classes of onnxruntime are private
        raise ExportError(f"the file does not run with made-up inputs, so that it is not compared: {error}") from error
    return {name: torch.from_numpy(np.asarray(array)) for name, array in zip(names, arrays, strict=True)}


def _raw_numbers(shape: tuple[int, ...], scaling: Scaling) -> NDArray[Any]:
    """Made-up raw numbers over the range of their type, or from 0 to what the scale brings to 1."""
    kind = np.dtype(scaling.raw_type)
    number = math.prod(shape)
    if kind.kind == "f":
        return np.linspace(0, 1 / scaling.scale, number).astype(kind).reshape(shape)
    return (37 * np.arange(number) % min(251, np.iinfo(kind).max)).astype(kind).reshape(shape)


def scaled(raw: NDArray[Any], scaling: Scaling) -> NDArray[Any]:
    """The numbers that the model takes, computed by hand, to compare the file with.

    Args:
        raw: Raw numbers, of any type.
        scaling: How they become what the model takes.

    Returns:
        (same shape) as float32.
    """
    numbers = raw.astype(np.float32)
    for operator, constant in _steps("raw", scaling, list(raw.shape)):
        factor = constant.astype(np.float32)
        match operator:
            case "Mul":
                numbers = numbers * factor
            case "Sub":
                numbers = numbers - factor
            case "Div":
                numbers = numbers / factor
    return numbers


def _steps(name: str, scaling: Scaling, sizes: list[int]) -> list[tuple[str, NDArray[Any]]]:
    """Operators and their constants, which are broadcast along the axis of the channels; at least one operator."""
    steps: list[tuple[str, NDArray[Any]]] = [("Cast", np.zeros(()))]
    if scaling.scale != 1:
        steps.append(("Mul", np.asarray(scaling.scale)))
    for operator, given, neutral in (("Sub", scaling.mean, 0.0), ("Div", scaling.std, 1.0)):
        if given == neutral:
            continue
        if isinstance(given, float):
            steps.append((operator, np.asarray(given)))
            continue
        key = "mean" if operator == "Sub" else "std"
        if not -len(sizes) <= scaling.axis < len(sizes):
            raise ExportError(f"export.preprocessing: {name} has {len(sizes)} axes, but axis is {scaling.axis}.")
        axis = scaling.axis % len(sizes)
        if sizes[axis] not in (0, len(given)):  # 0 stands for any size
            raise ExportError(
                f"export.preprocessing: {key} of {name} has {len(given)} numbers, but axis {axis} has {sizes[axis]}."
            )
        shape = [1] * len(sizes)
        shape[axis] = len(given)
        steps.append((operator, np.asarray(given).reshape(shape)))
    return steps
