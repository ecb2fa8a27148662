"""What a function of the user's measures on a device. It needs no torch, so that a small script can import it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FunctionType
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from kedro_aat.errors import DeviceError, InterruptedRunError
from kedro_aat.imports import Imported

DeviceProperty = Literal["latency_ms", "memory_bytes"]

_EXPECTED = "Return Measured(latency_ms=..., memory_bytes=...), or a mapping with one of these keys or both"
_TAKES = (
    "It must take that path alone, beside what init_args give by name, and return Measured(latency_ms=..., "
    "memory_bytes=...), as in `def measure(path: Path) -> Measured`"
)

_MAX_SHOWN = 300  # characters of what a function raised or returned


def _number(value: object) -> object:
    """The value, if it is a number: pydantic would read texts and truth values as numbers, too."""
    if isinstance(value, str | bytes | bool):
        raise ValueError("should be a number")
    return value


class Measured(BaseModel):
    """What a device says of a file: at least one of the two.

    Attributes:
        latency_ms: Time of one run in milliseconds, above 0; best the median of many runs.
        memory_bytes: Peak memory that a run takes in bytes, above 0.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    latency_ms: Annotated[float, Field(gt=0), BeforeValidator(_number)] | None = None
    memory_bytes: Annotated[int, Field(gt=0), BeforeValidator(_number)] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.latency_ms is None and self.memory_bytes is None:
            raise ValueError("neither latency_ms nor memory_bytes is given")
        return self


def measuring_function(named: Imported) -> Callable[[Path], object]:
    """What is called with the path of a file: a class is built, and a function keeps the arguments of `init_args`.

    Args:
        named: The class or function.
    """
    target: Callable[..., Any] = named.load()
    if inspect.isclass(target):
        made: Callable[[Path], object] = named.make()
        return made
    return functools.partial(target, **named.init_args) if named.init_args else target


def call_mistakes(named: Imported, key: str) -> list[str]:
    """What shows before the first call that a class or function cannot measure files.

    Args:
        named: It exists, and can be called with something.
        key: Key to report mistakes under.
    """
    target: Any = named.load()
    name, is_class = named.class_path, inspect.isclass(target)
    called, arguments = _of_instances(target) if is_class else (target, (Path("model"),))
    if called is None:
        return [
            f"{key}: an object of {name} cannot be called; the class needs `def __call__(self, path: Path)`. {_TAKES}"
        ]
    if inspect.iscoroutinefunction(called) or inspect.isasyncgenfunction(called):
        return [f"{key}: {name} is async, and nothing would wait for its answer; write it without async"]
    if (words := _refusal(called, arguments, {} if is_class else named.init_args)) is not None:
        return [f"{key}: {name} cannot be called with the path of a file ({words}). {_TAKES}"]
    if is_class and (words := _refusal(target, (), named.init_args)) is not None:
        return [f"{key}.init_args: {name} cannot be built with them ({words})"]
    return []


def _of_instances(target: type) -> tuple[Callable[..., object] | None, tuple[object, ...]]:
    """The `__call__` of a class's objects, None if they have none, and its arguments."""
    # Every class can be called, which builds an object; that does not count.
    if not any("__call__" in vars(base) for base in target.__mro__):
        return None, ()
    is_method = isinstance(inspect.getattr_static(target, "__call__"), FunctionType)
    called: Callable[..., object] = target.__call__
    return called, (target, Path("model")) if is_method else (Path("model"),)


def _refusal(called: Callable[..., object], arguments: tuple[object, ...], named: Mapping[str, Any]) -> str | None:
    """Why something takes no such arguments; None if it does, or if a builtin does not say."""
    try:
        inspect.signature(called).bind(*arguments, **named)
    except TypeError as error:
        return str(error)
    except ValueError:
        return None
    return None


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
        mistakes = f" ({_mistakes(error)})" if isinstance(answer, Mapping) else ""
        words = f"it returned {answer!r:.100}, which is no Measured{mistakes}. {_EXPECTED}"
        raise DeviceError(_cut(words)) from error


def _mistakes(error: ValidationError) -> str:
    return "; ".join(map(_described, error.errors()))


def _described(mistake: ErrorDetails) -> str:
    key = ".".join(map(str, mistake["loc"]))
    words = mistake["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return "unknown key " + key if mistake["type"] == "extra_forbidden" else f"{key} {words}".strip()


def _called(function: Callable[[Path], object], path: Path) -> Any:
    try:
        return function(path)
    except InterruptedRunError:
        raise
    except ValidationError as error:
        if error.title != Measured.__name__:
            raise DeviceError(_cut(f"{type(error).__name__}: {error}")) from error
        raise DeviceError(_cut(f"it made no Measured ({_mistakes(error)}). {_EXPECTED}")) from error
    except (Exception, SystemExit) as error:  # a function of the user's raises anything
        raise DeviceError(_cut(f"{type(error).__name__}: {error}".rstrip(": "))) from error


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]} ..."
