"""Records one forward pass: its steps with their places, the values that they read and make, and their ranges."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from kedro_aat.compression.layer_choice import relative_energy
from kedro_aat.compression.quantization.arithmetic import activation_scales, round_to_uint8
from kedro_aat.compression.quantization.calls import Follower, ModuleCall, Pass, is_floating, is_step, step_name
from kedro_aat.compression.quantization.places import CallTree, Frame, Place
from kedro_aat.model_inputs import ModelInputs, arguments_of, tensors_in

CONVOLUTIONS = {"conv1d", "conv2d", "conv3d"}
LAYERS = CONVOLUTIONS | {"linear"}
# Functions whose result is a part of a tensor.
PARTS = {"getitem", "select", "narrow", "chunk", "split", "unbind", "tensor_split", "split_with_sizes"}
# Functions that add no new numbers to those of a quantized tensor, so their results need no rounding of their own.
REARRANGING = PARTS | {
    *("max_pool1d", "max_pool2d", "max_pool3d", "boolean_dispatch", "dropout", "dropout1d", "dropout2d", "dropout3d"),
    *("flatten", "reshape", "view", "unflatten", "squeeze", "unsqueeze", "transpose", "permute", "contiguous"),
    *("expand", "clone", "channel_shuffle", "pixel_shuffle"),
}


@dataclass(frozen=True)
class Operation:
    """One call of a function.

    Attributes:
        name: Name of the function, as that of a step.
        inputs: Numbers of the values among its arguments that depend on the model's input.
        outputs: Numbers of the values that it made.
        owner: Name of the layer or BatchNorm that called it with its own tensor; None if there is none.
        place: Its place; None if it is no step.
        damage: Energy of what rounding its input to 8 bits changes in the result, over that of the result. Known for
            layers that read an input of the model, or a rearrangement of it; else None.
    """

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    owner: str | None
    place: Place | None
    damage: float | None

    @property
    def output(self) -> int | None:
        """Number of the value that a step made; None if it is no step."""
        return self.outputs[0] if self.place is not None else None


@dataclass(frozen=True)
class Recording:
    """One forward pass.

    Attributes:
        operations: In the order of the calls.
        frames: The calls of modules, the model itself first; their inputs are numbers of values.
        num_inputs: Number of floating-point tensors passed to the model; their values have the lowest numbers.
        outputs: Numbers of the values that the model returned.
        ranges: (values, 2) - lowest and highest number in each value.
        reads: Name of a layer -> number of calls of functions that read its tensor.
    """

    operations: tuple[Operation, ...]
    frames: tuple[Frame, ...]
    num_inputs: int
    outputs: frozenset[int]
    ranges: Tensor
    reads: Mapping[str, int]


@torch.no_grad()
def record_calls(
    follower: Follower,
    owned: Mapping[int, str],
    norms: Mapping[int, str],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Recording:
    """Runs a forward pass of the whole model and records it.

    Args:
        follower: Of the model.
        owned: `id` of a weight -> name of its layer.
        norms: `id` of a tensor of a BatchNorm -> its name; may change while the model runs.
        args: Positional arguments of the model.
        kwargs: Keyword arguments of the model.
    """
    recorder = _Recorder(follower, owned, norms)
    for tensor in filter(is_floating, tensors_in((args, dict(kwargs)))):
        recorder.is_raw[recorder.add_value(tensor)] = True
    num_inputs = len(recorder.ranges)
    result = follower.run_in(recorder, follower.model_call, args, dict(kwargs))
    outputs = {recorder.values.get(id(leaf)) for leaf in tensors_in(result)}
    ranges = torch.stack(recorder.ranges).float() if recorder.ranges else torch.zeros(0, 2)
    return Recording(
        tuple(recorder.operations),
        tuple(recorder.frames),
        num_inputs,
        frozenset(value for value in outputs if value is not None),
        ranges,
        recorder.reads,
    )


def record_model(model: nn.Module, owned: Mapping[int, str], inputs: ModelInputs) -> Recording:
    """Records a forward pass of a model that nobody follows.

    Args:
        model: The model.
        owned: `id` of a weight -> name of its layer.
        inputs: What the model is called with.
    """
    follower = Follower(model)
    follower.follow()
    try:
        return record_calls(follower, owned, {}, *arguments_of(model, inputs))
    finally:
        follower.unfollow()


class _Recorder(Pass):
    def __init__(self, follower: Follower, owned: Mapping[int, str], norms: Mapping[int, str]) -> None:
        super().__init__(follower, CallTree([], []))
        self._owned, self._norms = owned, norms
        self.operations: list[Operation] = []
        self.frames: list[Frame] = []
        self.values: dict[int, int] = {}  # id of a tensor -> number of its value
        self.ranges: list[Tensor] = []
        self.is_raw: dict[int, bool] = {}  # value -> whether it holds the model's input, rearranged at most
        self.reads: Counter[str] = Counter()
        self._kept: list[Tensor] = []  # an id is unique only while its tensor lives
        self._stack: list[int] = []  # numbers of the open frames
        self._places: list[tuple[int, bool]] = []  # of each of them: where its next step is
        self._num_calls: Counter[tuple[int, str]] = Counter()
        self._num_steps: Counter[tuple[int, bool, str]] = Counter()

    def add_value(self, tensor: Tensor) -> int:
        number = len(self.ranges)
        self.values[id(tensor)] = number
        self._kept.append(tensor)
        self.ranges.append(_range(tensor))
        return number

    def begin_replacement(self, before: Tensor, after: Tensor) -> None:
        if id(before) in self.values:
            self._kept.append(after)
            self.values[id(after)] = self.values[id(before)]

    def end_replacement(self, before: Tensor, after: Tensor) -> Tensor:
        if (value := self.values.get(id(before))) is not None:
            self._kept.append(after)
            self.values[id(after)] = value
            self.ranges[value] = _range(after)
        return after

    def enter(self, call: ModuleCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        caller = self._stack[-1] if self._stack else -1
        inputs: list[tuple[str, int]] = []

        def note(name: str, tensor: Tensor) -> Tensor:
            if id(tensor) in self.values:
                inputs.append((name, self.values[id(tensor)]))
            return tensor

        call.change_inputs(args, kwargs, note)
        count = self._num_calls[caller, call.name]
        self._num_calls[caller, call.name] += 1
        number = len(self.frames)
        self.frames.append(Frame(module=call.name, caller=caller, call=count, inputs=tuple(inputs)))
        self._stack.append(number)
        self._places.append((number, False))
        return args, kwargs

    def leave(self) -> None:
        left = self._stack.pop()
        self._places.pop()
        if self._places:
            self._places[-1] = left, True

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.is_paused:
            return func(*args, **(kwargs or {}))
        leaves = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)]
        # Looked up before the call, since an in-place function gives its input a new value.
        inputs = tuple(self.values[id(leaf)] for leaf in leaves if id(leaf) in self.values)
        result = func(*args, **(kwargs or {}))
        parts = [result] if is_step(func, result) else []
        if isinstance(result, tuple | list):
            parts = [part for part in result if is_floating(part)]
        if not parts and is_floating(result) and inputs:
            self.values[id(result)] = inputs[0]  # detached: the same numbers
            self._kept.append(result)
        if isinstance(result, Tensor | tuple | list):
            read = {self._owned[id(leaf)] for leaf in leaves if id(leaf) in self._owned}
            self.reads.update(read)
        if not parts:
            return result
        name = step_name(func)
        damage = self._damage(func, name, args, kwargs, result) if len(inputs) == 1 else None
        outputs = tuple(self.add_value(part) for part in parts)
        if name in REARRANGING and inputs and self.is_raw.get(inputs[0]):
            self.is_raw.update(dict.fromkeys(outputs, True))
        place = None if isinstance(result, tuple | list) else self._place(name)
        self.operations.append(Operation(name, inputs, outputs, self._owner(leaves), place, damage))
        return result

    def _place(self, name: str) -> Place:
        frame, is_after = self._places[-1]
        number = self._num_steps[frame, is_after, name]
        self._num_steps[frame, is_after, name] += 1
        return Place(frame=frame, is_after=is_after, name=name, number=number)

    def _owner(self, leaves: list[Tensor]) -> str | None:
        module = self.frames[self._stack[-1]].module
        for leaf in leaves:
            # A function that reads a layer's weight elsewhere is no call of the layer.
            if self._owned.get(id(leaf)) == module:
                return module
            if id(leaf) in self._norms:
                return self._norms[id(leaf)]
        return None

    def _damage(self, func: Any, name: str, args: Any, kwargs: Any, result: Any) -> float | None:
        tensor = args[0] if name in LAYERS and args else None
        if tensor is None or not self.is_raw.get(self.values.get(id(tensor), -1)):
            return None
        (scale,), (zero_point,) = activation_scales(torch.stack(torch.aminmax(tensor)).float().unsqueeze(0))
        rounded = func(round_to_uint8(tensor.float(), scale, zero_point).to(tensor.dtype), *args[1:], **(kwargs or {}))
        return relative_energy(rounded - result, result)


def _range(tensor: Tensor) -> Tensor:
    """(2,) - lowest and highest number."""
    return torch.stack(torch.aminmax(tensor.detach())) if tensor.numel() else tensor.new_zeros(2)
