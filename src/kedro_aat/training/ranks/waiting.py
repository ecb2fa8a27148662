"""Ranks that wait while rank 0 alone does what is around a search, such as the other nodes of a pipeline.

They have the splits already, which may be large; all else of a stage is told to them when it begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kedro_aat.errors import RankError, ends_run
from kedro_aat.training.data import Data
from kedro_aat.training.ranks.stage_inputs import StageInputs

if TYPE_CHECKING:
    from kedro_aat.training.stage import SearchStage

_OTHERS_WAIT = ContextVar("others_wait", default=False)
NOT_TOLD = ()  # stands for a split


@dataclass(frozen=True)
class StageCall:
    """Rank 0 begins a stage.

    Attributes:
        stage: The stage.
        inputs: What it works on, without the splits.
    """

    stage: SearchStage
    inputs: StageInputs

    def follow(self, train_data: Data, validation_data: Data) -> None:
        """Takes part in the stage, on a rank that waited for it.

        Args:
            train_data: Training split.
            validation_data: Validation split.

        Raises:
            AatError: What ended the stage, here or on rank 0.
        """
        self.stage.run_on(replace(self.inputs, train_data=train_data, validation_data=validation_data))


Tell = Callable[[StageCall], AbstractContextManager[None]]  # while the context lasts, the others take part
_TELL: ContextVar[Tell | None] = ContextVar("tell", default=None)


@contextmanager
def others_waiting(tell: Tell) -> Iterator[None]:
    """The other ranks wait, until rank 0 tells them a stage that it begins.

    Args:
        tell: Tells them.
    """
    token = _TELL.set(tell)
    try:
        yield
    finally:
        _TELL.reset(token)


@contextmanager
def with_those_who_wait(stage: SearchStage, inputs: StageInputs) -> Iterator[None]:
    """Has the ranks that wait, if there are any, run a stage with this one.

    Raises:
        ConfigurationError: If the stage cannot be told.
        RankError: If the stage fails in a way that ends no run of a single process: nobody knows where the others are.
    """
    if (tell := _TELL.get()) is None:
        yield
        return
    with tell(StageCall(stage, replace(inputs, train_data=NOT_TOLD, validation_data=NOT_TOLD))):
        try:
            yield
        except Exception as error:
            if ends_run(error):
                raise
            raise RankError(str(error)) from error
