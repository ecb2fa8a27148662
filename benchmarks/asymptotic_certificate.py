"""Measures how often the asymptotic certificate is wrong, for metrics that are functions of sums over examples.

Each row is a metric, a number of examples, the effective number of those that it depends on most (of the rarest class;
for RMSE and R2 of the largest errors), a budget, and a kind of candidate. `level` is the share of certified runs if the
true drop is exactly the budget, so that every certificate is wrong; `bound` is its lower limit of Clopper and Pearson
at 99%, and refutes the level if it exceeds alpha. `double` counts the certified ones of candidates that lose twice
their budget, and `power` is the share of certified runs if a tenth of the budget is lost. Rows without `limit` show
what the test would do with fewer effective examples than it takes.

    python benchmarks/asymptotic_certificate.py [--runs 2000] [--seed 0] [--alpha 0.05] [--metrics NAME ...]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import binomtest

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.asymptotic_candidates import (
    KINDS,
    Case,
    of_errors,
    of_images,
    of_labels,
    of_many_classes,
    of_ranks,
)
from benchmarks.table_metrics import (
    binary_f1,
    binary_precision,
    macro_accuracy,
    macro_f1,
    matthews,
    weighted_f1,
)
from kedro_aat.certificate.linearized import MIN_EFFECTIVE_EXAMPLES
from kedro_aat.certificate.p_values import p_of_mean

# Standard errors below the budget at which a mean drop is certified by no test at a level of 0.1 or less: Gaffke's
# bound is never smaller than the p-value of a t test by so much. The others are not computed.
SURELY_REFUSED = 0.9
VIOLATORS = 400
POWER_RUNS = 200


# Rarest examples of each row, and budgets in the smallest one that they could certify without a loss.
RAREST = (10, 30, 100)
BUDGETS = (1.5, 4.0)
# What (1 - drop)^N = 0.05 takes: 3 examples per budget.
EXAMPLES_PER_BUDGET = 3.0


def cases() -> Iterator[Case]:
    """All cases whose candidate can lose as much as its budget."""
    for rarest in RAREST:
        for times in BUDGETS:
            for kind in KINDS:
                for case in cases_of(kind, rarest, times * EXAMPLES_PER_BUDGET):
                    yield replace(case, is_limited=rarest > RAREST[0])


def cases_of(kind: str, rarest: int, budget: float) -> Iterator[Case]:
    """The cases of one kind of candidate.

    Args:
        kind: How the candidate loses.
        rarest: Expected number of examples of the rarest class, for errors a quarter of all.
        budget: Tolerated drop, in those that `rarest` examples lost would show.
    """
    num_examples = {10: 1000, 30: 10_000, 100: 4000}[rarest]
    share = rarest / num_examples
    two, three = np.array([1 - share, share]), np.array([0.6, 0.4 - share, share])
    yield of_labels("binary F1", binary_f1, kind, num_examples, two, 0.9, budget / rarest)
    yield of_labels("macro F1", macro_f1, kind, num_examples, three, 0.9, budget / rarest / 3)
    yield of_labels("binary precision", binary_precision, kind, num_examples, two, 0.9, budget / rarest)
    yield of_labels("Matthews", matthews, kind, num_examples, two, 0.9, budget / rarest)
    yield of_labels("weighted F1", weighted_f1, kind, num_examples, three, 0.9, budget / num_examples)
    if kind == KINDS[0] and rarest > 10:
        yield of_many_classes(100, rarest, 3 * budget / rarest / 10)
    yield of_labels("macro accuracy", macro_accuracy, kind, num_examples, three, 0.9, budget / rarest / 3)
    yield of_images(kind, 4 * rarest, 0.5, budget / rarest / 3)
    few = {10: 300, 30: 1000, 100: 500}[rarest]
    yield of_ranks("AUROC", kind, few, rarest / few, budget / rarest)
    yield of_ranks("average precision", kind, few, rarest / few, budget / rarest)
    yield of_errors("RMSE", kind, 4 * rarest, (0.5, 5.0), budget)
    yield of_errors("RMSE", kind, 4 * rarest, (2.0, 5.0), budget)
    yield of_errors("R2", kind, 4 * rarest, (0.5, 5.0), budget)


def certified(case: Case, times: float, runs: int, alpha: float, generator: np.random.Generator) -> tuple[int, float]:
    """Returns the number of certified runs, and the median effective number of examples.

    Args:
        case: Metric, examples and candidate.
        times: True drop in budgets.
        runs: Number of draws.
        alpha: Accepted probability of certifying a model that breaks its budget.
        generator: Source of random numbers.

    Raises:
        ValueError: If no such candidate loses so much.
    """
    count, effective = 0, []
    for sample in case.samples(times, runs, generator):
        effective.append(sample.effective_examples)
        if case.is_limited and sample.effective_examples < MIN_EFFECTIVE_EXAMPLES:
            continue
        drops = (sample.baseline - sample.candidate) * (1 if case.higher_is_better else -1)
        error = drops.std() / len(drops) ** 0.5
        worst = max(sample.worst_drop, float(drops.max()))
        if drops.mean() - case.budget > -SURELY_REFUSED * error or worst <= case.budget:
            continue
        # The p-value of `certify_linearized`, without its upper bound, which takes ten times longer.
        count += p_of_mean(drops, worst, case.budget) <= alpha
    return count, float(np.median(effective))


def lower_bound(count: int, runs: int) -> float:
    """Returns the lower limit of Clopper and Pearson at 99%."""
    return float(binomtest(count, runs).proportion_ci(0.98, "exact").low)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--alpha", type=float, default=0.05)
    parser.add_argument("--metrics", nargs="*", help="only these")
    arguments = parser.parse_args()
    runs, alpha, started = arguments.runs, arguments.alpha, time.perf_counter()
    columns = ("metric", "candidate", "examples", "effective", "limit", "budget", "level", "bound", "double", "power")
    table = Table(*columns, box=None)
    for number, case in enumerate(cases()):
        if arguments.metrics and case.metric not in arguments.metrics:
            continue
        generator = np.random.default_rng((arguments.seed, number))
        try:
            wrong, effective = certified(case, 1.0, runs, alpha, generator)
        except ValueError:
            continue
        try:
            double = f"{certified(case, 2.0, VIOLATORS, alpha, generator)[0]} of {VIOLATORS}"
        except ValueError:
            double = "-"
        power = certified(case, 0.1, POWER_RUNS, alpha, generator)[0] / POWER_RUNS
        bound = lower_bound(wrong, runs)
        row = [case.metric, case.candidate, f"{case.num_examples}", f"{effective:.0f}"]
        row += ["yes" if case.is_limited else "no", f"{case.budget:.3g}"]
        flag = " !" if bound > alpha else ""
        table.add_row(*row, f"{wrong / runs:.4f}", f"{bound:.4f}{flag}", double, f"{power:.2f}")
    console = Console(width=120)
    console.print(table)
    console.print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
