"""Rewrites the program of a quantized model so that XNNPACK computes its layers in integers.

XNNPACK takes a layer in int8 in two forms. *Static*: the input is dequantized from a given range, the weight has a
scale per output channel, and the output, perhaps after a ReLU, is quantized to a given range. *Dynamic*: the output is
a float, and the range of each row of the input is found when it runs. A layer of ours whose output is rounded takes the
static form with the trained ranges, and computes what was trained. The others, such as the last layer, take the dynamic
form behind the trained rounding, so that only the second rounding is new: at most half of 1/255 of the row's range.

Layers that XNNPACK has in neither form keep int8 in the file, and multiply it by its scales when they run.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from kedro_aat.export.targets.integer_scales import least_input_scale, least_output_scale, usual_scales

_ATEN = torch.ops.aten
_CONVOLUTIONS = {_ATEN.conv1d.default, _ATEN.conv1d.padding, _ATEN.conv2d.default, _ATEN.conv2d.padding}
_RELUS = {_ATEN.relu.default, _ATEN.hardtanh.default, _ATEN.relu6.default}
# Operators that only move numbers, so that their results are quantized with the range of their input.
_MOVES = {
    *(_ATEN.view.default, _ATEN.reshape.default, _ATEN.flatten.using_ints, _ATEN.unflatten.int),
    *(_ATEN.squeeze.dim, _ATEN.squeeze.dims, _ATEN.unsqueeze.default, _ATEN.transpose.int, _ATEN.permute.default),
    *(_ATEN.max_pool2d.default, _ATEN.slice.Tensor, _ATEN.select.int, _ATEN.contiguous.default, _ATEN.clone.default),
    _ATEN.dropout.default,
}


def for_xnnpack(program: ExportedProgram) -> ExportedProgram:
    """A program whose quantized layers are in a form that XNNPACK computes, with the same numbers but for rounding.

    Args:
        program: Traced with operators of PT2E.
    """
    ops = torch.ops.quantized_decomposed
    program = program.run_decompositions({})  # without operators that change tensors in place
    graph = program.graph
    _make_scales_usual(program)
    _widen(program)
    for node in list(graph.nodes):
        if node.target in _MOVES and _is(node.args[0], ops.dequantize_per_tensor.default):
            _requantize(graph, node)
    for node in list(graph.nodes):
        if node.target == _ATEN.cat.default:
            _share_range(graph, node)
    for node in list(graph.nodes):
        if _is(node, ops.dequantize_per_tensor.default):
            _repeat_for_each_reader(graph, node)
    for node in list(graph.nodes):
        if _is(node, ops.dequantize_per_channel.default):
            _give_to_readers(graph, node)
    for node in filter(_becomes_float_conv2d, list(graph.nodes)):
        _keep_float(graph, node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program


def _is(node: object, *targets: object) -> bool:
    return isinstance(node, fx.Node) and node.target in targets


def _give_to_readers(graph: fx.Graph, weight: fx.Node) -> None:
    """Gives each layer that reads a weight its own form of it, and removes the common one."""
    for reader in list(weight.users):
        if _is_static(reader, weight):
            _own(graph, weight, reader)
        elif _can_be_dynamic(reader, weight):
            _round_again(graph, reader)
            _own(graph, weight, reader)
        else:
            _multiply(graph, weight, reader)
    graph.erase_node(weight)


def _make_scales_usual(program: ExportedProgram) -> None:
    """Gives channels of zeros, whose scale may be any number, one that is near those of the other channels."""
    for node in program.graph.nodes:
        if _is(node, torch.ops.quantized_decomposed.dequantize_per_channel.default):
            integers, scales, axis = _constant(program, node.args[0]), _constant(program, node.args[1]), node.args[3]
            assert isinstance(axis, int)
            _set_constant(program, node.args[1], usual_scales(integers, scales.detach(), axis))


def _widen(program: ExportedProgram) -> None:
    """Raises trained scales that are too small for what writes the tensor, or for the biases of what reads it."""
    ops = torch.ops.quantized_decomposed
    for node in program.graph.nodes:
        if not _is(node, ops.quantize_per_tensor.default):
            continue
        readers = [reader for rounded in node.users for reader in _layers_behind(rounded)]
        least = max([_least_scale(program, node.args[0]), *(_least_input_scale(program, each) for each in readers)])
        if isinstance(node.args[1], float) and node.args[1] < least:
            for each in (node, *node.users):
                each.args = (each.args[0], least, *each.args[2:])


def _least_scale(program: ExportedProgram, node: object) -> float:
    """The least scale with which the result of an operator can be written."""
    ops = torch.ops.quantized_decomposed
    while _is(node, *_RELUS):
        assert isinstance(node, fx.Node)
        node = node.args[0]
    if not isinstance(node, fx.Node) or not _is_integer_layer(node):
        return 0.0
    read, weight = node.args[:2]
    while _is(read, *_MOVES):
        assert isinstance(read, fx.Node)
        read = read.args[0]
    if not _is(read, ops.dequantize_per_tensor.default):
        return 0.0
    assert isinstance(read, fx.Node)
    assert isinstance(weight, fx.Node)
    scale = read.args[1]
    assert isinstance(scale, float)
    return least_output_scale(scale, _constant(program, weight.args[1]))


def _least_input_scale(program: ExportedProgram, layer: fx.Node) -> float:
    weight, bias = layer.args[1], layer.args[2] if len(layer.args) > 2 else None
    assert isinstance(weight, fx.Node)
    is_held = isinstance(bias, fx.Node) and bias.op == "placeholder"
    held = _constant(program, bias) if is_held else None
    return least_input_scale(_constant(program, weight.args[1]), held)


def _layers_behind(node: fx.Node) -> list[fx.Node]:
    """The layers that read a rounded tensor, perhaps moved."""
    found = []
    for user in node.users:
        if _is_integer_layer(user) and user.args[0] is node:
            found.append(user)
        elif _is(user, *_MOVES):
            found += _layers_behind(user)
    return found


def _is_integer_layer(node: fx.Node) -> bool:
    weight = node.args[1] if len(node.args) > 1 else None
    is_held = _is(weight, torch.ops.quantized_decomposed.dequantize_per_channel.default)
    return is_held and isinstance(weight, fx.Node) and _is_layer(node, weight)


def _requantize(graph: fx.Graph, node: fx.Node) -> None:
    """Quantizes the result of an operator that moves numbers, which changes none of them."""
    ops = torch.ops.quantized_decomposed
    source = node.args[0]
    assert isinstance(source, fx.Node)
    readers = list(node.users)
    with graph.inserting_after(node):
        integers = _call(graph, ops.quantize_per_tensor.default, (node, *source.args[1:]), node)
    integers.meta["val"] = node.meta["val"].to(torch.int8)
    with graph.inserting_after(integers):
        rounded = _call(graph, ops.dequantize_per_tensor.default, (integers, *source.args[1:]), node)
    for reader in readers:
        reader.replace_input_with(node, rounded)


def _share_range(graph: fx.Graph, node: fx.Node) -> None:
    """Rounds the parts of a concatenation as its result is rounded, since XNNPACK has one range for all of them."""
    ops = torch.ops.quantized_decomposed
    parts, reader = node.args[0], _only_reader(node)
    if not _is(reader, ops.quantize_per_tensor.default) or not isinstance(parts, list | tuple):
        return
    assert reader is not None
    rounded = []
    for part in parts:
        assert isinstance(part, fx.Node)
        with graph.inserting_before(node):
            integers = _call(graph, ops.quantize_per_tensor.default, (part, *reader.args[1:]))
            rounded.append(_call(graph, ops.dequantize_per_tensor.default, (integers, *reader.args[1:])))
    node.args = (rounded, *node.args[1:])


def _repeat_for_each_reader(graph: fx.Graph, node: fx.Node) -> None:
    """XNNPACK fuses a dequantization only into its single reader."""
    for reader in list(node.users)[1:]:
        with graph.inserting_before(reader):
            reader.replace_input_with(node, graph.node_copy(node))


def _is_static(reader: fx.Node, weight: fx.Node) -> bool:
    ops = torch.ops.quantized_decomposed
    is_layer = _is_layer(reader, weight) and _is(reader.args[0], ops.dequantize_per_tensor.default)
    last = _only_reader(reader)
    if _is(last, *_RELUS):
        assert last is not None
        last = _only_reader(last)
    return is_layer and _is(last, ops.quantize_per_tensor.default)


def _constant(program: ExportedProgram, node: object) -> torch.Tensor:
    """The tensor that an input of the program holds."""
    name = _held_name(program, node)
    tensor: torch.Tensor = program.constants[name] if name in program.constants else program.state_dict[name]
    return tensor


def _set_constant(program: ExportedProgram, node: object, tensor: torch.Tensor) -> None:
    name = _held_name(program, node)
    holder = program.constants if name in program.constants else program.state_dict
    holder[name] = nn.Parameter(tensor, requires_grad=False) if isinstance(holder[name], nn.Parameter) else tensor


def _held_name(program: ExportedProgram, node: object) -> str:
    assert isinstance(node, fx.Node)
    signature = program.graph_signature
    names: dict[str, str] = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    return names[node.name]


def _is_layer(reader: fx.Node, weight: fx.Node) -> bool:
    is_known = reader.target in _CONVOLUTIONS or reader.target == _ATEN.linear.default
    return is_known and reader.args[1] is weight and reader.args[0] is not weight


def _can_be_dynamic(reader: fx.Node, weight: fx.Node) -> bool:
    """Whether a layer's input is rounded anyway, and it is one that XNNPACK has in the dynamic form."""
    if not _is_layer(reader, weight) or weight.args[3] != 0:
        return False
    if reader.target != _ATEN.linear.default and not _is_plain_conv2d(reader):
        return False
    return _is(reader.args[0], torch.ops.quantized_decomposed.dequantize_per_tensor.default)


def _is_plain_conv2d(layer: fx.Node) -> bool:
    if layer.target not in {_ATEN.conv2d.default, _ATEN.conv2d.padding}:
        return False
    groups = layer.args[6] if len(layer.args) > 6 else 1
    return isinstance(groups, int) and groups == 1


def _only_reader(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _own(graph: fx.Graph, weight: fx.Node, reader: fx.Node) -> None:
    """Gives a layer a dequantization of its weight that nobody else reads."""
    with graph.inserting_before(reader):
        reader.replace_input_with(weight, graph.node_copy(weight))


def _round_again(graph: fx.Graph, layer: fx.Node) -> None:
    """Rounds each row of a linear layer's input, or each example of a convolution's, to the range that it has."""
    ops = torch.ops.quantized_decomposed
    source = layer.args[0]
    assert isinstance(source, fx.Node)
    is_linear = layer.target == _ATEN.linear.default
    with graph.inserting_before(layer):
        if is_linear:
            found = _call(graph, ops.choose_qparams_per_token_asymmetric.default, (source, torch.int8))
        else:  # XNNPACK finds the range of each example, whatever the operator says
            found = _call(graph, ops.choose_qparams.tensor, (source, -128, 127, 1e-12, torch.int8))
        limits = (*(_call(graph, operator.getitem, (found, part)) for part in (0, 1)), -128, 127, torch.int8)
        if is_linear:
            integers = _call(graph, ops.quantize_per_token.default, (source, *limits))
            rounded = _call(graph, ops.dequantize_per_token.default, (integers, *limits, torch.float32))
        else:
            integers = _call(graph, ops.quantize_per_tensor.tensor, (source, *limits))
            rounded = _call(graph, ops.dequantize_per_tensor.tensor, (integers, *limits))
    layer.args = (rounded, *layer.args[1:])


def _keep_float(graph: fx.Graph, layer: fx.Node) -> None:
    """Keeps XNNPACK from taking a layer with a float weight for one in integers: adds and removes an axis around it.

    ExecuTorch makes a 1-D convolution, or a BatchNorm, a 2-D convolution, and rounds what that reads and writes if the
    tensor was or will be rounded; XNNPACK then refuses the float weight.
    """
    ops = torch.ops.quantized_decomposed
    last = layer
    while (reader := _only_reader(last)) is not None and (_is(reader, *_RELUS, operator.getitem) or _is_norm(reader)):
        last = reader
    edges = [(node, layer) for node in layer.all_input_nodes if _is(node, ops.dequantize_per_tensor.default)]
    edges += [(last, reader) for reader in last.users if _is(reader, ops.quantize_per_tensor.default)]
    for source, reader in edges:
        with graph.inserting_before(reader):
            longer = _call(graph, _ATEN.unsqueeze.default, (source, -1))
            reader.replace_input_with(source, _call(graph, _ATEN.squeeze.dim, (longer, -1)))


def _becomes_float_conv2d(node: fx.Node) -> bool:
    kinds = _ATEN.conv1d.default, _ATEN.conv1d.padding, _ATEN.conv_transpose1d.default
    is_convolution = _is(node, *kinds) and not _is_integer_layer(node)
    return is_convolution or _is_norm(node)


def _is_norm(node: fx.Node) -> bool:
    return _is(node, _ATEN._native_batch_norm_legit_no_training.default)


def _multiply(graph: fx.Graph, weight: fx.Node, reader: fx.Node) -> None:
    """Converts a weight by plain arithmetic: XNNPACK would take the quantized form for one that it computes."""
    integers, scales, _, axis = weight.args[:4]
    assert isinstance(integers, fx.Node)
    assert isinstance(axis, int)
    shape = [1] * integers.meta["val"].dim()
    shape[axis] = -1
    with graph.inserting_before(reader):
        floats = _call(graph, _ATEN._to_copy.default, (integers,))
        floats.kwargs = {"dtype": torch.float32}
        factors = _call(graph, _ATEN.view.default, (scales, shape))
        reader.replace_input_with(weight, _call(graph, _ATEN.mul.Tensor, (floats, factors)))


def _call(graph: fx.Graph, target: object, args: Iterable[object], like: fx.Node | None = None) -> fx.Node:
    node = graph.call_function(target, tuple(args))  # type: ignore[arg-type]  # both are what fx takes
    if like is not None:
        node.meta["val"] = like.meta["val"]
    return node
