"""Export an `nn.Module` to an ONNX model that contains what onnxruntime needs, and nothing else.

PyTorch's exporter leaves 30-40 KB of its own metadata in a ten-layer model, and its optimization stores weights of
equal content, such as those of two layers that a mask emptied, once under one name. So the exporter only translates
the graph, and the same libraries then simplify it without merging weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes import common
from onnxscript import optimizer, rewriter
from torch import Tensor, nn

from kedro_aat.compression.quantization.arithmetic import as_onnx_operators
from kedro_aat.errors import ExportError
from kedro_aat.export.lean import make_lean
from kedro_aat.export.program import to_program
from kedro_aat.modes import first_cause, quiet
from kedro_aat.wrapped import unwrapped

# Operators that rearrange numbers. Folding them would turn one or more weights into an unnamed constant.
_REARRANGING = {
    "Concat",
    "Expand",
    "Gather",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
}
_NUM_ROUNDS = 2  # of folding and rewriting: the second folds what the first made constant


def to_onnx(model: nn.Module, example_input: Tensor) -> onnx.ModelProto:
    """Export a model in evaluation mode to a lean ONNX model with input "input" and output "output".

    The first dimension of both is named "batch" and takes any size. Batch normalization is folded into the layer
    before it. This keeps every zero in the weight of that layer, and adds zeros where its own scale is 0.

    Weights with two or more dimensions keep their names from `model.named_parameters()`; a shared weight keeps the
    first of its names. This holds for `nn.Conv*`, `nn.ConvTranspose*`, `nn.Embedding`, `nn.GRU`, `nn.LSTM`,
    `nn.MultiheadAttention` and `nn.Linear` (which may be transposed), but not for parametrized layers. Biases and
    the parameters of normalization layers may be folded away.

    Args:
        model: Takes one tensor, returns one tensor, and is on the CPU. The mode of each of its modules (training or
            evaluation) is restored afterwards.
        example_input: (B, ...) with B at least 1; its shape, type and range matter, its values are not kept.

    Returns:
        The model, checked by `onnx.checker`. It contains no metadata, doc strings, node names or shapes of
        intermediate values, and no negative zeros, which masks leave behind and which compress badly.

    Raises:
        ExportError: The model cannot be exported for any batch size, does not return exactly one tensor, or uses an
            operator that has no counterpart in ONNX.
    """
    model = unwrapped(model)
    with as_onnx_operators():
        program = to_program(model, example_input)
    with quiet():
        exported = _translate(program, type(model).__name__)
        _simplify(exported, {name for name, tensor in _named_tensors(model) if tensor.ndim >= 2})
        make_lean(exported, _first_names(model))
        proto = ir.to_proto(exported)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"the ONNX model of {type(model).__name__} is not valid. If its parameters are not float32, "
            f"export `model.float()`. onnx.checker says: {error}"
        ) from error
    return proto


def _translate(program: torch.export.ExportedProgram, name: str) -> ir.Model:
    if (num_outputs := len(program.graph_signature.user_outputs)) != 1:
        raise ExportError(f"a model must return one tensor to be exported, but {name} returns {num_outputs} values.")
    try:
        exported = torch.onnx.export(
            program, input_names=["input"], output_names=["output"], optimize=False, verbose=False
        )
    except (torch.onnx.OnnxExporterError, RuntimeError) as error:
        raise ExportError(f"{name} cannot be written in ONNX. The exporter says: {first_cause(error)}") from error
    assert exported is not None  # only the TorchScript exporter returns None
    return exported.model


def _simplify(model: ir.Model, weights: set[str]) -> None:
    """Fold constants and batch normalization and remove shape arithmetic, in place; weights keep their names."""

    def should_fold(node: ir.Node) -> bool | None:
        rearranged = [value for value in node.inputs if value is not None and value.name in weights]
        if node.op_type not in _REARRANGING or not rearranged:
            return None  # the library decides by size
        # Transposing keeps the zeros of a weight. A weight with other uses would be stored twice.
        return node.op_type == "Transpose" and len(rearranged[0].uses()) == 1

    common.InlinePass()(model)
    common.CommonSubexpressionEliminationPass()(model)  # leaves one Transpose per shared weight
    transposed = {
        node.outputs[0].name: source.name
        for node in model.graph
        if node.op_type == "Transpose" and (source := node.inputs[0]) is not None and source.name in weights
    }
    for _ in range(_NUM_ROUNDS):
        optimizer.fold_constants(model, onnx_shape_inference=True, should_fold=should_fold)
        rewriter.rewrite(model)  # fuses batch normalization, makes the shapes of Reshape constant, and more
    common.CommonSubexpressionEliminationPass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    for folded, weight in transposed.items():
        if folded is not None and folded in model.graph.initializers:
            model.graph.initializers[folded].name = weight


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Iterate over all parameters and buffers; a shared tensor appears under each of its names."""
    return itertools.chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))


def _first_names(model: nn.Module) -> dict[str, str]:
    """Map each name of each parameter or buffer to the first name of the same tensor."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in _named_tensors(model)}
