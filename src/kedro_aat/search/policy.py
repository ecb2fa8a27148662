"""What a search policy is: explicit state, and one question an epoch (`ask`, then `tell`)."""

from __future__ import annotations

from typing import Annotated, Protocol, TypeVar

from pydantic import Field, ValidationInfo, field_validator

from kedro_aat.budget import Outcome
from kedro_aat.validated import Settings

Rate = Annotated[float, Field(ge=0, lt=1)]


class Problem(Settings):
    """What a search is given.

    Attributes:
        minimal_rate: Lowest rate worth returning, in [0, 1).
        maximal_rate: Highest rate that may be tried, in [0, 1); at least `minimal_rate`.
        initial_rate: Rate of the model as it was given, in [0, 1).
        tolerated_drop: The accuracy budget's drop, in metric units.
    """

    minimal_rate: Rate = 0.0
    maximal_rate: Annotated[Rate, Field(validate_default=True)] = 0.95
    initial_rate: Rate = 0.0
    tolerated_drop: Annotated[float, Field(ge=0)] = 0.0

    @field_validator("maximal_rate")
    @classmethod
    def _at_least_the_minimal_rate(cls, rate: float, given: ValidationInfo) -> float:
        return require_at_least(rate, given.data.get("minimal_rate"))


def require_at_least(maximal_rate: float, minimal_rate: float | None) -> float:
    """The maximal rate, checked against the minimal one; a rule on one key, so that it is told beside all others.

    Raises:
        ValueError: If it is below.
    """
    if minimal_rate is not None and maximal_rate < minimal_rate:
        raise ValueError(f"must be at least minimal_rate ({minimal_rate}), but got {maximal_rate}")
    return maximal_rate


class Epoch(Settings):
    """The next epoch that a policy asks for.

    Attributes:
        train: Whether to train at all; a policy may ask for a validation alone.
        rate_path: Rates to follow within the epoch, the last of them being the one that is judged; None
            leaves the rate to the controller (its own schedule, or what was set before).
        lr_scale: Factor on the learning rates that the optimizer was configured with.
        start_from: Checkpoint to restore first; None goes on from the present weights.
        new_optimizer: Whether optimizer and learning-rate scheduler start anew.
    """

    train: bool = True
    rate_path: tuple[float, ...] | None = None
    lr_scale: float = 1.0
    start_from: int | None = None
    new_optimizer: bool = False


class Stop(Settings):
    """The end of a search.

    Attributes:
        outcome: `within_budget` where there is a model to return, else `infeasible`.
        best: Checkpoint to return, None if there is none.
        reason: Why the search ended, in words for the user.
    """

    outcome: Outcome
    best: int | None
    reason: str


class EpochResult(Settings):
    """What came of an epoch.

    Attributes:
        checkpoint: Number of the checkpoint with this state.
        trained: Whether the epoch trained, or only validated.
        requested_rate: The rate asked for, in [0, 1).
        achieved_rate: The rate that the model has, in [0, 1].
        metric: The validation metric, finite.
        margin: Distance of the metric to the lowest tolerated one; at least 0 is within budget.
        standard_error: Of the metric's difference to the baseline, None if unknown.
        fully_compressed: Whether the controller has reached the end of its own schedule.
        early_stop: Whether the user's function asked to end this phase of training.
    """

    checkpoint: int
    trained: bool
    requested_rate: float
    achieved_rate: float
    metric: float
    margin: float
    standard_error: float | None = None
    fully_compressed: bool = True
    early_stop: bool = False


class Trial(Settings):
    """One rate that was trained and judged, as its best epoch left it.

    Attributes:
        checkpoint: Number of the checkpoint of that epoch.
        requested_rate: Rate that the search asked for, in [0, 1).
        achieved_rate: Rate of the model, in [0, 1].
        margin: Distance of the metric to the lowest tolerated one; at least 0 is within budget.
    """

    checkpoint: int
    requested_rate: float
    achieved_rate: float
    margin: float

    @classmethod
    def from_result(cls, result: EpochResult) -> Trial:
        """The trial whose best epoch had this result."""
        return cls(
            checkpoint=result.checkpoint,
            requested_rate=result.requested_rate,
            achieved_rate=result.achieved_rate,
            margin=result.margin,
        )

    @property
    def merit(self) -> tuple[bool, float, float]:
        """Orders trials: within budget first, then by achieved rate, then by margin."""
        is_within = self.margin >= 0
        return is_within, self.achieved_rate if is_within else 0.0, self.margin


class SearchState(Settings):
    """What every policy's state has: what to return now, and what it may come back to."""

    # Not `trials`, since checkpoints written by version 0.1.0 have this key.
    candidates: tuple[Trial, ...] = ()

    @property
    def best(self) -> Trial | None:
        """The trial within budget that has the highest achieved rate, and among equals the largest margin."""
        feasible = (trial for trial in self.candidates if trial.margin >= 0)
        return max(feasible, key=lambda trial: trial.merit, default=None)

    @property
    def needed(self) -> frozenset[int]:
        """Checkpoints that the policy may ask to start from, or return."""
        return frozenset({self.best.checkpoint} if self.best else ())

    @property
    def returned(self) -> Trial | None:
        """What the search would return now; None where the best is not worth returning."""
        return self.best

    def stop(self, reason: str) -> Stop:
        """Ends the search with what there is to return."""
        if self.returned is None:
            return Stop(outcome=Outcome.INFEASIBLE, best=None, reason=reason)
        return Stop(outcome=Outcome.WITHIN_BUDGET, best=self.returned.checkpoint, reason=reason)


def worth_returning(best: Trial | None, problem: Problem) -> Trial | None:
    """The best, unless it is not compressed, or less than was asked for."""
    if best is None or best.requested_rate <= 0 or best.requested_rate < problem.minimal_rate:
        return None
    return best


def with_trial(trials: tuple[Trial, ...], result: EpochResult) -> tuple[Trial, ...]:
    """Adds a result to `trials` if it is better than what its requested rate had before."""
    if not result.fully_compressed:
        return trials
    before = next((known for known in trials if known.requested_rate == result.requested_rate), None)
    trial = Trial.from_result(result)
    if before is not None and trial.merit <= before.merit:
        return trials
    return (*(known for known in trials if known is not before), trial)


S = TypeVar("S", bound=SearchState)


class SearchPolicy(Protocol[S]):
    """A strategy of search. Its settings are its fields; its state is a value that survives JSON.

    No torch, no clock, and no random numbers without a seed in the state, so that a search resumed from
    its state goes on exactly as it would have.
    """

    @property
    def maximal_total_epochs(self) -> int:
        """Limit on the epochs trained."""
        ...

    def initial(self, problem: Problem) -> S:
        """The state before the first question."""
        ...

    def ask(self, state: S) -> Epoch | Stop:
        """The next epoch, or the end."""
        ...

    def tell(self, state: S, seen: EpochResult) -> S:
        """The state after the epoch that `ask` named came out as `seen`."""
        ...

    def load(self, state: str) -> S:
        """The state from its JSON."""
        ...


P = TypeVar("P", bound=Settings)


def with_epochs(policy: P, maximal_total_epochs: int) -> P:
    """The same policy with another limit on the epochs trained."""
    return type(policy)(**{**dict(policy), "maximal_total_epochs": maximal_total_epochs})
