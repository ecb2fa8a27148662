"""Export an `nn.Module` to an ONNX model that contains what onnxruntime needs, and nothing else.

PyTorch's exporter leaves 30-40 KB of its own metadata in a ten-layer model, and its optimization stores weights of
equal content, such as those of two layers that a mask emptied, once under one name. So the exporter only translates
the graph, and the same libraries then simplify it without merging weights.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes import common
from onnxscript import optimizer, rewriter
from torch import Tensor, nn

from kedro_aat.compression.quantization.layers import quantized_spec
from kedro_aat.errors import ExportError
from kedro_aat.export.axes import axis_names
from kedro_aat.export.lean import make_lean
from kedro_aat.export.opset import LATER_OPSETS, OLDEST_NATIVE_OPSET, lower_ir_version
from kedro_aat.export.reshapes import make_shapes_constant
from kedro_aat.export.session import METADATA_KEY, OnnxModel
from kedro_aat.export.settings import FileSettings
from kedro_aat.export.signature import unique_names
from kedro_aat.export.subject import Subject, require_cpu
from kedro_aat.export.tracing import QUANTIZED_TOLERANCE, TOLERANCE, Traced, refused, trace
from kedro_aat.model_inputs import ModelInputs
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


# An ONNX file is one message of protobuf, which has at most 2 GB. Some of it is for the graph.
MOST_BYTES = 2_000_000_000


def refuse_too_large(model: nn.Module) -> None:
    """Checks that a model fits into an ONNX file; it takes no time.

    Raises:
        ExportError: If its tensors take more than 2 GB.
    """
    sizes: dict[int, int] = {}  # a tensor without storage, as on the meta device, has no address
    for _, tensor in _named_tensors(model):
        key = tensor.data_ptr() or id(tensor)
        sizes[key] = max(sizes.get(key, 0), tensor.numel() * tensor.element_size())
    if (total := sum(sizes.values())) > MOST_BYTES:
        raise ExportError(
            f"{total:,} bytes are the tensors of {type(model).__name__}, but an ONNX file holds at most {MOST_BYTES:,}:"
            " start from a smaller model. From Python it can be compressed without such a file: `controller.strip()` "
            "gives the compressed model, and `kedro_aat.export.program.to_program` its `.pt2` file without a limit."
        )


def to_onnx(
    model: nn.Module, example_input: ModelInputs, settings: FileSettings | None = None, *, search: bool = True
) -> onnx.ModelProto:
    """Export a model in evaluation mode to a lean ONNX model, with a named input and output for each tensor.

    A single input is called "input" and a single output "output"; for the names of several, see `signature.py`. The
    first dimension is named "batch" and takes any size. So does each other dimension that the model is indifferent to,
    if that adds no operator to the graph, since operators that compute shapes would cost time, or if the inputs are
    whole numbers such as words, which come in any number. An image's are named "height" and "width", a sequence's
    "length". Batch normalization is folded into the layer before it. This keeps every zero in the weight of that layer,
    and adds zeros where its own scale is 0.

    Weights with two or more dimensions keep their names from `model.named_parameters()`; a shared weight keeps the
    first of its names. This holds for `nn.Conv*`, `nn.ConvTranspose*`, `nn.Embedding`, `nn.GRU`, `nn.LSTM`,
    `nn.MultiheadAttention` and `nn.Linear` (which may be transposed), but not for parametrized layers. Biases and
    the parameters of normalization layers may be folded away.

    Args:
        model: On the CPU. The mode of each of its modules (training or evaluation) is restored afterwards.
        example_input: What the model is called with, in any structure, for at least one example; its shapes, types and
            ranges matter, its values are not kept.
        settings: Names, outputs, opset and axes; by default the oldest opset that works, and all axes that can.
        search: Whether to search for axes that may have any size, if the settings name none; it can take as long as
            the rest.

    Returns:
        The model, checked by `onnx.checker`. It contains no metadata (except for the names that the settings replace),
        doc strings, node names or shapes of intermediate values, and no negative zeros, which masks leave behind and
        which compress badly.

    Raises:
        ExportError: The model cannot be exported for any batch size, returns no tensor, is larger than 2 GB, or uses
            an operator that has no counterpart in ONNX.
    """
    model = unwrapped(model)
    require_cpu(model)
    refuse_too_large(model)
    settings = settings or FileSettings()
    subject = Subject(model, example_input, settings)
    traced = trace(subject, operators="onnx", search=search)
    try:
        proto = _write(traced, settings)
    except ExportError:
        if subject.asked is not None or not traced.trials:
            raise
        return _write(trace(subject, operators="onnx", search=False), settings)  # sizes may be what ONNX cannot express
    if not traced.trials:
        return proto
    tolerance = TOLERANCE if quantized_spec(model) is None else QUANTIZED_TOLERANCE
    if subject.asked is not None:
        if (reason := traced.disagreement(OnnxModel(proto).run, tolerance)) is not None:
            raise refused(subject, f"At another size of the ONNX file, {reason}")
        return proto
    if "Shape" not in (node.op_type for node in proto.graph.node):  # the size of an axis is not computed with
        if traced.disagreement(OnnxModel(proto).run, tolerance) is None:
            return proto
        return _write(trace(subject, operators="onnx", search=False), settings)
    fixed = _write(trace(subject, operators="onnx", search=False), settings)
    is_free = subject.takes_text or len(proto.graph.node) <= len(fixed.graph.node)
    return proto if is_free and traced.disagreement(OnnxModel(proto).run, tolerance) is None else fixed


def _write(traced: Traced, settings: FileSettings) -> onnx.ModelProto:
    """The ONNX model of a traced program."""
    subject = traced.subject
    weights = _first_names(subject.model)
    inputs = _renamed(list(subject.inputs), settings.input_names, "input_names", weights)
    outputs = _renamed(list(subject.outputs), settings.output_names, "output_names", [*weights, *inputs])
    with quiet():
        exported = _translate(traced.program, subject.name, inputs, outputs, settings.opset)
        if subject.prefix:
            for name, value in tuple(exported.graph.initializers.items()):
                value.name = name.removeprefix(subject.prefix)
        _simplify(exported, {name for name, tensor in _named_tensors(subject.model) if tensor.ndim >= 2})
        sizes = subject.axes(traced.program)
        make_lean(exported, weights, axis_names(sizes, subject.batched, subject.inputs, subject.asked or {}))
        proto = ir.to_proto(exported)
    paths = {**dict(zip(inputs, subject.inputs, strict=True)), **dict(zip(outputs, subject.outputs, strict=True))}
    if renamed := {name: path for name, path in paths.items() if name != path}:
        proto.metadata_props.add(key=METADATA_KEY, value=json.dumps(renamed))
    lower_ir_version(proto)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"the ONNX model of {subject.name} is not valid. If its parameters are not float32, "
            f"export `model.float()`. onnx.checker says: {error}"
        ) from error
    return proto


def _renamed(own: list[str], given: Sequence[str] | None, key: str, taken: Iterable[str]) -> list[str]:
    """The names in the file: those that the settings give, or the model's own, if they are not taken."""
    if given is None:
        return unique_names(own, taken, "_" + key.removesuffix("_names"))
    if len(given) != len(own):
        raise ExportError(f"export.{key} has {len(given)} names, but there are {len(own)}: {', '.join(own)}.")
    if double := sorted(set(given) & set(taken)):
        raise ExportError(f"export.{key}: {', '.join(double)} also names another tensor of the file.")
    return list(given)


def _translate(
    program: torch.export.ExportedProgram, name: str, inputs: list[str], outputs: list[str], opset: int | None
) -> ir.Model:
    error: Exception | None = None
    for version in [opset] if opset is not None else [OLDEST_NATIVE_OPSET, *LATER_OPSETS]:
        try:
            exported = torch.onnx.export(
                program,
                input_names=inputs,
                output_names=outputs,
                opset_version=version,
                optimize=False,
                verbose=False,
            )
        except (torch.onnx.OnnxExporterError, RuntimeError) as failure:
            error = error or failure
            continue
        assert exported is not None  # only the TorchScript exporter returns None
        if opset is not None and (got := exported.model.opset_imports.get("")) != opset:
            raise ExportError(
                f"{name} cannot be written in opset {opset} (export.opset), but in {got}: leave it out, or raise it."
            )
        return exported.model
    assert error is not None  # there is an opset
    raise ExportError(f"{name} cannot be written in ONNX. The exporter says: {first_cause(error)}") from error


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
        make_shapes_constant(model.graph)
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
