"""Ranks that wait while rank 0 alone does what is around a search, such as the other nodes of a pipeline.

They have the splits already, which may be large; all else of a stage is told to them when it begins.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kedro_aat.errors import ConfigurationError, RankError, ends_run
from kedro_aat.ranks import group
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


@contextmanager
def others_waiting() -> Iterator[None]:
    """The other ranks wait, until rank 0 tells them something; each stage that it runs is told."""
    token = _OTHERS_WAIT.set(True)
    try:
        yield
    finally:
        _OTHERS_WAIT.reset(token)


def others_wait() -> bool:
    """Whether the other ranks wait, so that this one is alone unless it tells them something."""
    return _OTHERS_WAIT.get() and group.is_distributed()


@contextmanager
def with_those_who_wait(stage: SearchStage, inputs: StageInputs) -> Iterator[None]:
    """Has the ranks that wait, if there are any, run a stage with this one.

    Raises:
        ConfigurationError: If the stage cannot be told.
        RankError: If the stage fails in a way that ends no run of a single process: nobody knows where the others are.
    """
    if not others_wait():
        yield
        return
    call = StageCall(stage, replace(inputs, train_data=NOT_TOLD, validation_data=NOT_TOLD))
    try:
        group.told(call)
    except (TypeError, AttributeError, ValueError, ImportError) as error:  # as pickle raises them
        raise ConfigurationError(
            "training",
            [
                f"a search with {group.world_size()} ranks passes its model and settings on by pickle, but {error}; "
                "define classes and functions at the top of a module, not inside of others"
            ],
        ) from error
    try:
        yield
    except Exception as error:
        if ends_run(error):
            raise
        raise RankError(str(error)) from error
