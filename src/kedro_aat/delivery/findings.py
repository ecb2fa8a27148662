"""What a run tells about itself beside its numbers: what was tried, what limited it, and what to try next."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from kedro_aat.delivery.measurements import Result
from kedro_aat.messages import duration

LimitKind = Literal["nothing", "highest_rate", "time", "noise", "layer", "epochs", "budget"]


class Tried(Result):
    """One way of training and ranking that a search tried.

    Attributes:
        stage: Number of the search stage.
        importance: Importance by which it ranked; None if the search does not choose one.
        ranking: `local` or `global`; None as above.
        distilled: Whether the baseline taught; None as above.
        learning_rate_factors: Lowest and highest factor on the configured learning rates.
        epochs: Number of epochs that were trained so.
        highest_rate: Highest achieved rate within budget, in [0, 1]; None if there was none.
        words: The same in words.
    """

    stage: int
    importance: str | None = None
    ranking: str | None = None
    distilled: bool | None = None
    learning_rate_factors: tuple[float, float]
    epochs: int
    highest_rate: float | None = None
    words: str


class Limited(Result):
    """What kept a search from a higher rate.

    Attributes:
        stage: Number of the search stage.
        kind: `nothing` if it ended by itself at the highest rate; `highest_rate` if that rate was reached with the last
            epochs; `time`: the time limit; `noise`: the standard error of a measured drop; `layer`: the metric fell
            steeply, and one layer has lost the most; `epochs`: the rate still rose at the end; `budget`: none of these.
        words: The same with its numbers, in words.
    """

    stage: int
    kind: LimitKind
    words: str


class NextStep(Result):
    """Something to try next, and what it costs.

    Attributes:
        change: The setting and its value, or the command.
        words: What it is expected to change.
        epochs: Epochs that it trains at most.
        minutes: Wall time of these epochs by what an epoch took; None if unknown.
    """

    change: str
    words: str
    epochs: int = 0
    minutes: float | None = None

    @property
    def cost(self) -> str:
        """What it costs, in words."""
        if self.epochs == 0:
            return "no training"
        if self.minutes is None:
            return f"up to {self.epochs} epochs"
        return f"up to {self.epochs} epochs, about {duration(60 * self.minutes)}"


class Findings(Result):
    """What a run tells about itself beside its numbers.

    Attributes:
        tried: What each search tried, by stage.
        limits: What limited each stage; the strongest one first.
        chosen: What was measured within budget, and why the delivered file was chosen, in words.
        next_steps: What to try next, the cheapest first.
    """

    tried: list[Tried] = Field(default_factory=list)
    limits: list[Limited] = Field(default_factory=list)
    chosen: list[str] = Field(default_factory=list)
    next_steps: list[NextStep] = Field(default_factory=list)

    @property
    def sections(self) -> list[tuple[str, list[str]]]:
        """Everything in words, as titles with statements; without empty ones."""
        steps = [f"{step.change}: {step.words} ({step.cost})." for step in self.next_steps]
        sections = [
            ("Tried", [each.words for each in self.tried]),
            ("What limited the result", [each.words for each in self.limits]),
            ("Within budget, and why this file", self.chosen),
            ("What to try next", steps),
        ]
        return [(title, statements) for title, statements in sections if statements]
