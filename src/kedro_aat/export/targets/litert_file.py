"""Contents of a `.tflite` file: its inputs and outputs are named and typed, and what a device needs is read from it.

The format is a flatbuffer whose schema ships with `ai-edge-litert`; tensors of a quantized file stand for
`scale * (integer - zero point)` (https://ai.google.dev/edge/litert/models/quantization_spec).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kedro_aat.export.targets.details import QuantizedPort, TargetDetails

_ALIGNMENT = 16  # bytes, of weights in the file, and of a tensor in the arena of LiteRT for Microcontrollers
# What `MicroMutableOpResolver` of LiteRT for Microcontrollers can register, in the names of the schema
# (github.com/tensorflow/tflite-micro, tensorflow/lite/micro/micro_mutable_op_resolver.h).
_MICRO_OPERATORS = (
    "ABS ADD ADD_N ARG_MAX ARG_MIN ASSIGN_VARIABLE AVERAGE_POOL_2D BATCH_MATMUL BATCH_TO_SPACE_ND BROADCAST_ARGS "
    "BROADCAST_TO CALL_ONCE CAST CEIL CONCATENATION CONV_2D COS CUMSUM DEPTH_TO_SPACE DEPTHWISE_CONV_2D DEQUANTIZE DIV "
    "DYNAMIC_UPDATE_SLICE ELU EMBEDDING_LOOKUP EQUAL EXP EXPAND_DIMS FILL FLOOR FLOOR_DIV FLOOR_MOD FULLY_CONNECTED "
    "GATHER GATHER_ND GREATER GREATER_EQUAL HARD_SWISH IF L2_NORMALIZATION L2_POOL_2D LEAKY_RELU LESS LESS_EQUAL LOG "
    "LOGICAL_AND LOGICAL_NOT LOGICAL_OR LOGISTIC LOG_SOFTMAX MAXIMUM MAX_POOL_2D MEAN MINIMUM MIRROR_PAD MUL NEG "
    "NOT_EQUAL PACK PAD PADV2 PRELU QUANTIZE READ_VARIABLE REDUCE_MAX RELU RELU6 RESHAPE RESIZE_BILINEAR "
    "RESIZE_NEAREST_NEIGHBOR ROUND RSQRT SELECT_V2 SHAPE SIN SLICE SOFTMAX SPACE_TO_BATCH_ND SPACE_TO_DEPTH SPLIT "
    "SPLIT_V SQRT SQUARE SQUARED_DIFFERENCE SQUEEZE STRIDED_SLICE SUB SUM SVDF TANH TRANSPOSE TRANSPOSE_CONV "
    "UNIDIRECTIONAL_SEQUENCE_LSTM UNPACK VAR_HANDLE WHILE ZEROS_LIKE"
)


class Flatbuffer:
    """A `.tflite` file with one graph, taken apart.

    Args:
        content: The file.
    """

    def __init__(self, content: bytes) -> None:
        self._schema = import_module("ai_edge_litert.schema_py_generated")
        self._model = self._schema.ModelT.InitFromObj(self._schema.Model.GetRootAs(content))
        (self._graph,) = self._model.subgraphs
        self._operators = _names_of(self._schema.BuiltinOperator)
        self._types = _names_of(self._schema.TensorType)

    def to_bytes(self) -> bytes:
        """The file."""
        builder = _builder()
        builder.Finish(self._model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def name_ports(self, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        """Gives inputs and outputs names, and the order of these names; other tensors lose theirs.

        The converter names the others by the lines of the user's code.

        Args:
            inputs: In the order of the parameters of the module that was converted.
            outputs: In the order of its results.
        """
        (signature,) = self._model.signatureDefs
        for tensor in self._graph.tensors:
            tensor.name = b""
        for kind, ports, names in (("inputs", "args", inputs), ("outputs", "output", outputs)):
            maps = {each.name.decode(): each for each in getattr(signature, kind)}
            ordered = [maps[f"{ports}_{number}"] for number in range(len(names))]
            for each, name in zip(ordered, names, strict=True):
                each.name = name.encode()
                self._graph.tensors[each.tensorIndex].name = each.name
            setattr(signature, kind, ordered)
            setattr(self._graph, kind, [each.tensorIndex for each in ordered])
        self._graph.name = b""

    def take_floats(self) -> None:
        """Lets integer inputs and outputs be float32: the first and last operators convert them."""
        (signature,) = self._model.signatureDefs
        for kind, code in (("inputs", "QUANTIZE"), ("outputs", "DEQUANTIZE")):
            for position, (number, port) in enumerate(
                zip(list(getattr(self._graph, kind)), getattr(signature, kind), strict=True)
            ):
                inner = self._graph.tensors[number]
                if _quantization(inner) is None:
                    continue
                outer = self._schema.TensorT()
                outer.name, inner.name = inner.name, b""
                outer.shape, outer.shapeSignature, outer.hasRank = inner.shape, inner.shapeSignature, inner.hasRank
                outer.type = self._schema.TensorType.FLOAT32
                outer.buffer = len(self._model.buffers)
                self._model.buffers.append(self._schema.BufferT())
                self._graph.tensors.append(outer)
                new = len(self._graph.tensors) - 1
                operator = self._schema.OperatorT()
                operator.opcodeIndex = self._operator_code(code)
                operator.inputs, operator.outputs = ([new], [number]) if kind == "inputs" else ([number], [new])
                self._graph.operators.insert(0 if kind == "inputs" else len(self._graph.operators), operator)
                getattr(self._graph, kind)[position] = new
                port.tensorIndex = new

    def rescale(self, rescalings: Iterable[tuple[tuple[float, int], tuple[float, int]]]) -> None:
        """Lets operators that stand for changes of scale compute these.

        Args:
            rescalings: Scale and zero point before and after.
        """
        wanted = {(_rounded(*before), _rounded(*after)) for before, after in rescalings}
        for each in self._graph.operators:
            if self._name(each) == "ABS":
                found = (_quantization(self._graph.tensors[numbers[0]]) for numbers in (each.inputs, each.outputs))
                if tuple(_rounded(*how) if how else None for how in found) in wanted:
                    each.opcodeIndex = self._operator_code("QUANTIZE")
                    each.builtinOptionsType, each.builtinOptions = self._schema.BuiltinOptions.NONE, None

    def _operator_code(self, name: str) -> int:
        builtin = getattr(self._schema.BuiltinOperator, name)
        for number, code in enumerate(self._model.operatorCodes):
            if code.builtinCode == builtin:
                return number
        code = self._schema.OperatorCodeT()
        code.builtinCode = builtin
        code.deprecatedBuiltinCode = min(builtin, 127)  # older readers have one byte
        code.version = 2  # the first one with int8, of both operators
        self._model.operatorCodes.append(code)
        return len(self._model.operatorCodes) - 1

    def calls(self) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
        """Name of each operator that is called, with the types of its inputs and outputs, such as `INT8`."""
        found = []
        for each in self._graph.operators:
            types = [tuple(self._type(number) for number in numbers) for numbers in (each.inputs, each.outputs)]
            found.append((self._name(each), types[0], types[1]))
        return found

    def _type(self, number: int) -> str:
        return "NONE" if number < 0 else self._types[self._graph.tensors[number].type]

    def _name(self, operator: Any) -> str:
        code = self._model.operatorCodes[operator.opcodeIndex]
        if code.customCode is not None:
            return str(code.customCode.decode())
        return self._operators[max(code.builtinCode, code.deprecatedBuiltinCode)]

    def details(self) -> TargetDetails:
        """What a device needs to run the file."""
        operators = sorted({name for name, _, _ in self.calls()})
        known = _MICRO_OPERATORS.split()
        return TargetDetails(
            operators=tuple(operators),
            not_on_microcontrollers=tuple(name for name in operators if name not in known),
            arena_bytes=self._arena_bytes(),
            runtime_bytes=self._runtime_bytes(),
            quantized_inputs=self._quantized(self._graph.inputs),
            quantized_outputs=self._quantized(self._graph.outputs),
        )

    def _quantized(self, numbers: Sequence[int]) -> dict[str, QuantizedPort]:
        tensors = [self._graph.tensors[number] for number in numbers]
        found = {tensor.name.decode(): (tensor, _quantization(tensor)) for tensor in tensors}
        return {
            name: QuantizedPort(dtype=self._types[tensor.type].lower(), scale=how[0], zero_point=how[1])
            for name, (tensor, how) in found.items()
            if how is not None
        }

    def _arena_bytes(self) -> int:
        """Size of the tensors in between, as the planner of LiteRT for Microcontrollers places them."""
        first: dict[int, int] = dict.fromkeys(self._graph.inputs, 0)
        last: dict[int, int] = {}
        for time, each in enumerate(self._graph.operators):
            for number in (*each.inputs, *each.outputs):
                if number >= 0 and self._model.buffers[self._graph.tensors[number].buffer].data is None:
                    first.setdefault(number, time)
                    last[number] = time
        last |= dict.fromkeys(self._graph.outputs, len(self._graph.operators))
        return plan_arena({number: (self._num_bytes(number), first[number], last.get(number, 0)) for number in first})

    def _runtime_bytes(self) -> int:
        """What LiteRT for Microcontrollers keeps in the arena beside the tensors, with pointers of 64 bits.

        An upper limit of what was measured: 24 bytes per tensor, 64 and what its kernel needs per operator, and 8 per
        output channel of a layer.
        """
        layers = [each for each in self._graph.operators if self._name(each) in _LAYERS]
        channels = sum(int(self._graph.tensors[each.outputs[0]].shape[-1]) for each in layers)
        return 32 * len(self._graph.tensors) + 200 * len(self._graph.operators) + 8 * channels + 1024

    def _num_bytes(self, number: int) -> int:
        tensor = self._graph.tensors[number]
        shape: NDArray[Any] = np.atleast_1d(tensor.shape) if tensor.shape is not None else np.ones(1)
        return int(prod(map(int, shape))) * _BYTES.get(self._types[tensor.type], 4)


_LAYERS = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"}
_BYTES = {"INT8": 1, "UINT8": 1, "BOOL": 1, "INT16": 2, "FLOAT16": 2, "INT64": 8, "FLOAT64": 8, "COMPLEX64": 8}


def plan_arena(tensors: Mapping[int, tuple[int, int, int]]) -> int:
    """The size in bytes of an arena in which tensors that live at the same time do not overlap.

    Greedy, as `GreedyMemoryPlanner` of LiteRT for Microcontrollers: the largest tensor first, each at the lowest place
    that is free while it lives.

    Args:
        tensors: Number -> bytes, and the first and last time at which the tensor is needed.
    """
    placed: list[tuple[int, int, int, int]] = []  # start, end, first, last
    for size, first, last in sorted(tensors.values(), key=lambda tensor: (-tensor[0], tensor[1])):
        needed = -(-size // _ALIGNMENT) * _ALIGNMENT
        start = 0
        for begin, end, since, until in sorted(placed):
            if since <= last and first <= until:
                if begin - start >= needed:
                    break
                start = max(start, end)
        placed.append((start, start + needed, first, last))
    return max((end for _, end, _, _ in placed), default=0)


def _builder() -> Any:
    """A `flatbuffers.Builder` that aligns weights as the schema asks for, which Python's own does not do."""
    builder_class: Any = import_module("flatbuffers").Builder

    class Builder(builder_class):  # type: ignore[misc]  # flatbuffers ships no types
        def StartVector(self, elemSize: int, numElems: int, alignment: int) -> Any:  # noqa: N802, N803  # their names
            return super().StartVector(elemSize, numElems, _ALIGNMENT if elemSize == 1 else alignment)

    return Builder(1024)


def _quantization(tensor: Any) -> tuple[float, int] | None:
    """Scale and zero point of a tensor with one of each; None if it has none."""
    how = tensor.quantization
    if how is None or how.scale is None or len(how.scale) != 1:
        return None
    return float(how.scale[0]), int(how.zeroPoint[0])


def _rounded(scale: float, zero_point: int) -> tuple[float, int]:
    """As the file stores them."""
    return float(np.float32(scale)), zero_point


def _names_of(enumeration: type) -> dict[int, str]:
    return {number: name for name, number in vars(enumeration).items() if not name.startswith("_")}
