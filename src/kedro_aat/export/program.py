"""Export an `nn.Module` to a `torch.export` program: one graph for any batch size, without the user's data."""

from __future__ import annotations

from torch import nn
from torch.export import ExportedProgram

from kedro_aat.export.settings import FileSettings
from kedro_aat.export.signature import output_tensors
from kedro_aat.export.subject import Subject, require_cpu
from kedro_aat.export.tracing import TOLERANCE, refused, trace
from kedro_aat.model_inputs import ModelInputs
from kedro_aat.modes import quiet
from kedro_aat.wrapped import unwrapped


def to_program(
    model: nn.Module, example_input: ModelInputs, settings: FileSettings | None = None, *, search: bool = True
) -> ExportedProgram:
    """Trace a model in evaluation mode into a program that takes any batch size.

    The program shares the model's parameters: save it before training the model further. `torch.export.save` writes
    it to a `.pt2` file, and `torch.export.load` reads that file. The file holds made-up inputs instead of examples, and
    no stack traces, which would name the paths and quote the lines of the user's code.

    A program of a model with several inputs takes their tensors by position, in the order of the names that
    `input_tensors` gives them; mappings and dataclasses that a model returns become dictionaries, and lists tuples.

    Args:
        model: On the CPU, so that the file runs anywhere. The mode of each of its modules (training or evaluation) is
            restored afterwards.
        example_input: What the model is called with, in any structure, for at least one example; its shapes, types and
            ranges matter, its values are not kept.
        settings: Which outputs are exported, and which axes may have any size; by default all that can.
        search: Whether to search for axes that may have any size, if the settings name none.

    Returns:
        The program. The first dimension of its inputs is symbolic, and every other one that the model is indifferent
        to.

    Raises:
        ExportError: The model is not on the CPU, cannot be traced, or works for only one batch size.
    """
    model = unwrapped(model)
    require_cpu(model)
    subject = Subject(model, example_input, settings or FileSettings())
    traced = trace(subject, search=search)
    if traced.trials:
        with quiet():
            module = traced.program.module()
            reason = traced.disagreement(lambda tensors: output_tensors(module(*tensors)), TOLERANCE)
        if reason is not None and subject.asked is not None:
            raise refused(subject, f"At another size {reason}")
        if reason is not None:
            traced = trace(subject, search=False)
    return traced.program
