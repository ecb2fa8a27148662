"""What a model is called with, and what it returns: one tensor, or several in a tuple, list, mapping or dataclass.

Every part that runs a model calls it with `call_model`, so that all of them pass the same arguments.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

# A tensor, a tuple or list of positional arguments, a mapping of keyword arguments, or a dataclass. Nested freely;
# what is no tensor (None, numbers, strings) is passed on as it is.
ModelInputs: TypeAlias = Any


def arguments_of(model: nn.Module, inputs: ModelInputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns the positional and the keyword arguments with which a model takes its inputs.

    A tuple or list holds the positional arguments and a mapping the keyword arguments, if the signature of the model's
    `forward` accepts them; otherwise the whole of it is one argument. So is a tensor or anything else.

    Args:
        model: Not called.
        inputs: What the model is to be called with.
    """
    if isinstance(inputs, Mapping) and _accepts(model, (), dict(inputs)):
        return (), dict(inputs)
    if _is_plain_sequence(inputs) and _accepts(model, tuple(inputs), {}):
        return tuple(inputs), {}
    return (inputs,), {}


def inputs_of_arguments(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the mapping with which `call_model` calls a model as with these arguments.

    Args:
        model: Not called.
        args: Positional arguments.
        kwargs: Keyword arguments.

    Raises:
        TypeError: If the signature of `forward` does not accept them, or takes positional arguments without names.
    """
    signature = inspect.signature(model.forward)
    inputs: dict[str, Any] = {}
    for name, value in signature.bind(*args, **kwargs).arguments.items():
        kind = signature.parameters[name].kind
        if kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY):
            raise TypeError(f"forward takes '{name}' by position alone, so that no mapping can hold it")
        inputs |= value if kind is inspect.Parameter.VAR_KEYWORD else {name: value}
    return inputs


def call_model(model: Callable[..., Any], inputs: ModelInputs) -> Any:
    """Calls a model with its inputs, as `arguments_of` says; returns whatever it returns."""
    module = model if isinstance(model, nn.Module) else getattr(model, "__self__", None)
    args, kwargs = arguments_of(module, inputs) if isinstance(module, nn.Module) else ((inputs,), {})
    return model(*args, **kwargs)


def tensors_in(structure: Any) -> Iterator[Tensor]:
    """Yields all tensors in a structure of tuples, lists, mappings and dataclasses, in order."""
    for _, tensor in named_tensors(structure):
        yield tensor


def named_tensors(structure: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yields the path and the tensor for all tensors in a structure, such as `logits` or `hidden.0`.

    Args:
        structure: Tuples, lists, mappings and dataclasses, nested; what is no tensor is left out.
        name: Path of the structure itself, before a dot.
    """
    if isinstance(structure, Tensor):
        yield name, structure
        return
    for key, part in _parts(structure):
        yield from named_tensors(part, f"{name}.{key}" if name else str(key))


def map_tensors(function: Callable[[Tensor], Any], structure: Any) -> Any:
    """Returns the structure with `function` applied to each of its tensors; containers keep their classes."""
    if isinstance(structure, Tensor):
        return function(structure)
    parts = {key: map_tensors(function, part) for key, part in _parts(structure)}
    if not parts:
        return structure
    if isinstance(structure, Mapping):
        if hasattr(structure, "__dataclass_fields__"):  # outputs of Hugging Face's models are both
            return type(structure)(**parts)
        return parts if type(structure) is dict else _rebuilt(structure, parts)
    if hasattr(structure, "_fields"):
        return type(structure)(*parts.values())
    if isinstance(structure, tuple | list):
        return type(structure)(parts.values())
    return dataclasses.replace(structure, **parts)


def num_examples(inputs: ModelInputs) -> int:
    """Number of examples in a batch: the length of its first tensor; 0 if no tensor has a dimension."""
    return next((len(tensor) for tensor in tensors_in(inputs) if tensor.dim()), 0)


def take_examples(inputs: ModelInputs, indices: slice | Tensor) -> ModelInputs:
    """Returns some examples of a batch.

    Args:
        inputs: A batch; each of its tensors that is as long as the first has one row per example, and the others stay.
        indices: Which examples, (n,) int64 or a slice.
    """
    number = num_examples(inputs)
    return map_tensors(lambda part: part[indices] if part.dim() and len(part) == number else part, inputs)


def placed_like(inputs: ModelInputs, model: nn.Module) -> ModelInputs:
    """Returns inputs on the device of a model; its floating-point tensors get the model's precision."""
    like = next((parameter for parameter in model.parameters() if parameter.is_floating_point()), None)
    if like is None:
        return inputs
    device, dtype = like.device, like.dtype
    return map_tensors(lambda part: part.to(device, dtype if part.is_floating_point() else part.dtype), inputs)


def precision_of(model: nn.Module) -> torch.dtype | None:
    """Type of the first floating-point parameter of a model; None if it has none."""
    return next((parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()), None)


def describe_inputs(inputs: ModelInputs) -> str:
    """Shapes and types in words, for messages: `(4, 3, 8, 8) torch.float32`, or one entry per name."""
    found = list(named_tensors(inputs))
    texts = [f"{name + ': ' if name else ''}{tuple(tensor.shape)} {tensor.dtype}" for name, tensor in found]
    return ", ".join(texts) or f"a {type(inputs).__name__} without tensors"


def _parts(structure: Any) -> list[tuple[Any, Any]]:
    if isinstance(structure, Mapping):
        return list(structure.items())
    if isinstance(structure, tuple | list) and not isinstance(structure, torch.Size):
        keys = getattr(structure, "_fields", range(len(structure)))
        return list(zip(keys, structure, strict=True))
    if dataclasses.is_dataclass(structure) and not isinstance(structure, type):
        return [(field.name, getattr(structure, field.name)) for field in dataclasses.fields(structure) if field.init]
    return []


def _rebuilt(structure: Mapping[Any, Any], parts: dict[Any, Any]) -> Any:
    """A mapping of the same class if it can be made from a dictionary, else a dictionary."""
    try:
        return type(structure)(parts)  # type: ignore[call-arg]  # most mappings take one
    except TypeError:
        return parts


def _is_plain_sequence(inputs: Any) -> bool:
    return isinstance(inputs, tuple | list) and not hasattr(inputs, "_fields")


def _accepts(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):  # a scripted module has none
        return True
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True
