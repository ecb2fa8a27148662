"""Tells trackers of a run; the run does not depend on them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from kedro_aat.training.progress.tracker import Delivered, Parameter, TrackedSearch, Tracker
from kedro_aat.training.records import EpochRecord, FineTuned

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tracking:
    """Who follows the search of a stage, and what they are told of it.

    Attributes:
        trackers: Those who follow.
        stage: Number of the stage, from 1.
        first_run: Name of the first stage's run; None if this is the first stage.
        parameters: Settings of the pipeline, with dotted names.
    """

    trackers: Sequence[Tracker] = ()
    stage: int = 1
    first_run: str | None = None
    parameters: Mapping[str, Parameter] = field(default_factory=dict)

    def search(self, run: str, history: Sequence[EpochRecord], *, is_over: bool) -> TrackedSearch:
        """The search as trackers see it.

        Args:
            run: Name of the run.
            history: Epochs that earlier processes have done.
            is_over: Whether the search had ended before.
        """
        return TrackedSearch(run, self.first_run or run, self.stage, self.parameters, tuple(history), is_over)


class Following:
    """Tells trackers of a search, from its begin to its end; a context manager.

    Attributes:
        result: How the search ended; None as long as it has not.

    Args:
        trackers: Whom it tells.
        search: The search.
    """

    def __init__(self, trackers: Sequence[Tracker], search: TrackedSearch) -> None:
        self._trackers, self._search = trackers, search
        self.result: FineTuned | None = None

    def __enter__(self) -> Self:
        for tracker in self._trackers:
            with _surviving(tracker):
                tracker.start(self._search)
        return self

    def epoch(self, record: EpochRecord) -> None:
        """Tells of an epoch.

        Raises:
            UserFunctionError: If the user's function `on_epoch` fails.
        """
        for tracker in self._trackers:
            with _surviving(tracker):
                tracker.epoch(record)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for tracker in self._trackers:
            with _surviving(tracker):
                tracker.finish(self.result)


def tell_delivered(trackers: Sequence[Tracker], delivered: Delivered) -> None:
    """Tells trackers what a run has delivered."""
    for tracker in trackers:
        with _surviving(tracker):
            tracker.deliver(delivered)


@contextmanager
def _surviving(tracker: Tracker) -> Iterator[None]:
    """Turns an error of a tracker into a warning, unless it ends the run."""
    try:
        yield
    except Exception as error:
        if tracker.ends_run:
            raise
        name = type(tracker).__name__
        logger.warning("%s failed, and the run goes on. %s: %s", name, type(error).__name__, error)
        logger.debug("%s", name, exc_info=error)
