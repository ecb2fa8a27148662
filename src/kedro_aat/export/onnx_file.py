"""From an `nn.Module` to an ONNX model that holds what onnxruntime needs, and nothing else.

PyTorch's exporter leaves 30-40 KB of notes to itself in a ten-layer model, and its own optimisation merges
weights of equal content, such as those of two layers that a mask emptied, under one name. So the exporter is
asked for its plain graph, which the same libraries then simplify without that merging.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes import common
from onnxscript import optimizer, rewriter
from torch import Tensor, nn

from kedro_aat.errors import ExportError
from kedro_aat.export.program import quiet, to_program

# Operators that rearrange numbers. Folding them would put one or several weights into a nameless constant.
_REARRANGING = {"Concat", "Expand", "Gather", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
_ROUNDS = 2  # of folding and rewriting: the second folds what the first made constant


def to_onnx(model: nn.Module, example_input: Tensor) -> onnx.ModelProto:
    """Export a model, in evaluation mode, to a lean ONNX model with input "input" and output "output".

    The first dimension of both is named "batch" and takes any size. Batch normalisation is folded into the
    layer before it, which keeps every zero of that layer's weight (and adds zeros where its own scale is 0).

    Weights of two and more dimensions keep the names that `model.named_parameters()` gives them (a shared weight
    the first of its names): those of `nn.Conv*`, `nn.ConvTranspose*`, `nn.Embedding`, `nn.GRU`, `nn.LSTM`,
    `nn.MultiheadAttention` and `nn.Linear`, the last perhaps transposed. Those of a parametrised layer do not.
    Biases and the parameters of normalisation layers may be folded away.

    Args:
        model: Takes one tensor and returns one. It must be on the CPU. Afterwards each of its modules is again
            in the mode (training or evaluation) that it was in.
        example_input: (B, ...) with B at least 1; its shape and type matter, its values do not.

    Returns:
        The model, checked by `onnx.checker`. It holds no metadata, doc strings, names of nodes or shapes of
        intermediate values, and no negative zeros, which masks leave behind and which compress badly.

    Raises:
        ExportError: The model cannot be exported for any batch size, returns anything but one tensor, or uses an
            operator that ONNX has no counterpart of.
    """
    program = to_program(model, example_input)
    with quiet():
        exported = _translate(program, type(model).__name__)
        _simplify(exported, {name for name, weight in _named_parameters(model) if weight.ndim >= 2})
        _rename(exported.graph, _first_names(model))
        _clear_negative_zeros(exported.graph)
        _clear_notes(exported)
        proto = ir.to_proto(exported)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def _translate(program: torch.export.ExportedProgram, name: str) -> ir.Model:
    if (outputs := len(program.graph_signature.user_outputs)) != 1:
        raise ExportError(f"a model must return one tensor to be exported, but {name} returns {outputs} values.")
    try:
        exported = torch.onnx.export(
            program, input_names=["input"], output_names=["output"], optimize=False, verbose=False
        )
    except (torch.onnx.OnnxExporterError, RuntimeError) as error:
        raise ExportError(f"{name} cannot be written in ONNX. The exporter says: {error}") from error
    assert exported is not None  # only the exporter for TorchScript returns None
    return exported.model


def _simplify(model: ir.Model, weights: set[str]) -> None:
    """Fold constants and batch normalisation and remove shape arithmetic, in place; the weights keep their names."""

    def should_fold(node: ir.Node) -> bool | None:
        rearranged = [value for value in node.inputs if value is not None and value.name in weights]
        if node.op_type not in _REARRANGING or not rearranged:
            return None  # the library decides, by size
        # Transposed, a weight has the same zeros. One that is used elsewhere too would be stored twice.
        return node.op_type == "Transpose" and len(rearranged[0].uses()) == 1

    common.InlinePass()(model)
    common.CommonSubexpressionEliminationPass()(model)  # leaves one Transpose for each shared weight
    transposed = {
        node.outputs[0].name: source.name
        for node in model.graph
        if node.op_type == "Transpose" and (source := node.inputs[0]) is not None and source.name in weights
    }
    for _ in range(_ROUNDS):
        optimizer.fold_constants(model, onnx_shape_inference=True, should_fold=should_fold)
        rewriter.rewrite(model)  # fuses batch normalisation, makes the shapes of Reshape constant, and more
    common.CommonSubexpressionEliminationPass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    for folded, weight in transposed.items():
        if folded in model.graph.initializers:
            model.graph.initializers[folded].name = weight


def _named_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All parameters and buffers; a shared one under each of its names."""
    return itertools.chain(
        model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)
    )


def _first_names(model: nn.Module) -> dict[str, str]:
    """Each name of each parameter or buffer -> the first name of the same tensor."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in _named_parameters(model)}


def _rename(graph: ir.Graph, first_names: Mapping[str, str]) -> None:
    """Name the batch dimension, and give all but the model's own tensors short names, in place."""
    batch = graph.inputs[0].shape[0] if graph.inputs[0].shape else None
    for value in (*graph.inputs, *graph.outputs):
        if value.shape:
            value.shape = ir.Shape(["batch" if size == batch else size for size in value.shape])

    taken = {*first_names, *(value.name for value in (*graph.inputs, *graph.outputs))}
    constants = (name for i in itertools.count() if (name := f"c{i}") not in taken)
    values = (name for i in itertools.count() if (name := f"v{i}") not in taken)
    for value in tuple(graph.initializers.values()):
        assert value.name is not None  # an initializer is found by its name
        fused = value.name.removesuffix("_bias")  # batch normalisation gives "conv.weight" a "conv.weight_bias"
        if value.name in first_names:
            value.name = first_names[value.name]
        elif fused in first_names and (bias := fused.removesuffix("weight") + "bias") not in graph.initializers:
            value.name = bias
        else:
            value.name = next(constants)
    for node in ir.traversal.RecursiveGraphIterator(graph):
        node.name = None
        for value in node.outputs:
            if value.name and not value.is_graph_output():
                value.name = next(values)


def _clear_negative_zeros(graph: ir.Graph) -> None:
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype.is_floating_point():
            numbers = tensor.numpy()
            if (np.signbit(numbers) & (numbers == 0)).any():
                value.const_value = ir.tensor(numbers + numbers.dtype.type(0), name=value.name)


def _clear_notes(model: ir.Model) -> None:
    """Remove metadata, doc strings, shapes of intermediate values and the producer, in place."""
    common.ClearMetadataAndDocStringPass()(model)
    graph = model.graph
    model.producer_name = model.producer_version = model.doc_string = None
    model.metadata_props.clear()
    graph.metadata_props.clear()  # the pass leaves these of a graph without nodes
    inner = [value for node in ir.traversal.RecursiveGraphIterator(graph) for value in node.outputs]
    for value in (*graph.inputs, *graph.outputs, *graph.initializers.values(), *inner):
        value.metadata_props.clear()
        value.doc_string = None
    for value in inner:
        if not value.is_graph_output():
            value.shape = value.type = None
