"""Records the functions that a model's forward pass calls, and intercepts the same calls in later passes.

A *step* is a call of a PyTorch function that returns one floating-point tensor. Steps are numbered in the order of the
calls. `detach` is no step, because hooks that observe a model call it.

The functions are intercepted from outside (`torch.overrides.TorchFunctionMode`), so the model keeps its class and its
code. Additions, means and ReLUs that are not modules are seen too, and a ReLU module that is called twice makes two
steps.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MethodType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from kedro_aat.errors import ModelError


@dataclass(frozen=True)
class Operation:
    """One call of a function.

    Attributes:
        name: Name of the function, without the underscores of operators and in-place functions.
        inputs: Numbers of the values among its arguments that depend on the model's input.
        output: Number of the value that it made; None if it made several, or none of floating point.
        owner: Name of the module whose tensor was an argument, from the `owners` of `record_calls`; None if there is
            none.
        step: Its number among the steps; None if it is no step.
    """

    name: str
    inputs: tuple[int, ...]
    output: int | None
    owner: str | None
    step: int | None


@dataclass(frozen=True)
class Recording:
    """One forward pass.

    Attributes:
        operations: In the order of the calls.
        num_inputs: Number of floating-point tensors passed to the model; their values have the lowest numbers.
        outputs: Numbers of the values that the model returned.
        ranges: (values, 2) - lowest and highest number in each value.
    """

    operations: tuple[Operation, ...]
    num_inputs: int
    outputs: frozenset[int]
    ranges: Tensor

    def value_of(self, step: int) -> int:
        """Number of the value that a step made; step -1 is the model's first input, -2 its second, and so on."""
        if step < 0:
            return -1 - step
        value = next(operation.output for operation in self.operations if operation.step == step)
        assert value is not None  # a step makes one value
        return value


@torch.no_grad()
def record_calls(
    forward: Any, owners: Mapping[int, str], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Recording:
    """Runs a forward pass and records which functions it calls with which tensors.

    Args:
        forward: Called with the arguments; no other recording may be active.
        owners: `id` of a tensor -> name of the module that holds it; may change while `forward` runs.
        args: Positional arguments of `forward`.
        kwargs: Keyword arguments of `forward`.
    """
    recorder = _Recorder(owners)
    inputs = [leaf for leaf in tree_leaves((args, dict(kwargs))) if is_floating(leaf)]
    for tensor in inputs:
        recorder.add_value(tensor)
    with recorder:
        result = forward(*args, **kwargs)
    outputs = {recorder.values.get(id(leaf)) for leaf in tree_leaves(result) if isinstance(leaf, Tensor)}
    return Recording(
        tuple(recorder.operations),
        len(inputs),
        frozenset(value for value in outputs if value is not None),
        torch.stack(recorder.ranges).float(),
    )


@dataclass
class _Recorder(TorchFunctionMode):
    owners: Mapping[int, str]
    operations: list[Operation] = field(default_factory=list)
    values: dict[int, int] = field(default_factory=dict)  # id of a tensor -> number of its value
    ranges: list[Tensor] = field(default_factory=list)
    kept: list[Tensor] = field(default_factory=list)  # an id is unique only while its tensor lives
    num_steps: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def add_value(self, tensor: Tensor) -> int:
        number = len(self.ranges)
        self.values[id(tensor)] = number
        self.kept.append(tensor)
        self.ranges.append(torch.stack(torch.aminmax(tensor.detach())) if tensor.numel() else tensor.new_zeros(2))
        return number

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        leaves = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)]
        # Looked up before the call, since an in-place function gives its input a new value.
        inputs = tuple(self.values[id(leaf)] for leaf in leaves if id(leaf) in self.values)
        owner = next((self.owners[id(leaf)] for leaf in leaves if id(leaf) in self.owners), None)
        result = func(*args, **(kwargs or {}))
        if _is_step(func, result):
            operation = Operation(_step_name(func), inputs, self.add_value(result), owner, self.num_steps)
            self.num_steps += 1
            self.operations.append(operation)
        elif is_floating(result) and inputs:
            self.values[id(result)] = inputs[0]  # detached: the same numbers
            self.kept.append(result)
        elif isinstance(result, tuple | list) and any(map(is_floating, result)):
            self.operations.append(Operation(_step_name(func), inputs, None, owner, None))
            for part in filter(is_floating, result):
                self.add_value(part)
        return result


class StepInterceptor(TorchFunctionMode):
    """Runs a model and counts its steps; subclasses change the arguments and results of some of them.

    Args:
        expected: Number of each step that is changed -> its name when it was recorded.
    """

    def __init__(self, expected: Mapping[int, str]) -> None:
        super().__init__()
        self._expected = expected
        self._step = 0

    def change_arguments(self, step: int, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The positional arguments that an expected step receives in place of `args`."""
        return args

    def change_result(self, step: int, result: Tensor) -> Tensor:
        """The tensor that an expected step returns in place of `result`.

        It is also called for each floating-point input of the model, with step -1 for the first, -2 for the second,
        and so on.
        """
        raise NotImplementedError  # subclasses define it

    def run(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Calls the model's own `forward` and changes inputs and steps.

        Args:
            model: Called by `own_forward`.
            args: Positional arguments of its `forward`.
            kwargs: Keyword arguments of its `forward`.

        Raises:
            ModelError: If an expected step is missing or has another name than when it was recorded.
        """
        steps = itertools.count(-1, -1)
        args, kwargs = tree_map(
            lambda leaf: self.change_result(next(steps), leaf) if is_floating(leaf) else leaf, (args, dict(kwargs))
        )
        with self:
            return own_forward(model, *args, **kwargs)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = self._expected.get(self._step)
        if name is None:
            result = func(*args, **(kwargs or {}))
            self._step += _is_step(func, result)
            return result
        is_expected = _step_name(func) == name
        result = func(*(self.change_arguments(self._step, args) if is_expected else args), **(kwargs or {}))
        if _is_step(func, result):
            if not is_expected:
                raise ModelError(
                    f"step {self._step} of the forward pass was {name} when it was recorded, but is {_step_name(func)} "
                    "now. A quantized model must call the same functions in the same order every time, including "
                    "those in hooks: register hooks before you build the controller."
                )
            result = self.change_result(self._step, result)
            self._step += 1
        return result

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]  # untyped in torch
        missing = [step for step in self._expected if step >= self._step]
        if missing and exception[0] is None:
            raise ModelError(
                f"the forward pass ended after {self._step} steps, before step {min(missing)}, which is quantized. "
                "A quantized model must call the same functions in the same order every time."
            )


class ForwardHandler(Protocol):
    """Runs in place of a model's own `forward`."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Receives what the model is called with; calls the model's `forward` by `own_forward`."""
        ...


def replace_forward(model: nn.Module, handler: ForwardHandler) -> None:
    """Makes calls of the model run `handler.forward`.

    The model's `forward` becomes a bound method of `handler`, not a closure, so that a deep copy of the model, which
    Kedro makes, has a copy of the handler. It keeps the signature of the original, which `torch.export` reads.

    Raises:
        ModelError: If the model's `forward` was replaced before.
    """
    if "forward" in vars(model):
        raise ModelError(
            f"the forward of this {type(model).__name__} was replaced already, perhaps by an earlier quantization: "
            "pass a new model, or the controller's strip() at rate 0."
        )

    @functools.wraps(type(model).forward)
    def forward(handler: ForwardHandler, *args: Any, **kwargs: Any) -> Any:
        return handler.forward(*args, **kwargs)

    vars(model)["forward"] = MethodType(forward, handler)


def restore_forward(model: nn.Module) -> None:
    """Makes calls of the model run its own `forward` again."""
    del vars(model)["forward"]


def own_forward(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Calls the `forward` of the model's class.

    Args:
        model: The model.
        *args: Arguments of `forward`.
        **kwargs: Keyword arguments of `forward`.
    """
    return type(model).forward(model, *args, **kwargs)


def is_floating(value: Any) -> bool:
    """Whether a value is a floating-point tensor."""
    return isinstance(value, Tensor) and value.dtype.is_floating_point


def _is_step(function: Any, result: Any) -> bool:
    """Whether a call of a function that returned this result is a step."""
    return is_floating(result) and function is not torch.Tensor.detach


def _step_name(function: Any) -> str:
    """Name of a step: `add` for each of `__add__`, `__iadd__`, `__radd__` and `add_`."""
    name = getattr(function, "__name__", "?")
    if name.startswith("__"):
        name = name.strip("_")
        return name[1:] if name[:1] in "ir" and name[1:] in ("add", "sub", "mul", "truediv") else name
    return name.rstrip("_")
