"""What a function of the user's measures on a device. It needs no torch, so that a small script can import it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from kedro_aat.errors import DeviceError, InterruptedRunError

DeviceProperty = Literal["latency_ms", "memory_bytes"]

_EXPECTED = "Return Measured(latency_ms=..., memory_bytes=...), or a mapping with one of these keys or both"

_MAX_SHOWN = 300  # characters of what a function raised or returned


class Measured(BaseModel):
    """What a device says of a file: at least one of the two.

    Attributes:
        latency_ms: Time of one run in milliseconds, above 0; best the median of many runs.
        memory_bytes: Peak memory that a run takes in bytes, above 0.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    latency_ms: Annotated[float, Field(gt=0)] | None = None
    memory_bytes: Annotated[int, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.latency_ms is None and self.memory_bytes is None:
            raise ValueError("neither latency_ms nor memory_bytes is given")
        return self


def ask(function: Callable[[Path], object], path: Path) -> Measured:
    """Has a function measure a file.

    Args:
        function: Returns `Measured`, or a mapping with its fields.
        path: The file.

    Raises:
        DeviceError: If the function raises, or if it returns anything else; the message says what.
    """
    answer = _called(function, path)
    try:
        return Measured.model_validate(answer)
    except ValidationError as error:
        mistakes = ""
        if isinstance(answer, Mapping):
            mistakes = f" ({'; '.join(map(_described, error.errors()))})"
        words = f"it returned {answer!r:.100}, which is no Measured{mistakes}. {_EXPECTED}"
        raise DeviceError(_cut(words)) from error


def _described(mistake: ErrorDetails) -> str:
    key = ".".join(map(str, mistake["loc"]))
    words = mistake["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return "unknown key " + key if mistake["type"] == "extra_forbidden" else f"{key} {words}".strip()


def _called(function: Callable[[Path], object], path: Path) -> Any:
    try:
        return function(path)
    except InterruptedRunError:
        raise
    except (Exception, SystemExit) as error:  # a function of the user's raises anything
        raise DeviceError(_cut(f"{type(error).__name__}: {error}".rstrip(": "))) from error


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]} ..."
