"""What a rehearsal that has passed hands on: which parts of the run were done once, in small."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from kedro_aat.delivery.measurements import Result


class RehearsedPart(Result):
    """A part of the run that was done once, in small.

    Attributes:
        name: What was done, such as `first stage (filter_pruning)`.
        seconds: Wall time that it took.
    """

    name: str
    seconds: float


class RehearsalResult(Result):
    """That everything that the run will do works; a rehearsal that fails is an error instead.

    Attributes:
        outcome: `off` if the settings switch it off or nothing will be trained.
        parts: What was done.
        passed_before: Whether it was not repeated, because the same rehearsal had passed before; the seconds are those
            of that time.
    """

    outcome: Literal["passed", "off"]
    parts: list[RehearsedPart] = Field(default_factory=list)
    passed_before: bool = False

    @property
    def seconds(self) -> float:
        """Wall time of all parts."""
        return sum(part.seconds for part in self.parts)
