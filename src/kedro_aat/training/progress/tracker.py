"""What follows a run from outside: the interface of trackers, and the one that calls a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from kedro_aat.training.guards.user_functions import calling

if TYPE_CHECKING:
    from onnx import ModelProto

    from kedro_aat.training.records import EpochRecord, FineTuned

Parameter = str | int | float | bool


@dataclass(frozen=True)
class TrackedSearch:
    """The search of one stage, when it begins or goes on.

    Attributes:
        run: Name of its run's folder in the checkpoint store.
        first_run: That of the first stage, which names all stages together. The same settings, model and data give the
            same name again.
        stage: Number of the stage, from 1.
        parameters: Settings of the pipeline, with dotted names.
        history: Epochs that earlier processes have done.
        is_over: Whether the search had ended before, so that no epoch follows.
    """

    run: str
    first_run: str
    stage: int = 1
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    history: tuple[EpochRecord, ...] = ()
    is_over: bool = False


@dataclass(frozen=True)
class Delivered:
    """What a run of the pipeline has delivered.

    Attributes:
        run: `TrackedSearch.first_run` of its searches.
        parameters: Settings of the pipeline, with dotted names.
        metrics: Numbers of the summary, with dotted names such as `compressed.latency_ms.1`.
        tags: Outcome, certificate and the like in words.
        onnx: The delivered ONNX model; None if nothing was delivered.
    """

    run: str
    parameters: Mapping[str, Parameter]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    onnx: ModelProto | None


class Tracker:
    """Follows a run of the pipeline; a subclass overrides what it needs, and the rest does nothing.

    Each node that searches makes a tracker of its own, with the arguments in the settings, and so does the one that
    collects the numbers at the end: nodes may run in different processes. A tracker is pickled before `start` if
    several processes train. To make one must not connect to anything.

    An error of a method is a warning, and the run goes on, since a server that cannot be reached should end no search.

    Attributes:
        ends_run: Whether an error ends the run instead; the same command continues it.
    """

    ends_run: ClassVar[bool] = False

    def start(self, search: TrackedSearch) -> None:
        """A search begins, or goes on in this process."""

    def epoch(self, record: EpochRecord) -> None:
        """An epoch is over; `record.scalars` are its numbers, and `record.epoch` counts from 1 within the stage."""

    def finish(self, result: FineTuned | None) -> None:
        """The search has ended as `result` says; None if it was stopped by an error or by Ctrl-C."""

    def deliver(self, delivered: Delivered) -> None:
        """The pipeline has delivered a model, or found none; called on a tracker that has not started."""


class CallbackTracker(Tracker):
    """Calls a function of the user's with the record of each epoch.

    Args:
        function: The function. An error in it ends the run.
    """

    ends_run = True

    def __init__(self, function: Callable[[EpochRecord], object]) -> None:
        self._function = function

    def epoch(self, record: EpochRecord) -> None:
        with calling(self._function, "on_epoch", f"epoch {record.epoch}"):
            self._function(record)
