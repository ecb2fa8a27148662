"""Hypothesis strategies: rates, metrics, budgets, search problems and simulated worlds."""

from __future__ import annotations

from hypothesis import strategies as st

from kedro_aat.budget import Budget
from kedro_aat.search.policy import Goal, Problem
from kedro_aat.search.tactics import Ranking
from kedro_aat.testing.simulated_search import Answer, World

# Rates in [0, 1): some as people write them, and some as controllers measure them.
rates = st.integers(0, 99).map(lambda percent: percent / 100) | st.floats(1e-6, 0.999)
# Metrics, baselines and margins: finite, of any sign, fractions and percentages.
metrics = st.floats(-200, 200) | st.floats(-1, 1)
drops = st.floats(0, 100) | st.floats(0, 1)


RANKINGS = (
    Ranking(importance="l2", ranking="local"),
    Ranking(importance="l2", ranking="global"),
    Ranking(importance="taylor", ranking="global"),
)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Search problems, some of which have a minimal rate or a given one, and some a choice of tactics."""
    lowest, highest = sorted((draw(rates), draw(rates)))
    goal: Goal = draw(st.sampled_from(["size", "size", "accuracy"]))
    return Problem(
        goal=goal,
        minimal_rate=highest if goal == "accuracy" else draw(st.just(0.0) | st.just(lowest)),
        maximal_rate=highest,
        initial_rate=draw(rates),
        tolerated_drop=draw(drops),
        first_target_rate=draw(st.just(0.5) | rates),
        regrows=draw(st.booleans()),
        rankings=draw(st.sampled_from([(), RANKINGS])),
        can_sample=draw(st.booleans()),
        can_distill=draw(st.booleans()),
    )


answers = st.builds(
    Answer,
    margin=st.sampled_from([0.01, -0.01, 0.0]) | metrics,
    achieved_offset=st.sampled_from([0.0, 0.0, 0.0, -0.02, 0.001]),
    scheduled_increment=st.sampled_from([0.0, 0.0, 0.05]),
    fully_compressed=st.sampled_from([True, True, True, False]),
    early_stop=st.sampled_from([False, False, False, True]),
    fails=st.sampled_from([False, False, False, False, True]),
    standard_error=st.sampled_from([None, None, 0.001]),
)

worlds = st.builds(
    World,
    problem=problems(),
    answers=st.lists(answers, min_size=1, max_size=12).map(tuple),
    granularity=st.none() | st.just(8),
    feasible_up_to=st.none() | st.floats(0, 1),
    saving=st.sampled_from([0.0, 0.0, 0.9]),
)


@st.composite
def budgets(draw: st.DrawFn) -> Budget:
    """Accuracy budgets in either direction."""
    return Budget(baseline=draw(metrics), drop=draw(drops), higher_is_better=draw(st.booleans()))
