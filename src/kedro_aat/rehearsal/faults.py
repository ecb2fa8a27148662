"""Which part of a rehearsal failed, what caused it, and where in the model or the data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from torch import nn
from torchmetrics import Metric

from kedro_aat.errors import AatError, ConfigurationError, DataError, InterruptedRunError, UserFunctionError

MAX_LENGTH = 700  # characters of a cause; exporters show whole graphs in theirs


class PartFailedError(Exception):
    """A part of the rehearsal failed; the `__cause__` says why.

    Attributes:
        part: Name of the part.
    """

    def __init__(self, part: str) -> None:
        super().__init__(part)
        self.part = part


@contextmanager
def part(name: str) -> Iterator[None]:
    """Names the part in an error, unless the error says already where the mistake is.

    Raises:
        PartFailedError: If the block fails.
    """
    try:
        yield
    except (ConfigurationError, DataError, InterruptedRunError, PartFailedError):
        raise
    except (Exception, SystemExit) as error:
        raise PartFailedError(name) from error


@dataclass(frozen=True)
class Fault:
    """What fails.

    Attributes:
        part: Name of the part.
        cause: Why, in the words of the first cause.
        mends: What mends it; empty if nothing is known.
        works: What goes on working without it; empty if nothing is known.
    """

    part: str
    cause: str
    mends: str = ""
    works: str = ""

    def __str__(self) -> str:
        sentences = (text.rstrip(".") + "." for text in (self.cause, self.mends, self.works) if text)
        return f"{self.part}: {' '.join(sentences)}"


def cause_of(error: BaseException) -> str:
    """The cause of an error in the words of the first one in its chain; an error of ours has them already."""
    while isinstance(error, PartFailedError | UserFunctionError) and error.__cause__ is not None:
        error = error.__cause__
    if not isinstance(error, AatError):
        while error.__cause__ is not None:
            error = error.__cause__
    text = " ".join(str(error).strip().split("\n\n")[0].split())
    text = text if isinstance(error, AatError) else f"{type(error).__name__}: {text}".rstrip(": ")
    return text if len(text) <= MAX_LENGTH else f"{text[:MAX_LENGTH]} ..."


@dataclass(frozen=True)
class Blame:
    """Where an error was raised.

    Attributes:
        part: `loss`, `metric`, `model`, or empty if it was none of them.
        layer: Name of the layer in the model; empty if unknown.
    """

    part: str = ""
    layer: str = ""


def blamed(error: BaseException, loss: Any = None) -> Blame:
    """Finds the innermost loss, metric or layer that was running when an error was raised.

    Args:
        error: The error; its chain is searched, the first cause first.
        loss: The loss, a class of modules or a function.
    """

    def is_loss(owner: object) -> bool:
        return isinstance(loss, type) and isinstance(owner, loss)

    frames = [frame for each in reversed(_chain(error)) for frame in reversed(_frames(each))]
    for number, frame in enumerate(frames):
        owner = frame.f_locals.get("self")
        outer = [each.f_locals.get("self") for each in frames[number:]]
        if any(map(is_loss, outer)) or frame.f_code is getattr(loss, "__code__", None):
            return Blame("loss")
        if isinstance(owner, Metric):
            return Blame("metric")
        if isinstance(owner, nn.Module):
            modules = [each for each in outer if isinstance(each, nn.Module)]
            names = {id(module): name for root in modules for name, module in root.named_modules()}
            return Blame("model", names.get(id(owner), ""))
    return Blame()


def _chain(error: BaseException) -> list[BaseException]:
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    return chain


def _frames(error: BaseException) -> list[FrameType]:
    frames, step = [], error.__traceback__
    while step is not None:
        frames.append(step.tb_frame)
        step = step.tb_next
    return frames
