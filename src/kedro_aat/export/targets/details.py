"""What a device needs to run a file, as plain data that results keep."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class QuantizedPort(BaseModel):
    """How an input or output of a file stores numbers as integers.

    Attributes:
        dtype: Type of the integers, such as `int8`.
        scale: Difference between two numbers whose integers differ by 1.
        zero_point: The integer that stands for 0.
    """

    model_config = ConfigDict(frozen=True)

    dtype: str
    scale: float
    zero_point: int


class TargetDetails(BaseModel):
    """What a device needs to run a file.

    Attributes:
        operators: Operators of the runtime that the file calls, each once, by the runtime's own names.
        not_on_microcontrollers: Those of them that the runtime lacks on microcontrollers.
        arena_bytes: Memory that the file's plan takes for inputs, outputs and values in between, for the batch size
            that was planned; None if the runtime plans none.
        runtime_bytes: Memory that the runtime of a microcontroller keeps beside these, at most; None if unknown.
        quantized_inputs: Name of an input -> how it stores numbers; empty if inputs are floating-point numbers.
        quantized_outputs: The same of outputs.
    """

    model_config = ConfigDict(frozen=True)

    operators: tuple[str, ...] = ()
    not_on_microcontrollers: tuple[str, ...] = ()
    arena_bytes: int | None = None
    runtime_bytes: int | None = None
    quantized_inputs: dict[str, QuantizedPort] = {}
    quantized_outputs: dict[str, QuantizedPort] = {}
