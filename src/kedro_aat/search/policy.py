"""What a search policy is: an explicit state, and one question per epoch (`ask`, then `tell`)."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Protocol, TypeVar, runtime_checkable

from pydantic import Field, ValidationInfo, field_validator

from kedro_aat.budget import UNIT_WITHOUT_DROP, Outcome
from kedro_aat.search.tactics import Ranking, Tactic
from kedro_aat.validated import Settings

Rate = Annotated[float, Field(ge=0, lt=1)]
# A number of epochs, or of optimizer steps, up to what nobody trains.
Count = Annotated[int, Field(ge=0, le=1_000_000)]
# What a search looks for: the smallest model within budget, or the most accurate one at a given rate.
Goal = Literal["size", "accuracy"]

# A failed epoch counts as this many tolerated drops below the budget, as NNCF's `interpolate` assumes at rate 1.
DROPS_BELOW_IF_FAILED = 20
# Factor on the learning rate after an epoch that failed.
LR_FACTOR_IF_FAILED = 0.5


class Problem(Settings):
    """The problem that a search has to solve.

    Attributes:
        minimal_rate: Lowest rate worth returning, in [0, 1).
        maximal_rate: Highest rate that may be tried, in [0, 1); at least `minimal_rate`.
        initial_rate: Rate of the model at the beginning, in [0, 1).
        tolerated_drop: The accuracy budget's drop, in metric units.
        first_target_rate: A rate that most models bear, at which a search may begin, in [0, 1).
        regrows: Whether what comes back as zeros, when the rate falls, learns again.
        rankings: The ways in which the controller can rank what it removes; empty if there is no choice.
        can_sample: Whether the training can sample gradients, which the importance `taylor` needs.
        can_distill: Whether the training can distill from the baseline.
        num_validation: Number of validation examples; None if unknown.
        goal: `size` asks for the highest rate within budget, `accuracy` for the most accurate model at `minimal_rate`,
            which then is `maximal_rate`, too. Lower rates may be tried on the way.
    """

    minimal_rate: Rate = 0.0
    maximal_rate: Annotated[Rate, Field(validate_default=True)] = 0.95
    initial_rate: Rate = 0.0
    tolerated_drop: Annotated[float, Field(ge=0)] = 0.0
    first_target_rate: Rate = 0.5
    regrows: bool = False
    rankings: tuple[Ranking, ...] = ()
    can_sample: bool = False
    can_distill: bool = False
    num_validation: int | None = None
    goal: Goal = "size"

    @field_validator("maximal_rate")
    @classmethod
    def _check_rates(cls, rate: float, info: ValidationInfo) -> float:
        return require_at_least(rate, info.data.get("minimal_rate"))


def require_at_least(maximal_rate: float, minimal_rate: float | None) -> float:
    """Checks the maximal rate against the minimal one, and returns it.

    This is a rule on one key, so that it is reported beside all other mistakes.

    Raises:
        ValueError: If the maximal rate is below the minimal one.
    """
    if minimal_rate is not None and maximal_rate < minimal_rate:
        raise ValueError(f"must be at least minimal_rate ({minimal_rate}), but got {maximal_rate}")
    return maximal_rate


class Epoch(Settings):
    """The next epoch that a policy asks for.

    Attributes:
        train: Whether to train at all; a policy may ask for a validation only.
        rate_path: Rates to follow within the epoch, the last of which is judged; None leaves the rate to the
            controller (its own schedule, or what was set before).
        lr_scale: Factor on the configured learning rates of the optimizer.
        lr_scale_at_end: Factor at the end of the epoch, above 0, to which `lr_scale` changes linearly, if the training
            steps the controller's scheduler; None keeps `lr_scale`.
        start_from: Checkpoint to restore first; None continues from the current weights.
        new_optimizer: Whether to start with a new optimizer and learning-rate scheduler.
        tactic: How to rank and to train from now on; None changes nothing.
    """

    train: bool = True
    rate_path: tuple[float, ...] | None = None
    lr_scale: float = 1.0
    lr_scale_at_end: float | None = None
    start_from: int | None = None
    new_optimizer: bool = False
    tactic: Tactic | None = None


class Stop(Settings):
    """The end of a search.

    Attributes:
        outcome: `within_budget` if there is a model to return, else `infeasible`.
        best: Checkpoint to return; None if there is none.
        reason: Why the search ended, in words for the user.
    """

    outcome: Outcome
    best: int | None
    reason: str


class EpochResult(Settings):
    """The result of an epoch.

    Attributes:
        checkpoint: Number of the checkpoint that holds its state.
        trained: Whether the epoch trained, or only validated.
        requested_rate: Requested compression rate, in [0, 1).
        achieved_rate: Achieved compression rate, in [0, 1].
        metric: Metric on the validation split, finite; None if the epoch failed, because its loss or its metric was NaN
            or infinite. The checkpoint of a failed epoch holds the state in which the epoch began.
        margin: Distance of the metric to the lowest tolerated one; at least 0 is within budget. `margin_if_failed` for
            a failed epoch.
        standard_error: Standard error of the metric's difference to the baseline; None if unknown.
        cost: What the epoch cost, as a share of an epoch of the uncompressed model, in [0, 1].
        fully_compressed: Whether the controller's own schedule has ended.
        early_stop: Whether the user's function asked to end this phase of training.
    """

    checkpoint: int
    trained: bool
    requested_rate: float
    achieved_rate: float
    metric: float | None
    margin: float
    standard_error: float | None = None
    cost: Annotated[float, Field(ge=0, le=1)] = 1.0
    fully_compressed: bool = True
    early_stop: bool = False

    @property
    def failed(self) -> bool:
        """Whether the loss or the metric was NaN or infinite."""
        return self.metric is None


def margin_if_failed(tolerated_drop: float) -> float:
    """The margin of a failed epoch, in metric units: far below the budget."""
    return -DROPS_BELOW_IF_FAILED * (tolerated_drop if tolerated_drop > 1e-9 else UNIT_WITHOUT_DROP)


class Trial(Settings):
    """One rate that was trained and judged, represented by its best epoch.

    Attributes:
        checkpoint: Number of the checkpoint of that epoch.
        requested_rate: Requested compression rate, in [0, 1).
        achieved_rate: Achieved compression rate, in [0, 1].
        margin: Distance of the metric to the lowest tolerated one; at least 0 is within budget.
    """

    checkpoint: int
    requested_rate: float
    achieved_rate: float
    margin: float

    @classmethod
    def from_result(cls, result: EpochResult) -> Trial:
        """Returns the trial whose best epoch has this result."""
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
    """What every policy's state has: the model to return now, and the checkpoints that it may come back to.

    Attributes:
        candidates: The trials so far. The name is that of the key in checkpoints, which version 0.1.0 wrote too.
    """

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
    def needed_optimizers(self) -> frozenset[int]:
        """Those of `needed` from which the policy may go on without a new optimizer."""
        return self.needed

    @property
    def returned(self) -> Trial | None:
        """The trial that the search would return now; None if the best is not worth returning."""
        return self.best

    def stop(self, reason: str) -> Stop:
        """Ends the search and returns the best model, if there is one."""
        if self.returned is None:
            return Stop(outcome=Outcome.INFEASIBLE, best=None, reason=reason)
        return Stop(outcome=Outcome.WITHIN_BUDGET, best=self.returned.checkpoint, reason=reason)


def worth_returning(best: Trial | None, problem: Problem) -> Trial | None:
    """Returns the best trial, unless it is not compressed, or less than the problem asks for."""
    if best is None or best.requested_rate <= 0 or best.requested_rate < problem.minimal_rate:
        return None
    return best


def with_trial(trials: tuple[Trial, ...], result: EpochResult) -> tuple[Trial, ...]:
    """Adds a result to `trials` if it is better than what its requested rate had before."""
    if result.failed or not result.fully_compressed:
        return trials
    before = next((known for known in trials if known.requested_rate == result.requested_rate), None)
    trial = Trial.from_result(result)
    if before is not None and trial.merit <= before.merit:
        return trials
    return (*(known for known in trials if known is not before), trial)


S = TypeVar("S", bound=SearchState)


class SearchPolicy(Protocol[S]):
    """A search strategy. Its settings are its fields; its state is a value that survives JSON.

    A policy uses no torch and no clock, and draws random numbers only from a seed in the state, so that a search
    that is resumed from its state continues exactly as it would have.
    """

    @property
    def maximal_total_epochs(self) -> int:
        """Limit on the number of epochs trained."""
        ...

    def initial(self, problem: Problem) -> S:
        """Returns the state before the first question."""
        ...

    def ask(self, state: S) -> Epoch | Stop:
        """Returns the next epoch, or ends the search."""
        ...

    def tell(self, state: S, result: EpochResult) -> S:
        """Returns the state after the epoch that `ask` returned, which had this result."""
        ...

    def load(self, state: str) -> S:
        """Reads a state from its JSON."""
        ...


@runtime_checkable
class TakesMoreEpochs(Protocol[S]):
    """A policy that plans with its limit of epochs, and so has to be told if that is raised while a search goes on."""

    def with_more_epochs(self, state: S) -> S:
        """Returns the state from which a search goes on that is given more epochs than it was begun with."""
        ...


P = TypeVar("P", bound=Settings)


def updated(settings: P, **changes: Any) -> P:
    """Copies a policy or a state with some fields changed, and validates it, which `model_copy` does not."""
    return type(settings)(**{**dict(settings), **changes})


def with_epochs(policy: P, maximal_total_epochs: int) -> P:
    """Copies a policy with another limit on the number of epochs trained."""
    return updated(policy, maximal_total_epochs=maximal_total_epochs)
