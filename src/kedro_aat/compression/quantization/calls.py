"""How tensors flow through a model's forward pass: recorded once, then followed from call to call.

Every function that PyTorch is asked for within a forward pass, and that returns one floating-point tensor, is a
step, but for `detach`, which hooks that watch a model call; steps are numbered in the order of the calls. The
model stays what it is, of its own class and with its own code, since the functions are watched from outside
(`torch.overrides.TorchFunctionMode`): additions, means and ReLUs that are no modules are seen as well, and a ReLU
module that is called twice gives two steps.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping
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
        name: Of the function, without the underscores of operators and of functions that work in place.
        inputs: Numbers of the values that it read and that came from the model's input.
        output: Number of the value that it made; None if it made several, or none of floating point.
        owner: Whose tensor it was given: a name from the `owners` of `record`, None if nobody's.
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
        num_inputs: The values below this number are the floating-point tensors that the model was given.
        outputs: Values that the model returned.
        ranges: (values, 2) - lowest and highest number of each value.
    """

    operations: tuple[Operation, ...]
    num_inputs: int
    outputs: frozenset[int]
    ranges: Tensor

    def value_of(self, step: int) -> int:
        """Number of the value that a step made; -1 is the model's first input, -2 its second ..."""
        if step < 0:
            return -1 - step
        value = next(operation.output for operation in self.operations if operation.step == step)
        assert value is not None  # a step makes one value
        return value


@torch.no_grad()
def record_calls(
    forward: Any, owners: Mapping[int, str], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Recording:
    """Runs a forward pass and notes how its tensors flow.

    Args:
        forward: Called with the arguments; must not be watched by another recording.
        owners: `id` of a tensor -> the name of the module that holds it.
        args: As given to the model.
        kwargs: Likewise.
    """
    recorder = _Recorder(owners)
    given = [leaf for leaf in tree_leaves((args, dict(kwargs))) if is_floating(leaf)]
    for tensor in given:
        recorder.new_value(tensor)
    with recorder:
        result = forward(*args, **kwargs)
    outputs = {recorder.values.get(id(leaf)) for leaf in tree_leaves(result) if isinstance(leaf, Tensor)}
    return Recording(
        tuple(recorder.operations),
        len(given),
        frozenset(value for value in outputs if value is not None),
        torch.stack(recorder.ranges).float(),
    )


@dataclass
class _Recorder(TorchFunctionMode):
    owners: Mapping[int, str]
    operations: list[Operation] = field(default_factory=list)
    values: dict[int, int] = field(default_factory=dict)  # id of a tensor -> number of its value
    ranges: list[Tensor] = field(default_factory=list)
    kept: list[Tensor] = field(default_factory=list)  # an id is only unique while its tensor lives
    num_steps: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def new_value(self, tensor: Tensor) -> int:
        number = len(self.ranges)
        self.values[id(tensor)] = number
        self.kept.append(tensor)
        self.ranges.append(range_of(tensor) if tensor.numel() else tensor.new_zeros(2))
        return number

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        leaves = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)]
        # Looked up before the call, since a function that works in place gives its input another value.
        inputs = tuple(self.values[id(leaf)] for leaf in leaves if id(leaf) in self.values)
        owner = next((self.owners[id(leaf)] for leaf in leaves if id(leaf) in self.owners), None)
        result = func(*args, **(kwargs or {}))
        if is_step(func, result):
            operation = Operation(step_name(func), inputs, self.new_value(result), owner, self.num_steps)
            self.num_steps += 1
            self.operations.append(operation)
        elif is_floating(result) and inputs:
            self.values[id(result)] = inputs[0]  # detached: the same numbers
            self.kept.append(result)
        elif isinstance(result, tuple | list) and any(map(is_floating, result)):
            self.operations.append(Operation(step_name(func), inputs, None, owner, None))
            for part in filter(is_floating, result):
                self.new_value(part)
        return result


class Follower(TorchFunctionMode):
    """Counts the steps of a forward pass; a subclass changes what goes into them and what comes out.

    Args:
        expected: Number of a step -> its name, for all steps at which anything is to be done.
    """

    def __init__(self, expected: Mapping[int, str]) -> None:
        super().__init__()
        self._expected = expected
        self._step = 0

    def arguments(self, step: int, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """What an expected step is given in place of `args`."""
        return args

    def result(self, step: int, result: Tensor) -> Tensor:
        """What an expected step returns in place of `result`."""
        raise NotImplementedError  # the two modes that follow a recording each say what

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = self._expected.get(self._step)
        if name is None:
            result = func(*args, **(kwargs or {}))
            self._step += is_step(func, result)
            return result
        is_expected = step_name(func) == name
        result = func(*(self.arguments(self._step, args) if is_expected else args), **(kwargs or {}))
        if is_step(func, result):
            if not is_expected:
                raise ModelError(
                    f"step {self._step} of the forward pass was {name} when it was recorded, and is now "
                    f"{step_name(func)}. A quantized model must call the same functions in the same order each "
                    "time, those in hooks included: hooks are registered before the controller is built."
                )
            result = self.result(self._step, result)
            self._step += 1
        return result

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]  # untyped in torch
        missing = [step for step in self._expected if step >= self._step]
        if missing and exception[0] is None:
            raise ModelError(
                f"the forward pass ended after {self._step} steps, before step {min(missing)}, which is quantized: "
                "it must call the same functions in the same order each time."
            )


class Handler(Protocol):
    """Stands before a model's own `forward`."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Called in place of the model's `forward`, which it calls by `own_forward`."""
        ...


def install(model: nn.Module, handler: Handler) -> None:
    """From now on `handler.forward` is called where `model.forward` was.

    A bound method of `handler`, and no closure: a deep copy of the model, which Kedro makes, gets a copy of the
    handler. It has the signature of the model's own `forward`, which `torch.export` reads.

    Raises:
        ModelError: If the model's `forward` was replaced before.
    """
    if "forward" in vars(model):
        raise ModelError(
            f"the forward of this {type(model).__name__} was replaced already, perhaps by an earlier quantization: "
            "give the controller's strip() at rate 0, or a new model."
        )

    @functools.wraps(type(model).forward)
    def forward(handler: Handler, *args: Any, **kwargs: Any) -> Any:
        return handler.forward(*args, **kwargs)

    vars(model)["forward"] = MethodType(forward, handler)


def uninstall(model: nn.Module) -> None:
    """The model's own `forward` is called again."""
    del vars(model)["forward"]


def own_forward(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Calls the `forward` of the model's class."""
    return type(model).forward(model, *args, **kwargs)


def is_floating(value: Any) -> bool:
    """Whether it is a floating-point tensor."""
    return isinstance(value, Tensor) and value.dtype.is_floating_point


def is_step(function: Any, result: Any) -> bool:
    """Whether a call of the function that gave this result is numbered."""
    return is_floating(result) and function is not torch.Tensor.detach


def step_name(function: Any) -> str:
    """`add` for `__add__`, `__iadd__`, `__radd__` and `add_`."""
    name = getattr(function, "__name__", "?")
    if name.startswith("__"):
        name = name.strip("_")
        return name[1:] if name[:1] in "ir" and name[1:] in ("add", "sub", "mul", "truediv") else name
    return name.rstrip("_")


def range_of(tensor: Tensor) -> Tensor:
    """(2,) - lowest and highest number."""
    return torch.stack(torch.aminmax(tensor.detach()))


def change_inputs(
    args: tuple[Any, ...], kwargs: dict[str, Any], change: Callable[[Tensor, int], Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a model is given, with `change(tensor, step)` in place of each floating-point tensor.

    The step of the first is -1, of the second -2, and so on, in the order in which `record` counts them.
    """
    steps = itertools.count(-1, -1)
    changed: tuple[tuple[Any, ...], dict[str, Any]] = tree_map(
        lambda leaf: change(leaf, next(steps)) if is_floating(leaf) else leaf, (args, kwargs)
    )
    return changed
