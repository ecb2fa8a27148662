"""A search of the frontier strategy that is given another number of epochs than it was begun with."""

from __future__ import annotations

import math

from hypothesis import example, given, settings
from hypothesis import strategies as st

from kedro_aat.search.attempts import u_of
from kedro_aat.search.frontier import Frontier
from kedro_aat.search.policy import Problem, Stop, TakesMoreEpochs
from kedro_aat.testing.simulated_search import Course, Search, search
from tests.search.landscapes import DROP, PROBLEM, Landscape, Trained, returned

REGROWING = Problem(maximal_rate=0.99, tolerated_drop=DROP, regrows=True)


def bounded(boundary: float) -> Landscape:
    """Models are within budget up to a boundary in u, and more so at a lower learning rate."""

    def margins(trained: Trained) -> float:
        return 1.2 * (1 - math.exp(3 * (trained.u - boundary))) - 0.02 * trained.lr_scale

    return Landscape(PROBLEM, (), margins=margins, standard_error=0.05 * DROP)


def continued(whole: Search, num_epochs: int, world: Landscape) -> Search:
    policy = Frontier(maximal_total_epochs=num_epochs)
    assert isinstance(policy, TakesMoreEpochs)
    course = Course([*whole.course.moves], [*whole.course.results])
    return search(policy, world, resumed=(policy.with_more_epochs(whole.states[-1]), course))


def num_trained(whole: Search) -> int:
    return sum(move.train for move in whole.course.moves)


@settings(max_examples=15, deadline=None)
@example(num_epochs=24, more=8, stopped=0, boundary=0.25, regrows=False)  # the new polish falls back
@given(
    num_epochs=st.integers(1, 40),
    more=st.integers(1, 40),
    stopped=st.integers(0, 40),
    boundary=st.floats(0.1, 5.0),
    regrows=st.booleans(),
)
def test_it_goes_on_from_its_state_and_never_returns_less(
    num_epochs: int, more: int, stopped: int, boundary: float, regrows: bool
) -> None:
    world = bounded(boundary)
    world = Landscape(REGROWING if regrows else PROBLEM, (), margins=world.margins, standard_error=world.standard_error)
    ended = search(Frontier(maximal_total_epochs=num_epochs), world)
    number = min(stopped, len(ended.states) - 1) or len(ended.states) - 1
    first = Search(ended.course.first(number), ended.states[: number + 1], ended.stop)
    second = continued(first, num_epochs + more, world)
    assert second.course.results[:number] == first.course.results
    assert num_trained(second) <= num_epochs + more
    last = first.states[-1]
    # A climb that goes on has returned nothing yet; its polish may find that a rate was not safe.
    if last.safe is not None and last.polish_epochs is not None:
        assert returned(second).requested_rate >= last.safe.requested_rate
    if second.stop.best is not None:
        assert returned(second).margin >= 0


def test_a_finished_search_climbs_further_with_more_epochs() -> None:
    world = bounded(3.5)
    short = search(Frontier(maximal_total_epochs=8), world)
    assert num_trained(short) == 8
    long = continued(short, 40, world)
    assert long.course.results[:9] == short.course.results
    assert num_trained(long) == 40
    assert u_of(returned(long).requested_rate) > u_of(returned(short).requested_rate) + 0.2
    # The polish that had ended is a trial now, whose model the next trial starts from.
    move = long.course.moves[9]
    assert move.new_optimizer
    assert move.start_from == short.stop.best


def test_fewer_epochs_than_were_used_end_at_once_with_the_same_model() -> None:
    world = bounded(3.0)
    whole = search(Frontier(maximal_total_epochs=20), world)
    fewer = Frontier(maximal_total_epochs=5)
    stop = fewer.ask(whole.states[-1])
    assert isinstance(stop, Stop)
    assert stop.best == whole.stop.best
    assert "All 20 epochs were used." in stop.reason


def test_a_search_that_has_reached_the_highest_rate_has_nothing_left_to_do() -> None:
    world = bounded(50.0)
    whole = search(Frontier(maximal_total_epochs=60), world)
    assert returned(whole).requested_rate == PROBLEM.maximal_rate
    assert num_trained(whole) < 60
    more = continued(whole, 200, world)
    assert more.course.moves == whole.course.moves
    assert more.stop == whole.stop
