"""Replaces model, training and validation, so that a whole search takes milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kedro_aat.search.policy import Epoch, EpochResult, Problem, SearchPolicy, Stop, margin_if_failed

# A controller's own schedule ends below 1, like all rates.
HIGHEST_SCHEDULED_RATE = 0.99


@dataclass(frozen=True)
class Answer:
    """The result of one epoch, at any rate.

    Attributes:
        margin: Distance to the lowest tolerated metric.
        achieved_offset: Achieved rate minus requested rate.
        scheduled_increment: Increment of the rate by the controller's own schedule, until the search takes over.
        fully_compressed: Whether the controller's own schedule has ended.
        early_stop: Whether the user's function asks to end this phase of training.
        fails: Whether the loss or the metric is NaN, if the epoch trains.
        standard_error: Standard error of the margin; None if unknown.
    """

    margin: float
    achieved_offset: float = 0.0
    scheduled_increment: float = 0.0
    fully_compressed: bool = True
    early_stop: bool = False
    fails: bool = False
    standard_error: float | None = None


@dataclass
class Course:
    """A search so far.

    Attributes:
        moves: The epochs that the policy asked for.
        results: One result per move.
    """

    moves: list[Epoch] = field(default_factory=list)
    results: list[EpochResult] = field(default_factory=list)

    def first(self, number: int) -> Course:
        """Returns the search after its first `number` moves."""
        return Course(self.moves[:number], self.results[:number])

    def state_at(self, number: int) -> EpochResult:
        """Returns the result whose state checkpoint `number` holds: for a failed epoch, the one where it began."""
        while self.results[number].failed:
            start = self.moves[number].start_from
            number = number - 1 if start is None else start
        return self.results[number]


@dataclass(frozen=True)
class World:
    """Answers one epoch after another. Each result is a pure function of the epochs before.

    Attributes:
        problem: The problem to solve.
        answers: The answer to the first validation, then those to the epochs that train; after the last one they
            start again. A validation only repeats what is known, so it uses none.
        granularity: Achieved rates are multiples of its inverse, like those of a network with few filters.
        feasible_up_to: Margins are the distance to this achieved rate, instead of those of the answers.
        saving: What an epoch costs less at an achieved rate of 1, as a share of one of the uncompressed model.
    """

    problem: Problem
    answers: tuple[Answer, ...]
    granularity: int | None = None
    feasible_up_to: float | None = None
    saving: float = 0.0

    def answer(self, move: Epoch, past: Course) -> Answer:
        """Returns the answer to `move` after a past; a subclass may let it depend on both."""
        num_answered = 1 + sum(earlier.train for earlier in past.moves) if past.results else 0
        return self.answers[num_answered % len(self.answers)]

    def result(self, move: Epoch, past: Course) -> EpochResult:
        """Returns the result of `move` after a past; its checkpoint is the number of moves before it."""
        number = len(past.results)
        source = None
        if past.results:
            source = past.state_at(number - 1 if move.start_from is None else move.start_from)
        if source is not None and not move.train and move.rate_path is None:
            # The same model on the same data has the same metric.
            return changed(source, checkpoint=number, trained=False, cost=0.0, early_stop=False)
        answer = self.answer(move, past)
        requested = self.problem.initial_rate if source is None else source.requested_rate
        if move.rate_path is not None:
            requested = move.rate_path[-1]
        elif move.train and all(earlier.rate_path is None for earlier in past.moves):
            requested = min(requested + answer.scheduled_increment, HIGHEST_SCHEDULED_RATE)
        achieved = min(max(requested + answer.achieved_offset, 0.0), 1.0)
        if self.granularity is not None:
            achieved = round(achieved * self.granularity) / self.granularity
        margin = answer.margin if self.feasible_up_to is None else self.feasible_up_to - achieved
        fails = answer.fails and move.train
        return EpochResult(
            checkpoint=number,
            trained=move.train,
            requested_rate=requested,
            achieved_rate=achieved,
            metric=None if fails else margin,
            margin=margin_if_failed(self.problem.tolerated_drop) if fails else margin,
            standard_error=None if fails else answer.standard_error,
            cost=1 - self.saving * achieved if move.train else 0.0,
            fully_compressed=answer.fully_compressed,
            early_stop=answer.early_stop and move.train and not fails,
        )


@dataclass(frozen=True)
class Search:
    """A search from its beginning, or from where it was resumed, to its end.

    Attributes:
        course: All moves and results.
        states: The state before the first move, and the state after each.
        stop: The policy's last answer.
    """

    course: Course
    states: list[Any]
    stop: Stop


def search(
    policy: SearchPolicy[Any],
    world: World,
    *,
    resumed: tuple[Any, Course] | None = None,
    look: Callable[[Any, Course], None] | None = None,
    limit: int = 1000,
) -> Search:
    """Asks and tells until the policy stops.

    Args:
        policy: The policy.
        world: The world that answers it.
        resumed: State and course to continue from; by default a new search begins.
        look: Function that is called with state and course before each move.
        limit: Number of moves after which a search that has not ended is an error.

    Raises:
        AssertionError: If the search does not end.
    """
    state, past = resumed or (policy.initial(world.problem), Course())
    course, states = Course([*past.moves], [*past.results]), [state]
    for _ in range(limit):
        if look is not None:
            look(states[-1], course)
        move = policy.ask(states[-1])
        if isinstance(move, Stop):
            return Search(course, states, move)
        result = world.result(move, course)
        course.moves.append(move)
        course.results.append(result)
        states.append(policy.tell(states[-1], result))
    raise AssertionError(f"the search did not end within {limit} moves")


def changed(result: EpochResult, **changes: Any) -> EpochResult:
    """Copies a result with some fields changed."""
    return EpochResult(**{**dict(result), **changes})
