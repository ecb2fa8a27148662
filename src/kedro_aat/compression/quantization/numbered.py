"""Finds tensors by the number of their step, as in models that versions 0.1 and 0.2 saved."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from kedro_aat.compression.quantization.calls import Follower, ModuleCall, Pass, is_floating, is_step
from kedro_aat.compression.quantization.places import CallTree


class NumberedPass(Pass):
    """One forward pass of a whole model, whose steps are numbered in the order of the calls.

    Args:
        follower: What made it.
        numbers: Number of a step -> number of its tensor; step -1 is the model's first input, -2 its second.
    """

    def __init__(self, follower: Follower, numbers: Mapping[int, int]) -> None:
        super().__init__(follower, CallTree([], []))
        self._numbers = numbers
        self._step = 0

    def enter(self, call: ModuleCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        args, kwargs = super().enter(call, args, kwargs)
        if call.name or len(self._open) > 1:
            return args, kwargs
        inputs = itertools.count(-1, -1)

        def change_input(name: str, tensor: Any) -> Any:
            number = self._numbers.get(next(inputs)) if is_floating(tensor) else None
            return tensor if number is None else self.change(number, tensor)

        self.is_paused = True
        try:
            return call.change_inputs(args, kwargs, change_input)
        finally:
            self.is_paused = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.is_paused or not is_step(func, result):
            return result
        number = self._numbers.get(self._step)
        self._step += 1
        return result if number is None else self.change(number, result)
