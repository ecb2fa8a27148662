"""A model that is exported: what it takes and returns by name, and its program with some axes of any size."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule

from kedro_aat.compression.quantization.arithmetic import as_decomposed_operators, as_onnx_operators
from kedro_aat.compression.quantization.held import decomposable
from kedro_aat.errors import ExportError
from kedro_aat.export.axes import Axes, axes_of, batch_symbol, free_symbols, other_sizes, resized, shapes_to_trace
from kedro_aat.export.settings import FileSettings
from kedro_aat.export.signature import INPUT, OUTPUT, input_tensors, output_tensors, structured
from kedro_aat.model_inputs import ModelInputs, call_model, describe_inputs, map_tensors, num_examples
from kedro_aat.modes import evaluating, first_cause, quiet
from kedro_aat.tensors import synthetic_like

# torch.export treats a dimension of size 0 or 1 as a constant; it can be a symbol from size 2.
_TRACED_BATCH = 2

# What torch builds from a program has attributes of its own, such as `meta` and `graph`. A model with a part of such a
# name is traced inside another module.
_NAMES_OF_TORCH = frozenset(dir(GraphModule(nn.Module(), Graph())))
_HOLDER = "model"

# How integers are rounded and converted in a program: by plain arithmetic, by operators of ONNX, or by those of PT2E.
Operators = Literal["plain", "onnx", "decomposed"]


@dataclass(frozen=True)
class Trial:
    """Inputs with one axis of another size, and what the model returns for them.

    Attributes:
        symbol: The axis, as a program calls it.
        inputs: Name -> tensor.
        outputs: Name -> tensor.
    """

    symbol: str
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]


class Subject:
    """A model that is exported, with made-up inputs, and with the names of its inputs and outputs.

    Args:
        model: The model, on the CPU and in evaluation mode.
        example_input: Inputs of at least one example; their shapes, types and ranges matter, their values are not kept.
        settings: Which outputs are exported, and which axes may have any size.

    Attributes:
        inputs: Name -> made-up tensor, of two examples.
        outputs: Name -> what the model returns for them.
        batched: Names of the inputs whose first axis is the batch.
        prefix: What the program puts before the names of the model's parameters; mostly nothing.
        asked: Input -> axis -> its name, for the axes that the settings ask for; None if they are to be found.

    Raises:
        ExportError: If there is no example, or the model does not run, or the settings name what it does not have.
    """

    def __init__(self, model: nn.Module, example_input: ModelInputs, settings: FileSettings) -> None:
        size = num_examples(example_input)
        if size == 0:
            raise ExportError(
                "`example_input` must hold at least one example along its first dimension, but got "
                f"{describe_inputs(example_input)}."
            )
        self.model, self._settings = model, settings
        self._batch = synthetic_like(example_input, _TRACED_BATCH)
        given = input_tensors(model, example_input)
        self.batched = [name for name, tensor in given.items() if tensor.dim() and len(tensor) == size]
        self.inputs = input_tensors(model, self._batch)
        self.asked = settings.axes_among({name: tensor.dim() for name, tensor in self.inputs.items()})
        try:
            with evaluating(model), torch.no_grad(), quiet():
                returned = call_model(model, self._batch)
        except Exception as error:
            raise _cannot_be_exported(model, f"It fails with made-up inputs: {first_cause(error)}") from error
        self.outputs = output_tensors(returned, settings.outputs)
        parts = {name for name, _ in model.named_children()} | {*model._parameters, *model._buffers}
        self.prefix = f"{_HOLDER}." if parts & _NAMES_OF_TORCH else ""
        self.is_plain = list(self.inputs) == [INPUT] and isinstance(returned, Tensor)

    @property
    def name(self) -> str:
        """Class of the model."""
        return type(self.model).__name__

    @property
    def takes_text(self) -> bool:
        """Whether all inputs are whole numbers or truth values, in rows of any length: text, or another sequence."""
        tensors = self.inputs.values()
        return all(not tensor.is_floating_point() and not tensor.is_complex() for tensor in tensors)

    def call(self, tensors: Sequence[Tensor]) -> Any:
        """Calls the model with tensors in place of its made-up inputs, in the order of their names."""
        parts = iter(tensors)
        return call_model(self.model, map_tensors(lambda _: next(parts), self._batch))

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The model's outputs by name."""
        with evaluating(self.model), torch.no_grad():
            return output_tensors(self.call(list(inputs.values())), self._settings.outputs)

    def output_axes(self) -> tuple[int | None, ...]:
        """The axis of each output that grows with the batch; None if there is none, as in a loss, or several."""
        larger = self.run(resized(self.inputs, {name: [0] for name in self.batched}, _TRACED_BATCH + 1))
        found: list[int | None] = []
        for name, tensor in self.outputs.items():
            sizes = zip(tensor.shape, larger[name].shape, strict=True)
            axes = [axis for axis, (size, other) in enumerate(sizes) if size != other]
            found.append(axes[0] if len(axes) == 1 else None)
        return tuple(found)

    def module(self) -> nn.Module:
        """What is traced: the model itself, or a module around it if torch cannot take the model as it is."""
        return self.model if self.is_plain and not self.prefix else _Flat(self, self._settings.outputs)

    def trace(
        self, *, free: Mapping[str, Iterable[int]], kind: Any, operators: Operators = "plain", most: int | None = None
    ) -> ExportedProgram:
        """The program, in which some axes beside the batch have any size.

        Args:
            free: Name of an input -> such axes.
            kind: `Dim.AUTO` if they may turn out to be fixed, `Dim.DYNAMIC` if that is an error.
            operators: How integers are rounded and converted.
            most: Largest batch size; None for any.
        """
        return self._export(self.inputs, shapes_to_trace(self.inputs, self.batched, free, kind, most), operators)

    def trace_batch(self, batch_size: int, operators: Operators = "plain") -> ExportedProgram:
        """The program for one batch size, in which no axis has any other size.

        Args:
            batch_size: At least 1.
            operators: How integers are rounded and converted.
        """
        inputs = resized(self.inputs, {name: [0] for name in self.batched}, batch_size)
        return self._export(inputs, [{} for _ in inputs], operators)

    def _export(
        self, inputs: Mapping[str, Tensor], shapes: Sequence[Mapping[int, Any]], operators: Operators
    ) -> ExportedProgram:
        try:
            with evaluating(self.model), torch.no_grad(), quiet(), _emitting(operators, self.model):
                program = torch.export.export(self.module(), tuple(inputs.values()), dynamic_shapes=tuple(shapes))
        except Exception as error:  # torch.export raises a dozen kinds of error, most of them private
            raise _cannot_be_exported(self.model, f"torch.export says: {first_cause(error)}") from error
        _remove_stack_traces(program)
        return program

    def axes(self, program: ExportedProgram) -> Axes:
        """The size of each axis of the program's inputs."""
        return axes_of(program, self.inputs)

    def trials(self, program: ExportedProgram) -> list[Trial | str]:
        """For each free axis of a program, what the model returns at another size; its symbol if it takes no other."""
        found: list[Trial | str] = []
        for symbol, places in free_symbols(self.axes(program), self.batched).items():
            name, (axis, *_) = next(iter(places.items()))
            for size in other_sizes(self.inputs[name].shape[axis]):
                inputs = resized(self.inputs, places, size)
                with contextlib.suppress(Exception), quiet():  # whatever the model raises, it does not take this size
                    if not inputs[name].is_floating_point():
                        # A model that reads each column of a table leaves columns that are too many unread.
                        self.run(resized(self.inputs, places, self.inputs[name].shape[axis] - 1))
                    found.append(Trial(symbol, inputs, self.run(inputs)))
                    break
            else:
                found.append(symbol)
        return found

    def trials_of_one(self, program: ExportedProgram) -> list[Trial]:
        """What the model returns for a batch of 1, which a program with free axes may refuse; empty if it fails."""
        axes = self.axes(program)
        batch = batch_symbol(axes, self.batched)
        if not isinstance(batch, str):
            return []
        places = {name: [axis for axis, size in enumerate(sizes) if size == batch] for name, sizes in axes.items()}
        inputs = resized(self.inputs, places, 1)
        with contextlib.suppress(Exception), quiet():  # whatever the model raises, it takes no batch of 1
            return [Trial(batch, inputs, self.run(inputs))]
        return []


class _Flat(nn.Module):
    """A model as a module that takes and returns what torch can export; its parameters' names begin with a prefix.

    Args:
        subject: The model.
        chosen: Names of the outputs to return; None for all.
    """

    def __init__(self, subject: Subject, chosen: Sequence[str] | None) -> None:
        super().__init__()
        if subject.prefix:
            self.add_module(_HOLDER, subject.model)
        else:
            for part in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
                vars(self)[part] = vars(subject.model)[part]
        self.training = False

        def forward(flat: nn.Module, *tensors: Tensor) -> Any:
            returned = output_tensors(subject.call(tensors), chosen)
            seen = {id(tensor) for tensor in tensors}
            outputs: dict[str, Tensor] = {}
            for name, tensor in returned.items():  # a file has one name for each tensor, so the second is a copy
                outputs[name] = tensor.clone() if id(tensor) in seen else tensor
                seen.add(id(tensor))
            return _plain(structured(outputs))

        parameters = [inspect.Parameter("flat", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
        for name in subject.inputs:
            safe = "".join(letter if letter.isalnum() else "_" for letter in name)
            parameters.append(inspect.Parameter(safe, inspect.Parameter.POSITIONAL_OR_KEYWORD))
        forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # inspect reads it
        vars(self)["forward"] = MethodType(forward, self)


@contextlib.contextmanager
def _emitting(operators: Operators, model: nn.Module) -> Iterator[None]:
    """Lets a quantized model round and convert integers by the given operators while it is traced."""
    with contextlib.ExitStack() as stack:
        if operators == "onnx":
            stack.enter_context(as_onnx_operators())
        elif operators == "decomposed":
            stack.enter_context(decomposable(model))
            stack.enter_context(as_decomposed_operators())
        yield


def _plain(structure: Any) -> Any:
    """The structure with dictionaries in place of their subclasses and of named tuples, which torch does not know."""
    if hasattr(structure, "_fields"):
        return {OUTPUT: dict(zip(structure._fields, map(_plain, structure), strict=True))}
    if isinstance(structure, dict):
        return {key: _plain(part) for key, part in structure.items()}
    return tuple(map(_plain, structure)) if isinstance(structure, tuple) else structure


def require_cpu(model: nn.Module) -> None:
    """Checks that a model is on the CPU.

    Raises:
        ExportError: If it is not.
    """
    tensors = (*model.parameters(), *model.buffers())
    if elsewhere := sorted({str(tensor.device) for tensor in tensors if tensor.device.type != "cpu"}):
        raise ExportError(
            f"a model is exported from the CPU, but got one on {', '.join(elsewhere)}: pass `model.cpu()`."
        )


def _remove_stack_traces(program: ExportedProgram) -> None:
    for module in program.graph_module.modules():  # branches and loops are graphs inside the graph
        if isinstance(module, GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)


def _cannot_be_exported(model: nn.Module, reason: str) -> ExportError:
    return ExportError(
        f"{type(model).__name__} cannot be exported for any batch size. The first dimension of its inputs must be the "
        "batch; its forward must neither convert the batch size to a Python number, as `len(x)` does (write "
        f"`x.shape[0]`), nor branch on the values of tensors. {reason}"
    )
