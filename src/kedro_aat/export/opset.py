"""The version of a file: its opset and its IR version, and the oldest onnxruntime that loads it."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

# The exporter has its operators from this opset on; it has some only from a later one on.
OLDEST_NATIVE_OPSET = 18
LATER_OPSETS = (20, 21, 23)
OLDEST_OPSET = 13  # the first that quantizes weights per channel, and the oldest that conversion is tried to

# From which version on onnxruntime loads an opset and an IR version. `tests/export/test_opset.py` loads files in
# environments of their own. Versions before 1.15 do not install with Python 3.11, so they were not tried.
_OPSETS = {19: "1.15", 20: "1.17", 21: "1.18", 22: "1.21", 23: "1.23", 25: "1.24", 26: "1.25"}
_IR_VERSIONS = {9: "1.15", 10: "1.18", 11: "1.23", 13: "1.24"}

# From which IR version on a file may hold a type; all other types are older.
_TYPES = {
    **dict.fromkeys(
        (TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E4M3FNUZ, TensorProto.FLOAT8E5M2, TensorProto.FLOAT8E5M2FNUZ), 9
    ),
    **dict.fromkeys((TensorProto.UINT4, TensorProto.INT4), 10),
    TensorProto.FLOAT4E2M1: 11,
}


def opset_of(model: onnx.ModelProto) -> int:
    """Version of ONNX's own operators in a file."""
    return next(int(each.version) for each in model.opset_import if each.domain in ("", "ai.onnx"))


def lower_ir_version(model: onnx.ModelProto) -> None:
    """Sets the IR version, in place, to the lowest that allows the opset and the types of the file's tensors."""
    lowest = int(helper.find_min_ir_version_for(list(model.opset_import), ignore_unknown=True))
    types = {tensor.data_type for tensor in model.graph.initializer}
    types |= {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    model.ir_version = max([lowest, *(_TYPES.get(each, 0) for each in types)])


def oldest_onnxruntime(model: onnx.ModelProto) -> str | None:
    """The oldest version of onnxruntime that loads a file, such as `1.17`; None if no known version does."""
    versions = [_oldest(_OPSETS, opset_of(model)), _oldest(_IR_VERSIONS, model.ir_version)]
    known = [version for version in versions if version is not None]
    return max(known, key=_as_numbers) if len(known) == len(versions) else None


def _oldest(table: dict[int, str], number: int) -> str | None:
    return next((version for highest, version in sorted(table.items()) if number <= highest), None)


def _as_numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))
