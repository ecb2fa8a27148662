"""The laws of every search policy, as a test suite to inherit.

    @pytest.mark.parametrize("policy", [MyPolicy(maximal_total_epochs=20)])
    class TestMyPolicy(PolicyContract):
        pass

`MyPolicy` is a frozen pydantic model with `kind` and `maximal_total_epochs`, and the methods of `SearchPolicy`.
"""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from kedro_aat.budget import Outcome
from kedro_aat.search.policy import Epoch, Problem, SearchPolicy, SearchState
from kedro_aat.testing.simulated_search import Course, World, search
from kedro_aat.testing.strategies import worlds

# Number of validations without training: the first, and one at each change of phase.
NUM_VALIDATIONS_ALONE = 3

laws = settings(max_examples=30, deadline=None)


def reread(policy: Any) -> Any:
    """Returns the policy as another process would read it."""
    return type(policy).model_validate_json(policy.model_dump_json())


class PolicyContract:
    """What the training loop relies on. A test class inherits it and parametrizes it with `policy`."""

    @laws
    @given(world=worlds)
    def test_state_survives_json(self, policy: Any, world: World) -> None:
        for state in search(policy, world).states:
            assert policy.load(state.model_dump_json()) == state

    @laws
    @given(world=worlds)
    def test_state_is_the_fold_of_tell_over_the_history(self, policy: Any, world: World) -> None:
        whole = search(policy, world)
        other: SearchPolicy[Any] = reread(policy)
        state = other.initial(world.problem)
        for result, expected in zip(whole.course.results, whole.states[1:], strict=True):
            state = other.tell(state, result)
            assert state == expected

    @laws
    @given(world=worlds)
    def test_asking_changes_nothing(self, policy: Any, world: World) -> None:
        asking: SearchPolicy[Any] = policy

        def look(state: SearchState, course: Course) -> None:
            before = state.model_dump_json()
            assert asking.ask(state) == asking.ask(state)
            assert state.model_dump_json() == before

        search(policy, world, look=look)

    @laws
    @given(world=worlds, data=st.data())
    def test_resumed_search_equals_one_never_interrupted(self, policy: Any, world: World, data: st.DataObject) -> None:
        whole = search(policy, world)
        number = data.draw(st.integers(0, len(whole.states) - 1), label="moves before the interruption")
        other = reread(policy)
        state = other.load(whole.states[number].model_dump_json())
        rest = search(other, world, resumed=(state, whole.course.first(number)))
        assert rest.course == whole.course
        assert rest.states == whole.states[number:]
        assert rest.stop == whole.stop

    @laws
    @given(world=worlds)
    def test_ends_within_its_epochs(self, policy: Any, world: World) -> None:
        """They are counted by what they cost, so that more of them may be trained where they are cheap."""
        allowed = policy.maximal_total_epochs
        course = search(policy, world, limit=round(allowed / (1 - world.saving)) + NUM_VALIDATIONS_ALONE + 1).course
        assert sum(result.cost for result in course.results if result.trained) <= allowed + 1e-9
        assert sum(not move.train for move in course.moves) <= NUM_VALIDATIONS_ALONE

    @laws
    @given(world=worlds)
    def test_best_is_within_budget(self, policy: Any, world: World) -> None:
        def look(state: SearchState, course: Course) -> None:
            if state.best is not None:
                named = course.results[state.best.checkpoint]
                assert named.fully_compressed
                assert not named.failed
                assert named.margin >= state.best.margin >= 0
                assert named.requested_rate == state.best.requested_rate
                assert named.achieved_rate == state.best.achieved_rate

        search(policy, world, look=look)

    @laws
    @given(world=worlds)
    def test_no_epoch_starts_from_one_that_failed(self, policy: Any, world: World) -> None:
        course = search(policy, world).course
        starts = [move.start_from for move in course.moves if move.start_from is not None]
        assert not [start for start in starts if course.results[start].failed]

    @laws
    @given(world=worlds)
    def test_stop_returns_the_best(self, policy: Any, world: World) -> None:
        whole = search(policy, world)
        best = whole.states[-1].best
        is_compressed = best is not None and best.requested_rate > 0
        if is_compressed and best.requested_rate >= world.problem.minimal_rate:
            assert whole.stop.best == best.checkpoint
        elif policy.kind != "early_exit":  # it leaves the rate to the controller's schedule
            assert whole.stop.best is None
        if whole.stop.best is None:
            assert whole.stop.outcome is Outcome.INFEASIBLE
        else:
            assert whole.stop.outcome is Outcome.WITHIN_BUDGET
            assert best is not None
            assert whole.stop.best == best.checkpoint
        assert whole.stop.reason

    @laws
    @given(world=worlds)
    def test_never_returns_a_model_below_the_minimal_rate(self, policy: Any, world: World) -> None:
        whole = search(policy, world)
        if whole.stop.best is not None and policy.kind != "early_exit":  # it leaves the rate to the schedule
            assert whole.course.results[whole.stop.best].requested_rate >= world.problem.minimal_rate

    @laws
    @given(world=worlds)
    def test_rates_are_within_the_limits(self, policy: Any, world: World) -> None:
        lowest, highest = world.problem.minimal_rate, world.problem.maximal_rate
        if world.problem.goal == "accuracy":  # lower rates may lead to the given one
            lowest = 0.0
        for move in search(policy, world).course.moves:
            if move.train:
                assert all(lowest <= rate <= highest for rate in move.rate_path or ())
            else:  # what the uncompressed model can do may be asked for as well
                assert all(rate == 0 or lowest <= rate <= highest for rate in move.rate_path or ())

    @laws
    @given(world=worlds)
    def test_checkpoints_to_start_from_are_among_those_needed(self, policy: Any, world: World) -> None:
        asking: SearchPolicy[Any] = policy
        needed_before = optimizers_before = frozenset[int]()

        def look(state: SearchState, course: Course) -> None:
            nonlocal needed_before, optimizers_before
            latest = {result.checkpoint for result in course.results[-1:]}
            # A checkpoint that was not needed may have been removed, so it must not be needed again.
            assert state.needed <= needed_before | latest
            assert state.needed_optimizers <= (optimizers_before | latest) & state.needed
            move = asking.ask(state)
            if isinstance(move, Epoch) and move.start_from is not None:
                assert move.start_from in state.needed
                assert move.new_optimizer or move.start_from in state.needed_optimizers
            needed_before, optimizers_before = state.needed, state.needed_optimizers

        whole = search(policy, world, look=look)
        assert whole.stop.best is None or whole.stop.best in whole.states[-1].needed

    def test_model_is_validated_before_anything_is_trained(self, policy: Any) -> None:
        asking: SearchPolicy[Any] = policy
        first = asking.ask(asking.initial(Problem()))
        assert isinstance(first, Epoch)
        assert not first.train
        assert first.rate_path is None
        assert first.start_from is None
        assert first.new_optimizer
