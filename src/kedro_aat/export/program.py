"""Export an `nn.Module` to a `torch.export` program: one graph for any batch size, without the user's data."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from kedro_aat.errors import ExportError
from kedro_aat.modes import evaluating, first_cause, quiet
from kedro_aat.tensors import synthetic_like
from kedro_aat.wrapped import unwrapped

# torch.export treats a dimension of size 0 or 1 as a constant; it can be a symbol from size 2.
_TRACED_BATCH = 2


def to_program(model: nn.Module, example_input: Tensor) -> ExportedProgram:
    """Trace a model in evaluation mode into a program that takes any batch size.

    The program shares the model's parameters: save it before training the model further. `torch.export.save` writes
    it to a `.pt2` file, and `torch.export.load` reads that file. The file holds made-up inputs instead of examples, and
    no stack traces, which would name the paths and quote the lines of the user's code.

    Args:
        model: Takes one tensor, and is on the CPU, so that the file runs anywhere. The mode of each of its modules
            (training or evaluation) is restored afterwards.
        example_input: (B, ...) with B at least 1; its shape, type and range matter, its values are not kept.

    Returns:
        The program; only the first dimension of its input is symbolic.

    Raises:
        ExportError: The model is not on the CPU, cannot be traced, or works for only one batch size.
    """
    model = unwrapped(model)
    _require_cpu(model)
    try:
        with evaluating(model), torch.no_grad(), quiet():
            inputs = (_traced_batch(example_input),)
            program = torch.export.export(model, inputs, dynamic_shapes=({0: Dim("batch")},))
    except Exception as error:  # torch.export raises a dozen kinds of error, most of them private
        raise ExportError(
            f"{type(model).__name__} cannot be exported for any batch size. Its forward must take one tensor "
            "whose first dimension is the batch; it must neither convert the batch size to a Python number "
            f"nor branch on the values of tensors. torch.export says: {first_cause(error)}"
        ) from error
    _remove_stack_traces(program)
    return program


def _remove_stack_traces(program: ExportedProgram) -> None:
    for module in program.graph_module.modules():  # branches and loops are graphs inside the graph
        if isinstance(module, GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)


def _require_cpu(model: nn.Module) -> None:
    tensors = (*model.parameters(), *model.buffers())
    if elsewhere := sorted({str(tensor.device) for tensor in tensors if tensor.device.type != "cpu"}):
        raise ExportError(
            f"a model is exported from the CPU, but got one on {', '.join(elsewhere)}: pass `model.cpu()`."
        )


def _traced_batch(example_input: Tensor) -> Tensor:
    """Two made-up examples. The program keeps its inputs, and a slice of the user's batch would keep all of it."""
    if example_input.ndim == 0 or len(example_input) == 0:
        raise ExportError(
            "`example_input` must hold at least one example along its first dimension, "
            f"but got shape {tuple(example_input.shape)}."
        )
    return synthetic_like(example_input, _TRACED_BATCH)
