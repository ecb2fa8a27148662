"""Follows a model's forward pass: which module calls which, and which PyTorch functions they call with which tensors.

A *step* is a call of a PyTorch function that returns one floating-point tensor. `detach` is no step, because hooks that
observe a model call it. Functions are seen from outside (`torch.overrides.TorchFunctionMode`), so the model keeps its
class and its code, and additions, means and ReLUs that are not modules are seen, too.

`places.py` says how a step is found again.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kedro_aat.compression.quantization.places import CallTree, Node
from kedro_aat.model_inputs import map_tensors, named_tensors


class _OpenFrame:
    """A call of a module that has not returned yet."""

    __slots__ = ("calls", "counts", "node", "steps")

    def __init__(self, node: Node) -> None:
        self.node = node
        self.calls: dict[str, int] = {}  # module -> number of calls so far
        self.steps = node.steps  # those until the next call of a module
        self.counts: dict[str, int] = {}  # name -> number of steps since the last call of a module


class Pass(TorchFunctionMode):
    """One forward pass, from the outermost call of a module on; subclasses change some tensors in it.

    Args:
        follower: What made it.
        tree: The recorded forward pass.
    """

    def __init__(self, follower: Follower, tree: CallTree) -> None:
        super().__init__()
        self.follower = follower
        self._tree = tree
        self._open: list[_OpenFrame] = []
        self.is_paused = False
        # While a module runs whose result a hook will replace: numbered results of its steps.
        self._held_back: list[tuple[int, Tensor]] | None = None

    def change_arguments(self, function: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """The arguments that a function receives in place of its own.

        Args:
            function: The function that is called.
            args: Its positional arguments.
            kwargs: Its keyword arguments.
        """
        return args, kwargs

    def change(self, number: int, tensor: Tensor) -> Tensor:
        """The tensor that takes the place of a numbered one: the result of a step, or an argument of a module.

        An argument is only passed if it was not made in this pass, or if the call of the module was not recorded.
        """
        return tensor

    def begin_replacement(self, before: Tensor, after: Tensor) -> None:
        """A hook has replaced the input of a module, and another one will replace the result.

        Args:
            before: The input.
            after: What the module receives.
        """
        self._held_back = []

    def end_replacement(self, before: Tensor, after: Tensor) -> Tensor:
        """A hook has replaced the result of a module; the step that made the result counts as having made the new one.

        Args:
            before: The result.
            after: What takes its place.

        Returns:
            The tensor that takes its place in this pass.
        """
        held_back, self._held_back = self._held_back or [], None
        number = next((number for number, result in held_back if result is before), None)
        return after if number is None else self.change(number, after)

    def enter(self, call: ModuleCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """Begins a call of a module.

        Args:
            call: The call.
            args: Its positional arguments.
            kwargs: Its keyword arguments.

        Returns:
            The arguments that the module receives in their place.
        """
        caller = self._open[-1] if self._open else None
        count = 0
        if caller is not None:
            count = caller.calls.get(call.name, 0)
            caller.calls[call.name] = count + 1
        node, is_recorded = self._tree.find(caller.node if caller else None, call.name, count)
        self._open.append(_OpenFrame(node))
        if is_recorded or not node.inputs:
            return args, kwargs
        self.is_paused = True
        try:
            return call.change_inputs(args, kwargs, lambda name, tensor: self._change_input(node, name, tensor))
        finally:
            self.is_paused = False

    def _change_input(self, node: Node, name: str, tensor: Tensor) -> Tensor:
        number = node.inputs.get(name)
        return tensor if number is None or not is_floating(tensor) else self.change(number, tensor)

    def leave(self) -> None:
        """Ends the call of a module that was entered last."""
        left = self._open.pop()
        if self._open:
            self._open[-1].steps, self._open[-1].counts = left.node.after, {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.is_paused:
            return func(*args, **(kwargs or {}))
        args, kwargs = self.change_arguments(func, args, kwargs or {})
        result = func(*args, **kwargs)
        if is_step(func, result):
            frame = self._open[-1]
            name = step_name(func)
            number = frame.counts.get(name, 0)
            frame.counts[name] = number + 1
            tensor = frame.steps.get((name, number))
            if tensor is not None and self._held_back is not None:
                self._held_back.append((tensor, result))
            elif tensor is not None:
                return self.change(tensor, result)
        return result


_CURRENT: ContextVar[Pass | None] = ContextVar("current_pass", default=None)


class Follower:
    """Sees every call of a model and of the modules in it; subclasses say what a forward pass then does.

    The `forward` of each module becomes a bound method of an object that refers to module and follower, not a closure,
    so that a deep copy of the model, which Kedro makes, has copies of these objects. It keeps the signature of the
    original, which `torch.export` reads. Modules without weights and without modules in them are left as they are.

    Args:
        model: The model; nothing is changed until `follow`.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._calls: list[ModuleCall] = []

    def begin(self, call: ModuleCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Pass | None:
        """Makes the pass in which an outermost call of a module runs.

        Args:
            call: The call.
            args: Its positional arguments.
            kwargs: Its keyword arguments.

        Returns:
            None if the module shall run as it is.
        """
        raise NotImplementedError  # subclasses define it

    def end(self, done: Pass) -> None:
        """Called after a pass without an error."""

    def follow(self) -> None:
        """Begins to see calls."""
        self._calls = [
            ModuleCall(self, name, module) for name, module in self.model.named_modules() if _may_act(module)
        ]

    def unfollow(self) -> None:
        """Ends it; each module has its own `forward` again."""
        for call in self._calls:
            call.remove()
        self._calls = []

    def run(self, call: ModuleCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs a call of a module, within the current pass or in a new one.

        Args:
            call: The call.
            args: Its positional arguments.
            kwargs: Its keyword arguments.
        """
        current = _CURRENT.get()
        if current is not None and current.follower is self:
            return self._run_within(current, call, args, kwargs)
        begun = self.begin(call, args, kwargs)
        if begun is None:
            return call.own_forward(*args, **kwargs)
        result = self.run_in(begun, call, args, kwargs)
        self.end(begun)
        return result

    def run_in(self, begun: Pass, call: ModuleCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs a call of a module as the outermost one of a pass.

        Args:
            begun: The pass.
            call: The call.
            args: Its positional arguments.
            kwargs: Its keyword arguments.
        """
        token = _CURRENT.set(begun)
        try:
            with begun:
                return self._run_within(begun, call, args, kwargs)
        finally:
            _CURRENT.reset(token)

    def _run_within(self, current: Pass, call: ModuleCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        args, kwargs = current.enter(call, args, kwargs)
        try:
            return call.own_forward(*args, **kwargs)
        finally:
            current.leave()

    @property
    def model_call(self) -> ModuleCall:
        """The call of the model itself."""
        return self._calls[0]


class ModuleCall:
    """Runs in place of a module's `forward`.

    Args:
        follower: Is told of each call.
        name: Name of the module in the model; empty for the model itself.
        module: The module, whose `forward` is replaced.
    """

    def __init__(self, follower: Follower, name: str, module: nn.Module) -> None:
        self.follower, self.name, self.module = follower, name, module
        self._before = vars(module).get("forward")  # of other tools, which replace it in the same way

        @functools.wraps(type(module).forward)
        def forward(call: ModuleCall, *args: Any, **kwargs: Any) -> Any:
            return call.forward(*args, **kwargs)

        vars(module)["forward"] = MethodType(forward, self)

    def remove(self) -> None:
        """Gives the module back the `forward` that it had before."""
        del vars(self.module)["forward"]
        if self._before is not None:
            vars(self.module)["forward"] = self._before

    # Under torch.compile the module runs uncompiled, since a mode that sees functions cannot be compiled.
    @torch.compiler.disable  # type: ignore[untyped-decorator]  # untyped in torch
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Receives what the module is called with."""
        return self.follower.run(self, args, kwargs)

    def own_forward(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the `forward` that the module had before."""
        if self._before is not None:
            return self._before(*args, **kwargs)
        return type(self.module).forward(self.module, *args, **kwargs)

    def change_inputs(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], change: Callable[[str, Tensor], Tensor]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns the arguments with each tensor changed.

        Args:
            args: Positional arguments of the module.
            kwargs: Its keyword arguments.
            change: Receives the name of each tensor and the tensor. The name is that of a parameter of `forward`, with
                the path in it for one of several tensors, so that it does not matter how an argument is passed.
        """
        try:
            bound = inspect.signature(type(self.module).forward).bind(self.module, *args, **kwargs)
        except (TypeError, ValueError):  # the call fails, or there is no signature
            return args, kwargs
        for name, value in tuple(bound.arguments.items())[1:]:
            names = iter([path for path, _ in named_tensors(value, name)])

            def change_next(tensor: Tensor, names: Iterator[str] = names) -> Tensor:
                return change(next(names), tensor)

            bound.arguments[name] = map_tensors(change_next, value)
        return bound.args[1:], bound.kwargs


class paused_pass:  # noqa: N801 - a context manager, as fast as one can be: it runs at every read of an int8 weight
    """Functions that are called within are no steps of the pass that is under way."""

    __slots__ = ("_pass", "_was_paused")

    def __enter__(self) -> None:
        self._pass = _CURRENT.get()
        if self._pass is not None:
            self._was_paused, self._pass.is_paused = self._pass.is_paused, True

    def __exit__(self, *exception: object) -> None:
        if self._pass is not None:
            self._pass.is_paused = self._was_paused


def replaced_input(compute: Callable[[Tensor], Tensor], before: Tensor) -> Tensor:
    """What a hook computes from the input of a module, which receives it instead; `replaced_result` must follow.

    The hooks' functions are no steps of the pass that is under way, which so sees the steps of a model without them.

    Args:
        compute: What the hook does.
        before: The input.
    """
    current = None if torch.compiler.is_compiling() else _CURRENT.get()
    if current is None:
        return compute(before)
    with paused_pass():
        after = compute(before)
        current.begin_replacement(before, after)
        return after


def replaced_result(compute: Callable[[Tensor], Tensor], before: Tensor) -> Tensor:
    """What a hook computes from the result of a module, which takes its place.

    Args:
        compute: What the hook does.
        before: The result.
    """
    current = None if torch.compiler.is_compiling() else _CURRENT.get()
    if current is None:
        return compute(before)
    with paused_pass():
        return current.end_replacement(before, compute(before))


def is_floating(value: Any) -> bool:
    """Whether a value is a floating-point tensor."""
    return isinstance(value, Tensor) and value.dtype.is_floating_point


def is_step(function: Any, result: Any) -> bool:
    """Whether a call of a function that returned this result is a step."""
    return isinstance(result, Tensor) and result.dtype.is_floating_point and function is not torch.Tensor.detach


@functools.lru_cache(maxsize=4096)
def step_name(function: Any) -> str:
    """Name of a step: `add` for each of `__add__`, `__iadd__`, `__radd__` and `add_`."""
    name: str = getattr(function, "__name__", "?")
    if name == "__get__":  # of x.T, x.data, x.mT
        return getattr(getattr(function, "__self__", None), "__name__", name)
    if name.startswith("__"):
        name = name.strip("_")
        return name[1:] if name[:1] in "ir" and name[1:] in ("add", "sub", "mul", "truediv") else name
    return name.rstrip("_")


def _may_act(module: nn.Module) -> bool:
    """Whether calls of a module are followed: it has modules in it, or a weight."""
    if isinstance(module, torch.jit.ScriptModule) or type(module).forward is nn.Module.forward:
        return False
    tensors: Iterable[Tensor | None] = (*module._parameters.values(), *module._buffers.values())
    return bool(module._modules) or any(tensor is not None and tensor.ndim > 1 for tensor in tensors)
