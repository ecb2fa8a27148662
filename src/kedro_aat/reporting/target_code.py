"""The code of the model card that runs a file of a target, in Python and in C++."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from kedro_aat.export.targets.details import QuantizedPort
from kedro_aat.export.targets.registry import TargetName


class Port(NamedTuple):
    """An input or output of a file.

    Attributes:
        name: Its name.
        shape: Sizes of its axes in one run; empty if unknown.
        dtype: numpy's name for the type of its numbers in the model.
        stored: How the file stores it as integers; None if it takes numbers as they are.
        code: For an input, the Python code that makes numbers up; `np` is numpy.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    stored: QuantizedPort | None = None
    code: str = ""


class Runnable(NamedTuple):
    """What the code is written for.

    Attributes:
        name: Name of the file.
        inputs: In the file's order.
        outputs: In the file's order.
        operators: The operators that the file calls.
        arena_bytes: Memory that the file's plan takes; None if it has none.
        runtime_bytes: Memory that the runtime needs in the arena besides; None if unknown.
    """

    name: str
    inputs: Sequence[Port]
    outputs: Sequence[Port]
    operators: Sequence[str]
    arena_bytes: int | None
    runtime_bytes: int | None = None


def python_code(target: TargetName, file: Runnable) -> str:
    """Python that runs the file on made-up inputs; `outputs` is then a mapping from name to array."""
    made = "".join(f"    {json.dumps(each.name)}: {each.code},\n" for each in file.inputs)
    listed = ", ".join(json.dumps(each.name) for each in file.outputs)
    imports, opened, run = _PYTHON[target](file.name)
    stored = [_to_integers(each) for each in file.inputs if each.stored is not None]
    read = [_to_numbers(each) for each in file.outputs if each.stored is not None]
    lines = ["import numpy as np", *imports, "", *opened, f"inputs = {{\n{made}}}", *stored]
    return "\n".join([*lines, f"outputs = dict(zip([{listed}], {run}))", *read])


def _to_integers(port: Port) -> str:
    assert port.stored is not None
    key, (dtype, scale, zero) = json.dumps(port.name), _stored(port.stored)
    bounds = f'np.iinfo("{dtype}").min, np.iinfo("{dtype}").max'
    return f'inputs[{key}] = np.clip(np.round(inputs[{key}] / {scale}) + {zero}, {bounds}).astype("{dtype}")'


def _to_numbers(port: Port) -> str:
    assert port.stored is not None
    key, (_, scale, zero) = json.dumps(port.name), _stored(port.stored)
    return f'outputs[{key}] = (outputs[{key}].astype("float32") - {zero}) * {scale}'


def _stored(port: QuantizedPort) -> tuple[str, str, int]:
    return port.dtype, f"{port.scale:.9g}", port.zero_point


Parts = tuple[list[str], list[str], str]  # imports, how the file is opened, the expression of its outputs


def _openvino(name: str) -> Parts:
    precision = '{"INFERENCE_PRECISION_HINT": "f32"}  # some processors would round to bf16'
    opened = [f"precision = {precision}", f'model = openvino.Core().compile_model("{name}", "CPU", precision)']
    return ["import openvino"], opened, "model(list(inputs.values())).values()"


def _executorch(name: str) -> Parts:
    imports = ["import torch", "from executorch.runtime import Runtime"]
    opened = [f'program = Runtime.get().load_program("{name}")', 'method = program.load_method("forward")']
    run = "[each.numpy() for each in method.execute([torch.from_numpy(each) for each in inputs.values()])]"
    return imports, opened, run


def _litert(name: str) -> Parts:
    opened = [
        f'interpreter = Interpreter(model_path="{name}")',
        "interpreter.allocate_tensors()",
        "",
        "",
        "def run(arrays):",
        "    for port, array in zip(interpreter.get_input_details(), arrays):",
        '        interpreter.set_tensor(port["index"], array)',
        "    interpreter.invoke()",
        '    return [interpreter.get_tensor(port["index"]) for port in interpreter.get_output_details()]',
        "",
        "",
    ]
    return ["from ai_edge_litert.interpreter import Interpreter"], opened, "run(inputs.values())"


_PYTHON: Mapping[TargetName, Callable[[str], Parts]] = {
    "openvino": _openvino,
    "executorch": _executorch,
    "litert": _litert,
}


def cpp_code(target: TargetName, file: Runnable) -> str:
    """C++ in the runtime's documented form, which nobody compiled here."""
    return _CPP[target](file)


def _openvino_cpp(file: Runnable) -> str:
    lines = [
        "#include <openvino/openvino.hpp>",
        "#include <vector>",
        "",
        "int main() {",
        "  ov::Core core;",
        f'  auto model = core.compile_model("{file.name}", "CPU",',
        "                                  ov::hint::inference_precision(ov::element::f32));",
        "  auto request = model.create_infer_request();",
    ]
    for number, port in enumerate(file.inputs):
        kind, element = _filled(port), _ELEMENTS.get(port.dtype, "f32")
        lines += [
            f"  std::vector<{kind}> input{number}({math.prod(port.shape)});  // {port.name}: fill it",
            f"  request.set_input_tensor({number}, ov::Tensor(ov::element::{element}, "
            f"{_braced(port.shape)}, input{number}.data()));",
        ]
    lines.append("  request.infer();")
    for number, port in enumerate(file.outputs):
        lines.append(
            f"  auto* output{number} = request.get_output_tensor({number}).data<{_c_type(port)}>();  // {port.name}"
        )
    return "\n".join([*lines, "}"])


def _executorch_cpp(file: Runnable) -> str:
    lines = [
        "#include <executorch/extension/module/module.h>",
        "#include <executorch/extension/tensor/tensor.h>",
        "#include <vector>",
        "",
        "using namespace ::executorch::extension;",
        "",
        "int main() {",
        f'  Module module("{file.name}");',
    ]
    for number, port in enumerate(file.inputs):
        size, shape = math.prod(port.shape), _braced(port.shape)
        lines += [
            f"  std::vector<{_filled(port)}> values{number}({size});  // {port.name}: fill it",
            f"  auto input{number} = from_blob(values{number}.data(), {shape}{_scalar_type(port)});",
        ]
    given = [f"input{number}" for number in range(len(file.inputs))]
    lines.append(f"  auto result = module.forward({given[0] if len(given) == 1 else _braced(given)});")
    lines.append("  if (!result.ok()) return 1;")
    for number, port in enumerate(file.outputs):
        lines.append(
            f"  auto* output{number} = result->at({number}).toTensor().const_data_ptr<{_c_type(port)}>();"
            f"  // {port.name}"
        )
    return "\n".join([*lines, "}"])


def _litert_cpp(file: Runnable) -> str:
    arena, more = file.arena_bytes or 0, file.runtime_bytes or 0
    adding = [f"  resolver.{_resolved(name)}();" for name in file.operators]
    lines = [
        '#include "tensorflow/lite/micro/micro_interpreter.h"',
        '#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"',
        '#include "tensorflow/lite/schema/schema_generated.h"',
        "",
        f"extern const unsigned char model_data[];  // xxd -i {file.name}, aligned to 16 bytes",
        f"// The tensors take {arena:,} bytes, the runtime up to {more:,}, and more while it starts.",
        "// After AllocateTensors(), interpreter.arena_used_bytes() returns how many bytes are enough.",
        f"constexpr int kArenaBytes = {arena + more + 4096};",
        "alignas(16) static uint8_t arena[kArenaBytes];",
        "",
        "int main() {",
        f"  tflite::MicroMutableOpResolver<{len(file.operators)}> resolver;",
        *adding,
        "  tflite::MicroInterpreter interpreter(tflite::GetModel(model_data), resolver, arena, kArenaBytes);",
        "  if (interpreter.AllocateTensors() != kTfLiteOk) return 1;",
    ]
    for number, port in enumerate(file.inputs):
        kind = _stored_type(port)
        words = f"{port.name}: {math.prod(port.shape)} numbers, fill them"
        lines.append(f"  {kind}* input{number} = interpreter.typed_input_tensor<{kind}>({number});  // {words}")
    lines.append("  if (interpreter.Invoke() != kTfLiteOk) return 1;")
    for number, port in enumerate(file.outputs):
        kind = _stored_type(port)
        lines.append(f"  {kind}* output{number} = interpreter.typed_output_tensor<{kind}>({number});  // {port.name}")
    return "\n".join([*lines, "}"])


_CPP: Mapping[TargetName, Callable[[Runnable], str]] = {
    "openvino": _openvino_cpp,
    "executorch": _executorch_cpp,
    "litert": _litert_cpp,
}

_ELEMENTS = {"float32": "f32", "float64": "f64", "float16": "f16", "int64": "i64", "int32": "i32", "uint8": "u8"}
_ELEMENTS |= {"int8": "i8", "bool": "boolean"}
_SCALARS = {"int64": "Long", "int32": "Int", "uint8": "Byte", "int8": "Char", "float64": "Double", "bool": "Bool"}


def _c_type(port: Port) -> str:
    return {"float32": "float", "float64": "double", "bool": "bool"}.get(port.dtype, f"{port.dtype}_t")


def _filled(port: Port) -> str:
    """Type of a vector's numbers; `std::vector<bool>` has no array."""
    return "uint8_t" if port.dtype == "bool" else _c_type(port)


def _stored_type(port: Port) -> str:
    return _c_type(port) if port.stored is None else f"{port.stored.dtype}_t"


def _scalar_type(port: Port) -> str:
    """Float is the default of `from_blob`."""
    return f", executorch::aten::ScalarType::{_SCALARS[port.dtype]}" if port.dtype in _SCALARS else ""


def _braced(parts: Sequence[object]) -> str:
    return "{" + ", ".join(map(str, parts)) + "}"


_SPELLED = {"2D": "2D", "LSTM": "LSTM", "MATMUL": "MatMul", "V2": "V2", "PADV2": "PadV2"}


def _resolved(operator: str) -> str:
    """The resolver's function for an operator of the schema: `AddConv2D` for `CONV_2D`."""
    return "Add" + "".join(_SPELLED.get(part, part.capitalize()) for part in operator.split("_"))
