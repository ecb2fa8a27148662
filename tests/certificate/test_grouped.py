"""Examples of one group depend on each other: standard errors and the test are those of groups."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta

from benchmarks.grouped_certificate import draw, is_certified, is_certified_by_examples, lower_bound
from kedro_aat.certificate import paired_standard_error
from kedro_aat.certificate.grouped import GroupedDrops, expected_of_groups, fewest_groups
from kedro_aat.errors import DataError
from tests.certificate.outcomes import outcomes


def test_groups_of_one_example_each_change_nothing() -> None:
    baseline, candidate = outcomes(200, 9, 4)
    alone = np.random.default_rng(0).permutation(200)
    assert paired_standard_error(baseline, candidate, alone) == pytest.approx(
        paired_standard_error(baseline, candidate)
    )
    assert not GroupedDrops.of(baseline - candidate, alone, 1.0).are_needed


@pytest.mark.parametrize("kind", ["equal", "skewed"])
def test_standard_error_is_the_spread_of_new_groups(kind: str) -> None:
    generator = np.random.default_rng(0)
    drawn = [draw(generator, kind, 80, "0.9", 0.1) for _ in range(400)]
    spread = np.std([drops.mean() for drops, _ in drawn])
    errors = [paired_standard_error(drops, np.zeros(len(drops)), groups) for drops, groups in drawn]
    of_examples = [paired_standard_error(drops, np.zeros(len(drops))) for drops, _ in drawn]
    assert np.mean(errors) == pytest.approx(spread, rel=0.15)
    assert np.mean(of_examples) < 0.4 * spread


def test_names_of_groups_and_order_of_examples_do_not_matter() -> None:
    generator = np.random.default_rng(0)
    drops, groups = draw(generator, "skewed", 40, "0.3", 0.1)
    order = generator.permutation(len(drops))
    named = np.array([f"patient {group}" for group in groups])
    expected = paired_standard_error(drops, 0 * drops, groups)
    assert paired_standard_error(drops[order], 0 * drops, named[order]) == pytest.approx(expected)
    expected = GroupedDrops.of(drops, groups, 1.0).p_value(0.3)
    assert GroupedDrops.of(drops[order], named[order], 1.0).p_value(0.3) == pytest.approx(expected)


@pytest.mark.parametrize("groups", [np.zeros(3), np.zeros((10, 1)), np.zeros(11)])
def test_there_is_one_group_for_each_example(groups: np.ndarray) -> None:
    with pytest.raises(DataError, match="one for each of 10 examples"):
        paired_standard_error(np.ones(10), np.ones(10), groups)


def test_groups_that_lose_nothing_count_as_so_many_examples() -> None:
    grouped = GroupedDrops.of(np.zeros(5000), np.arange(5000) // 100, 1.0)  # 50 groups
    assert (grouped.kind, grouped.holds_from, grouped.reason) == ("exact", None, None)
    for budget in (0.02, 0.06, 0.2):
        assert grouped.p_value(budget) == pytest.approx((1 - budget) ** 50, rel=1e-3)
    assert fewest_groups(0.06, 0.05) == 49


def test_a_range_of_scores_scales_with_the_budget() -> None:
    drops, groups = draw(np.random.default_rng(0), "equal", 40, "0.3", 0.02)
    expected = GroupedDrops.of(drops, groups, 1.0).p_value(0.15)
    assert GroupedDrops.of(100 * drops, groups, 100.0).p_value(15) == pytest.approx(expected)


def test_few_groups_of_different_sizes_are_not_certified() -> None:
    few = GroupedDrops.of(np.zeros(119), np.arange(119) // 2 - (np.arange(119) == 118), 1.0)
    assert (few.kind, few.holds_from) == ("asymptotic", 60)
    assert "59 groups of different sizes" in str(few.reason)
    assert GroupedDrops.of(np.zeros(119), np.arange(119) // 2, 1.0).reason is None
    assert "one group" in str(GroupedDrops.of(np.zeros(9), np.ones(9), 1.0).reason)


def test_drops_per_group_have_the_mean_and_the_spread_of_the_metric() -> None:
    drops, groups = draw(np.random.default_rng(0), "skewed", 300, "0.3", 0.1)
    per_group = GroupedDrops.of(drops, groups, 1.0).per_group()
    assert per_group.mean() == pytest.approx(drops.mean())
    spread = per_group.std(ddof=1) / np.sqrt(len(per_group))
    assert spread == pytest.approx(paired_standard_error(drops, 0 * drops, groups), rel=0.02)


def test_words_before_training_count_groups() -> None:
    words = expected_of_groups(np.arange(1000) // 20, 0.05, 0.05)
    assert "1,000 validation examples count as 50 groups" in words
    assert "fewer than about 59 groups in the test split" in words
    words = expected_of_groups([0] * 30 + [1] * 10, 0.05, 0.05)
    assert "fewer than about 89 groups whose sizes differ as much (10 to 30 examples)" in words
    assert "with equally many examples of each group, 59 may be enough" in words


# The full table is that of `benchmarks/grouped_certificate.py`.
@pytest.mark.parametrize(
    ("kind", "num_groups", "budget", "correlation"),
    [
        ("equal", 20, 0.3, "0"),
        ("equal", 20, 0.3, "whole"),
        ("equal", 60, 0.1, "0.9"),
        ("skewed", 60, 0.3, "0.3"),
        ("large", 60, 0.3, "largest"),
    ],
)
def test_level_holds_for_groups_and_not_for_their_examples(
    kind: str, num_groups: int, budget: float, correlation: str
) -> None:
    generator, runs, alpha = np.random.default_rng(0), 400, 0.05
    at_budget = [draw(generator, kind, num_groups, correlation, budget) for _ in range(runs)]
    certified = sum(is_certified(*drawn, budget, alpha) for drawn in at_budget)
    assert lower_bound(certified, runs) <= alpha
    wrong = sum(is_certified_by_examples(drops, budget, alpha) for drops, _ in at_budget)
    if correlation == "0":
        assert wrong <= 0.1 * runs
    else:
        assert beta.ppf(0.01, wrong, runs - wrong + 1) > 0.2
    twice = (draw(generator, kind, num_groups, correlation, 2 * budget) for _ in range(200))
    assert sum(is_certified(*drawn, budget, alpha) for drawn in twice) <= 1


def test_groups_that_lose_little_are_certified() -> None:
    generator = np.random.default_rng(0)
    drawn = [draw(generator, "equal", 60, "whole", 0.01) for _ in range(100)]
    assert sum(is_certified(*each, 0.1, 0.05) for each in drawn) >= 80
