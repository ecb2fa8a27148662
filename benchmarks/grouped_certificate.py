"""Measures how often a certificate by groups is wrong, in simulated runs of candidates that truly break their budget.

Each example is right or wrong, and examples of one group are lost together more or less often. The columns are the
share of certified runs of candidates exactly at their budget, where each is wrong, with its 99% lower bound, which must
be at most alpha; the same for the test that takes all examples for independent; the share of certified candidates that
lose twice the budget, which must be at most 1 in 200; and the power for candidates that lose a tenth of the budget.

    python benchmarks/grouped_certificate.py [--runs 2000] [--seed 0] [--alpha 0.05]
"""

from __future__ import annotations

import argparse
import time
from functools import partial

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.stats import beta, norm

from kedro_aat.certificate.grouped import GroupedDrops
from kedro_aat.certificate.p_values import tango_score

Floats = NDArray[np.float64]

NUM_GROUPS = {"equal": (20, 30, 60, 200, 500), "skewed": (60, 200, 500), "large": (60, 200, 500)}
# Budgets that so many groups can barely certify, as a number of groups that may be lost; it takes more if sizes differ.
GROUPS_IN_BUDGET = {"equal": 6, "skewed": 18, "large": 18}
LARGEST_BUDGET = 0.3
# Correlation of two examples of a group; `whole` groups are lost or kept; of unequal ones, the largest alone are lost.
CORRELATIONS = ("0", "0.3", "0.9", "whole", "largest")
SIZES = ("equal", "skewed", "large")
SHARE_WON = 0.01


def draw_sizes(generator: np.random.Generator, kind: str, num_groups: int) -> NDArray[np.int64]:
    """Draws numbers of examples, (G,): 20, log-normal around 18, or 100 in one of ten groups and else 10."""
    if kind == "equal":
        return np.full(num_groups, 20)
    if kind == "skewed":
        return np.maximum(np.round(18 * np.exp(generator.normal(0, 0.5, num_groups))), 1).astype(np.int64)
    return np.where(generator.random(num_groups) < 0.1, 100, 10)


def draw(
    generator: np.random.Generator, kind: str, num_groups: int, correlation: str, drop: float
) -> tuple[Floats, NDArray[np.int64]]:
    """Draws the drops of all examples, each -1, 0 or 1, and their groups, (N,) each.

    Args:
        generator: Source of random numbers.
        kind: Kind of sizes.
        num_groups: Number of groups.
        correlation: How examples of a group depend on each other.
        drop: True drop.
    """
    sizes = draw_sizes(generator, kind, num_groups)
    groups = np.repeat(np.arange(num_groups), sizes)
    if correlation == "whole":
        return (generator.random(num_groups) < drop)[groups].astype(np.float64), groups
    if correlation == "largest":  # 100 of 19 examples in the mean of all groups, so 0.526 of all examples
        lost = (sizes == 100) & (generator.random(num_groups) < drop / (10 / 19))
        return lost[groups].astype(np.float64), groups
    share = np.full(num_groups, drop + SHARE_WON)
    if (within := float(correlation)) > 0:
        strength = (1 - within) / within
        share = generator.beta(share * strength, (1 - share) * strength)
    lost = generator.random(len(groups)) < share[groups]
    return lost.astype(np.float64) - (generator.random(len(groups)) < SHARE_WON), groups


def is_certified(drops: Floats, groups: NDArray[np.int64], budget: float, alpha: float) -> bool:
    """Whether the test by groups certifies; what exceeds the budget on average has a p-value of at least 1 / e."""
    grouped = GroupedDrops.of(drops, groups, 1.0)
    worst = grouped.sizes.max() * (1 - budget)
    if (grouped.sums - budget * grouped.sizes).sum() + worst >= 0:
        return False
    return grouped.reason is None and grouped.p_value(budget) <= alpha


def is_certified_by_examples(drops: Floats, budget: float, alpha: float) -> bool:
    """Whether Tango's test, which the exact one follows closely, certifies examples taken for independent."""
    lost, won = (drops > 0).sum(), (drops < 0).sum()
    return bool(tango_score(lost, won, len(drops), budget) <= norm.ppf(alpha))


def lower_bound(certified: int, runs: int) -> float:
    """The 99% lower bound of a share (Clopper and Pearson)."""
    return float(beta.ppf(0.01, certified, runs - certified + 1)) if certified else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--alpha", type=float, default=0.05)
    arguments = parser.parse_args()
    runs, alpha = arguments.runs, arguments.alpha
    started = time.perf_counter()
    columns = ("sizes", "groups", "budget", "correlation", "at budget", "bound", "as examples", "twice", "power")
    table = Table(*columns, box=None)
    for kind in SIZES:
        for num_groups in NUM_GROUPS[kind]:
            budget = min(GROUPS_IN_BUDGET[kind] / num_groups, LARGEST_BUDGET)
            for correlation in CORRELATIONS if kind == "large" else CORRELATIONS[:-1]:
                generator = np.random.default_rng([arguments.seed, num_groups])
                drawn = partial(draw, generator, kind, num_groups, correlation)
                at_budget, twice, few = (
                    sum(is_certified(*drawn(times * budget), budget, alpha) for _ in range(runs))
                    for times in (1.0, 2.0, 0.1)
                )
                wrong = sum(is_certified_by_examples(drawn(budget)[0], budget, alpha) for _ in range(runs))
                shares = f"{at_budget / runs:.4f}", f"{lower_bound(at_budget, runs):.4f}", f"{wrong / runs:.3f}"
                more = f"{twice / runs:.4f}", f"{few / runs:.3f}"
                table.add_row(kind, str(num_groups), f"{budget:.3g}", correlation, *shares, *more)
    console = Console(width=110)
    console.print(table)
    console.print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
