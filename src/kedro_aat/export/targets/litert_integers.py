"""Completes the rounding of a quantized program, so that every operator which LiteRT has in int8 is computed in int8.

A quantized model rounds what its layers read, with trained ranges. LiteRT's int8 kernels also write int8, and each
needs the range of its result. Results whose range was not trained (the last layer's, those of a layer whose reader is
computed in float32, and those between two rounded tensors) get one from examples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from kedro_aat.compression.quantization.arithmetic import HIGHEST_WEIGHT, activation_scales, broadcast_along
from kedro_aat.export.targets.integer_scales import least_input_scale, least_output_scale, usual_scales

_LAYERS = {"conv1d", "conv2d", "conv_transpose2d", "linear"}
# Fused with the operator before them.
_ACTIVATIONS = {"relu", "relu_", "relu6", "hardtanh", "hardtanh_"}
# Their results are among the integers that they read.
_REARRANGING = _ACTIVATIONS | {
    *("max_pool1d", "max_pool2d", "flatten", "view", "reshape", "permute", "transpose", "squeeze", "unsqueeze"),
    *("contiguous", "clone", "dropout", "upsample_nearest2d", "select", "slice"),
}
_POOLING = {"avg_pool1d", "avg_pool2d"}  # their int8 kernels read and write with one scale
_JOINING = _POOLING | {"add", "add_", "cat", "mean", "adaptive_avg_pool2d"}
# Stands for a change of scale, since the converter drops a rounding that follows another one.
RESCALING = torch.ops.aten.abs.default
# An output of the model may exceed what the examples gave by this share of its range.
_MARGIN = 0.1

Parameters = tuple[float, int]  # scale, zero point
Rescaling = tuple[Parameters, Parameters]  # before and after


@torch.no_grad()
def complete(module: GraphModule, examples: Iterable[Sequence[Tensor]]) -> set[Rescaling]:
    """Rounds what LiteRT's int8 kernels write, in place.

    Args:
        module: Of a program that was traced with operators of PT2E.
        examples: What the module is called with.

    Returns:
        The changes of scale for which the module calls `RESCALING`, which must not be computed.
    """
    _hold_floats(module)
    _average_by_layers(module)
    _widen(module)
    whole = _computed_in_integers(module)
    rounds = _Rounds(module, whole, examples)
    rounds.insert()
    _repeat_for_each_reader(module)
    module.recompile()
    return rounds.rescalings


def _repeat_for_each_reader(module: GraphModule) -> None:
    """Gives each reader of a rounded tensor a dequantization of its own.

    litert-torch 0.10 transposes what has the channels last for the first reader that wants them first, and then takes
    the common dequantization for one that has them first: the other readers get the wrong layout.
    """
    for node in _calls(module, "dequantize_per_tensor"):
        for reader in list(node.users)[1:]:
            with module.graph.inserting_before(reader):
                reader.replace_input_with(node, module.graph.node_copy(node))


def _hold_floats(module: GraphModule) -> None:
    """Lets int8 weights be constants in float32 that are rounded, as LiteRT's converter wants them."""
    for number, node in enumerate(_calls(module, "dequantize_per_channel")):
        integers, scales, *others = node.args
        assert isinstance(integers, Node)
        assert isinstance(scales, Node)
        held, scale = _constant(module, integers), _constant(module, scales)
        axis = others[1]
        assert isinstance(axis, int)
        names = f"_weight_{number}", f"_weight_{number}_scale"
        module.register_buffer(names[0], held * broadcast_along(axis, scale, held))
        module.register_buffer(names[1], usual_scales(held, scale, axis))
        with module.graph.inserting_before(node):
            weight, usual = (module.graph.get_attr(name) for name in names)
            operator = torch.ops.quantized_decomposed.quantize_per_channel.default
            arguments = (usual, *node.args[2:])
            node.args = (module.graph.call_function(operator, (weight, *arguments)), *arguments)
    module.graph.eliminate_dead_code()


def _widen(module: GraphModule) -> None:
    """Raises trained scales that are too small for what writes the tensor, or for the biases of what reads it."""
    for node in _calls(module, "quantize_per_tensor"):
        readers = [reader for rounded in node.users for reader in _layers_behind(rounded)]
        least = max(
            [_least_scale(module, node.args[0]), *(least_input_scale(*_held(module, each)) for each in readers)]
        )
        scale = node.args[1]
        assert isinstance(scale, float)
        if scale < least:
            for each in (node, *node.users):
                each.args = (each.args[0], least, *each.args[2:])


def _least_scale(module: GraphModule, node: Any) -> float:
    """The least scale with which the result of an operator can be written."""
    while _name(node) in _ACTIVATIONS:
        node = node.args[0]
    if not _is_integer_layer(node):
        return 0.0
    read = node.args[0]
    while _name(read) in _REARRANGING:
        read = read.args[0]
    if _name(read) != "dequantize_per_tensor":
        return 0.0
    return least_output_scale(read.args[1], _held(module, node)[0])


def _layers_behind(node: Node) -> list[Node]:
    """The layers in integers that read a rounded tensor, perhaps rearranged."""
    found = []
    for user in node.users:
        if _is_integer_layer(user) and user.args[0] is node:
            found.append(user)
        elif _name(user) in _REARRANGING:
            found += _layers_behind(user)
    return found


def _is_integer_layer(node: Any) -> bool:
    return _name(node) in _LAYERS and _name(node.args[1]) == "dequantize_per_channel"


def _held(module: GraphModule, layer: Node) -> tuple[Tensor, Tensor | None]:
    """Scales of a layer's weight, and its bias."""
    weight: Any = layer.args[1]
    bias = layer.args[2] if len(layer.args) > 2 else None
    is_held = isinstance(bias, Node) and bias.op == "get_attr"
    return _constant(module, weight.args[1]), _constant(module, bias) if is_held else None  # type: ignore[arg-type]


def _average_by_layers(module: GraphModule) -> None:
    """Lets averages with a trained range be means or convolutions, which write with a scale of their own."""
    operators = torch.ops.quantized_decomposed
    for node in _calls(module, "adaptive_avg_pool1d"):
        if list(node.args[1]) == [1]:  # type: ignore[arg-type]  # a list of integers
            node.target, node.args = torch.ops.aten.mean.dim, (node.args[0], [-1], True)
    for number, node in enumerate(_calls(module, "avg_pool2d")):
        read, kernel, *others = node.args
        assert isinstance(read, Node)
        stride, padding = (*others, *([kernel, 0][len(others) :]))[:2]
        if len(others) > 2 or not any(_name(user) == "quantize_per_tensor" for user in node.users):
            continue  # parts of windows at the border count otherwise
        weight = torch.ones(read.meta["val"].shape[1], 1, *_pair(kernel)) / math.prod(_pair(kernel))
        names = f"_average_{number}", f"_average_{number}_scale", f"_average_{number}_zero_point"
        tensors = weight, weight[:, 0, 0, 0] / HIGHEST_WEIGHT, torch.zeros(len(weight), dtype=torch.int64)
        for name, tensor in zip(names, tensors, strict=True):
            module.register_buffer(name, tensor)
        with module.graph.inserting_before(node):
            average, *constants = (module.graph.get_attr(name) for name in names)
            arguments: tuple[Any, ...] = (*constants, 0, -HIGHEST_WEIGHT, HIGHEST_WEIGHT, torch.int8)
            integers = module.graph.call_function(operators.quantize_per_channel.default, (average, *arguments))
            floats = module.graph.call_function(operators.dequantize_per_channel.default, (integers, *arguments))
        node.target = torch.ops.aten.conv2d.default
        node.args = (read, floats, None, _pair(stride or kernel), _pair(padding), [1, 1], len(weight))


def _pair(size: Any) -> list[int]:
    return [size, size] if isinstance(size, int) else [size[0], size[-1]]


def _computed_in_integers(module: GraphModule) -> set[Node]:
    """Operators whose results can be int8: what they read is int8, and so is what reads them."""
    layers = {node for node in module.graph.nodes if _name(node) in _LAYERS}
    joining = {node for node in module.graph.nodes if _name(node) in _JOINING}
    whole = layers | joining | {node for node in module.graph.nodes if _name(node) in _REARRANGING}
    while True:
        wrong = {node for node in whole if not _reads_integers(node, whole)}
        wrong |= {node for node in layers & whole if _name(node.args[1]) != "dequantize_per_channel"}
        wrong |= {node for node in joining & whole if not _gives_integers(node, whole)}
        if not wrong:
            return whole
        whole -= wrong


def _reads_integers(node: Node, whole: set[Node]) -> bool:
    reads = _data(node)
    return bool(reads) and all(each in whole or _name(each) == "dequantize_per_tensor" for each in reads)


def _gives_integers(node: Node, whole: set[Node]) -> bool:
    return all(user in whole or user.op == "output" or _name(user) == "quantize_per_tensor" for user in node.users)


class _Rounds:
    """Inserts the missing rounding.

    Args:
        module: Changed in place.
        whole: Operators that are computed in integers.
        examples: What the module is called with.
    """

    def __init__(self, module: GraphModule, whole: set[Node], examples: Iterable[Sequence[Tensor]]) -> None:
        self._module = module
        # What an activation reads is not written.
        nodes = [node for node in module.graph.nodes if node in whole]
        self._nodes = [node for node in nodes if not self._is_fused(node, whole)]
        self._fused = {node for node in nodes if self._is_fused(node, whole)}
        ranges = _Ranges(module, self._nodes)
        for example in examples:
            ranges.run(*example)
        self._ranges = ranges.found
        self.rescalings: set[Rescaling] = set()
        self._known: dict[Node, Parameters] = {}
        for node in _calls(module, "dequantize_per_tensor"):
            self._known[node] = node.args[1:3]  # type: ignore[assignment]  # a number and an integer

    @staticmethod
    def _is_fused(node: Node, whole: set[Node]) -> bool:
        return _name(node) not in _REARRANGING and all(
            _name(user) in _ACTIVATIONS and user in whole for user in node.users
        )

    def insert(self) -> None:
        """Inserts it, from the inputs to the outputs."""
        for node in self._nodes:
            parameters = self._parameters(node)
            if _name(node) == "cat":  # its int8 kernel reads and writes with one scale
                for read in _data(node):
                    if self._known[read] != parameters:
                        self._round(self._rescaled(read, parameters), parameters, [node])
            trained = [user for user in node.users if _name(user) == "quantize_per_tensor"]
            if not trained:
                self._round(node, parameters, list(node.users))
                continue
            (rounded,) = trained[0].users
            for user in list(node.users):
                if user not in trained:
                    user.replace_input_with(node, rounded)
            inner = self._known.get(_data(node)[0], parameters)
            if _name(node) in _POOLING and inner != parameters:
                rescaled = self._rescaled(self._round(node, inner, []), parameters)
                for user in trained:
                    user.replace_input_with(node, rescaled)

    def _parameters(self, node: Node) -> Parameters:
        """Scale and zero point of a result: trained, those of what is rearranged, or from examples."""
        for user in node.users:
            if _name(user) == "quantize_per_tensor":
                return user.args[1:3]  # type: ignore[return-value]  # a number and an integer
        (first, *_) = _data(node)
        if _name(node) in _REARRANGING | _POOLING and first not in self._fused:
            return self._known[first]
        low, high = self._ranges[node]
        if any(user.op == "output" for user in node.users):
            low, high = low - _MARGIN * (high - low), high + _MARGIN * (high - low)
        scale, zero_point = activation_scales(torch.tensor([[low, high]]))
        return max(float(scale), _least_scale(self._module, node)), int(zero_point) - 128

    def _rescaled(self, node: Node, parameters: Parameters) -> Node:
        """Stands for the change of a rounded tensor's scale, and is to be rounded with the parameters."""
        self.rescalings.add((self._known[node], parameters))
        with self._module.graph.inserting_after(node):
            return self._module.graph.call_function(RESCALING, (node,))

    def _round(self, node: Node, parameters: Parameters, users: Sequence[Node]) -> Node:
        """Rounds a tensor for some of its users; returns the rounded one."""
        operators = torch.ops.quantized_decomposed
        arguments = (*parameters, -128, 127, torch.int8)
        with self._module.graph.inserting_after(node):
            integers = self._module.graph.call_function(operators.quantize_per_tensor.default, (node, *arguments))
        with self._module.graph.inserting_after(integers):
            rounded = self._module.graph.call_function(operators.dequantize_per_tensor.default, (integers, *arguments))
        self._known[rounded] = parameters
        for user in users:
            user.replace_input_with(node, rounded)
        return rounded


class _Ranges(Interpreter):
    """Runs a module and records the lowest and highest number of some results."""

    def __init__(self, module: GraphModule, nodes: Iterable[Node]) -> None:
        super().__init__(module)
        self._watched = set(nodes)
        self.found: dict[Node, tuple[float, float]] = {}

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if n in self._watched and result.numel():
            low, high = self.found.get(n, (0.0, 0.0))
            self.found[n] = min(low, float(result.min())), max(high, float(result.max()))
        return result


def _data(node: Node) -> list[Node]:
    """The tensors that an operator computes with, without weights; empty if one is a constant."""
    if _name(node) == "cat":
        found: Any = node.args[0]
    elif _name(node) in {"add", "add_"}:
        found = node.args[:2]
    else:
        found = node.args[:1]
    return list(found) if all(isinstance(each, Node) and each.op != "get_attr" for each in found) else []


def _calls(module: GraphModule, name: str) -> list[Node]:
    return [node for node in module.graph.nodes if _name(node) == name]


def _name(node: Any) -> str:
    """Name of an operator without its overload; empty for what is none."""
    target = getattr(node, "target", None)
    return target.overloadpacket.__name__ if isinstance(target, torch._ops.OpOverload) else ""


def _constant(module: GraphModule, node: Node) -> Tensor:
    value: Any = module
    for part in str(node.target).split("."):
        value = getattr(value, part)
    assert isinstance(value, Tensor)
    return value.detach()
