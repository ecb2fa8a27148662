"""The parts of the model card about the files for other targets than ONNX: what each takes, and how to run it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from kedro_aat.export.sample import dtype_of, is_quantized, made_up, made_up_code, shape_of
from kedro_aat.export.session import paths_of
from kedro_aat.export.targets.details import QuantizedPort
from kedro_aat.export.targets.registry import TARGETS, missing, target_of
from kedro_aat.export.targets.target import TargetFile
from kedro_aat.reporting.card_code import plain, tolerance_lines
from kedro_aat.reporting.target_code import Port, Runnable, cpp_code, python_code

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import ModelProto, ValueInfoProto

logger = logging.getLogger(__name__)

_STORED = (
    "To store a number x as an integer: round(x / scale) + zero point, limited to the range of the type. "
    "To get it back: (integer - zero point) * scale."
)
_LAYOUT = (
    "The axes are in the order of the PyTorch model, and the last one is contiguous in memory: an image has its "
    "channels before height and width."
)


def target_section(file: TargetFile, onnx_model: ModelProto, name: str) -> str:
    """The part about one file, in Markdown.

    Args:
        file: The file.
        onnx_model: The delivered ONNX file, which knows types and names.
        name: Name of the file, with its suffix.
    """
    title, runtime = TARGETS[file.target].title, TARGETS[file.target].runtime
    known, own = _values(onnx_model), _own_inputs(file)
    details = file.details
    inputs = [_input(each, file, known, own) for each in file.inputs]
    outputs = [_port(each, known, details.quantized_outputs) for each in file.outputs]
    runnable = Runnable(name, inputs, outputs, details.operators, details.arena_bytes, details.runtime_bytes)
    code = python_code(file.target, runnable)
    found = _outputs(file, inputs)
    words = "The inputs are made up, and so their outputs mean nothing: they show that the file runs as it should."
    if found is None:
        words = "The inputs are made up. The file was not run on them here; it may need others, such as another length."
    else:
        code += tolerance_lines(
            {port.name: array for port, array in zip(outputs, found, strict=True)}, is_quantized(onnx_model)
        )
    return "\n\n".join(
        [
            f"## {title}",
            _facts(file, name),
            _ports(inputs, outputs, file.batch_size, known),
            _LAYOUT,
            *([_STORED] if details.quantized_inputs or details.quantized_outputs else []),
            f"{words} In Python, with {runtime}:",
            f"```python\n{code}\n```",
            "In C++, in the form that the runtime documents; not compiled here:",
            f"```cpp\n{cpp_code(file.target, runnable)}\n```",
        ]
    )


def _facts(file: TargetFile, name: str) -> str:
    names = [name, *(f"{name.rpartition('.')[0]}{suffix}" for suffix in list(file.parts)[1:])]
    rows = [
        row
        for each, content in zip(names, file.parts.values(), strict=True)
        for row in (
            ("name", f"`{each}`, {len(content):,} bytes"),
            ("SHA-256", f"`{hashlib.sha256(content).hexdigest()}`"),
        )
    ]
    rows.append(("examples in a run", "any number" if file.batch_size is None else str(file.batch_size)))
    details = file.details
    if details.arena_bytes is not None:
        rows.append(("memory that its plan takes", f"{details.arena_bytes:,} bytes"))
    if details.runtime_bytes is not None:
        rows.append(("memory of a microcontroller's runtime beside it, at most", f"{details.runtime_bytes:,} bytes"))
    if details.operators:
        rows.append(("operators that it needs", ", ".join(f"`{plain(each)}`" for each in details.operators)))
    return "\n".join(["| | |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in rows)])


def _ports(
    inputs: Sequence[Port], outputs: Sequence[Port], batch_size: int | None, known: Mapping[str, ValueInfoProto]
) -> str:
    rows = []
    for kind, ports in (("input", inputs), ("output", outputs)):
        for port in ports:
            sizes = [str(size) for size in port.shape]
            if batch_size is None and sizes and _has_free_batch(known.get(port.name)):
                sizes[0] = "any"
            stored = port.stored
            words = "as it is"
            if stored is not None:
                words = f"{stored.dtype}, scale {stored.scale:.9g}, zero point {stored.zero_point}"
            shape = " x ".join(sizes) or "see above"
            rows.append(f"| {kind} | `{plain(port.name)}` | {shape} | {port.dtype} | {words} |")
    return "\n".join(["| | name | shape | type | stored |", "| --- | --- | --- | --- | --- |", *rows])


def _has_free_batch(value: ValueInfoProto | None) -> bool:
    axes = [] if value is None else list(value.type.tensor_type.shape.dim)
    return bool(axes) and not axes[0].dim_value


def _values(model: ModelProto) -> dict[str, ValueInfoProto]:
    """Inputs and outputs of the ONNX file, by the model's names and by the file's own."""
    paths = paths_of(model)
    values = [*model.graph.input, *model.graph.output]
    return {paths.get(value.name, value.name): value for value in values} | {value.name: value for value in values}


def _input(name: str, file: TargetFile, known: Mapping[str, ValueInfoProto], own: Sequence[_OwnInput]) -> Port:
    port = _port(name, known, file.details.quantized_inputs)
    shape = port.shape
    if len(own) == len(file.inputs):
        shape, dtype = own[file.inputs.index(name)]
        if dtype is not None and port.stored is None:
            port = port._replace(dtype=dtype)
    if shape and _has_free_batch(known.get(name)):
        shape = (file.batch_size or 1, *shape[1:])
    return port._replace(shape=shape, code=made_up_code(shape, np.dtype(port.dtype)))


def _port(name: str, known: Mapping[str, ValueInfoProto], stored: Mapping[str, QuantizedPort]) -> Port:
    value = known.get(name)
    if value is None:
        return Port(name, (), "float32", stored.get(name))
    shown = value.name
    return Port(shown, shape_of(value), str(dtype_of(value)), stored.get(shown) or stored.get(name))


_OwnInput = tuple[tuple[int, ...], str | None]  # shape, and numpy's name of the type; None if it is the model's


def _own_inputs(file: TargetFile) -> list[_OwnInput]:
    """The inputs of a file that fixes sizes which ONNX leaves free, or takes other types; empty if unknown."""
    if missing(file.target, only_to_run=True) is not None:
        return []
    try:
        content = next(iter(file.parts.values()))
        if file.target == "litert":
            interpreter = import_module("ai_edge_litert.interpreter").Interpreter(model_content=content)
            ports = interpreter.get_input_details()
            return [(tuple(map(int, port["shape"])), np.dtype(port["dtype"]).name) for port in ports]
        if file.target == "executorch":
            runtime = import_module("executorch.runtime").Runtime.get()
            meta = runtime.load_program(content).load_method("forward").metadata
            return [(tuple(meta.input_tensor_meta(number).sizes()), None) for number in range(meta.num_inputs())]
    except Exception as error:  # each runtime has errors of its own
        logger.debug("The inputs of the %s file are unknown: %s", file.target, error)
    return []


def _outputs(file: TargetFile, inputs: Sequence[Port]) -> list[NDArray[Any]] | None:
    """The outputs for made-up inputs; None if the file does not run with them here, or gives NaN or infinity."""
    tensors = [torch.from_numpy(made_up(port.shape, np.dtype(port.dtype))) for port in inputs]
    try:
        found = [tensor.numpy() for tensor in target_of(file.target).read_back(file).run(tensors).values()]
    except Exception as error:  # as above
        logger.debug("The %s file was not run for its card: %s", file.target, error)
        return None
    return found if all(np.isfinite(array).all() for array in found if array.dtype.kind == "f") else None
