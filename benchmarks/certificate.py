"""Measures how often a certificate is wrong, in simulated runs of candidates that truly break their budget.

Each row is one kind of candidate, at the boundary of its budget or beyond. It is tested once per run on freshly drawn
test examples, so every certified run is wrong. The probability of that must be at most alpha. The table shows the share
of certified runs, its 95% interval (Clopper and Pearson) and, for right-or-wrong scores, the exact probability. A
second table has the seconds that a certificate of a million examples takes.

    python benchmarks/certificate.py [--runs 2000] [--seed 0] [--alpha 0.05]
"""

from __future__ import annotations

import argparse
import math
import time

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.stats import binomtest

from kedro_aat.certificate import certify, examples_needed, power
from kedro_aat.certificate.p_values import most_lost, tail_probability, tango_score

Floats = NDArray[np.float64]

# Numbers of test examples, and a budget that they can barely certify (100 examples cannot certify 0.01).
BUDGETS = {50: 0.1, 100: 0.05, 360: 0.01, 2500: 0.01, 200_000: 1e-4}
# True drops of the candidates, in budgets.
DROPS = (1.0, 1.25, 2.0)
# Shares of examples that the candidates win.
SHARES_WON = (0.0, 0.005, 0.05)
# Number of candidates with a drop of twice their budget, with 2,500 test examples.
VIOLATORS = 200


def interval(certified: int, runs: int) -> tuple[float, float]:
    """Returns the Clopper-Pearson interval at 95%."""
    found = binomtest(certified, runs).proportion_ci(0.95, "exact")
    return float(found.low), float(found.high)


def outcomes(num_examples: int, lost: int, won: int) -> tuple[Floats, Floats]:
    """Returns scores of 0 and 1 of baseline and candidate.

    Args:
        num_examples: Number of all examples.
        lost: Number of examples on which the candidate is worse.
        won: Number of examples on which the candidate is better.
    """
    baseline, candidate = np.ones(num_examples), np.ones(num_examples)
    candidate[:lost], baseline[lost : lost + won] = 0, 0
    return baseline, candidate


class Verdicts:
    """Decides about certificates by the numbers of examples lost and won.

    The decision depends on the score only, and is monotone in it. So everything at or below the largest certified score
    is certified, and everything at or above the smallest refused one is refused; only scores in between are tested.

    Args:
        num_examples: Number of test examples.
        budget: Tolerated drop.
        alpha: Accepted probability of certifying a model that breaks its budget.
    """

    def __init__(self, num_examples: int, budget: float, alpha: float) -> None:
        self.num_examples, self.budget, self.alpha = num_examples, budget, alpha
        self.certified, self.refused = -math.inf, math.inf  # the largest and the smallest such score so far

    def __call__(self, lost: int, won: int) -> bool:
        score = float(tango_score(np.array(lost), np.array(won), self.num_examples, self.budget))
        if self.certified < score < self.refused:
            scores = outcomes(self.num_examples, lost, won)
            if certify(*scores, tolerated_drop=self.budget, alpha=self.alpha).is_certified:
                self.certified = score
            else:
                self.refused = score
        return score <= self.certified

    def probability(self, share_lost: float, share_won: float) -> float:
        """Returns the exact probability of being certified, from the outcomes certified so far."""
        if self.certified == -math.inf:
            return 0.0
        limits = most_lost(self.certified, self.num_examples, self.budget)
        return float(tail_probability(limits, share_lost, share_won)[0])


def draw(
    generator: np.random.Generator, num_examples: int, share_lost: float, share_won: float, runs: int
) -> NDArray[np.int64]:
    """Draws numbers of examples lost and won, (runs, 2).

    Args:
        generator: Source of random numbers.
        num_examples: Number of test examples.
        share_lost: True share of lost examples.
        share_won: True share of won examples.
        runs: Number of draws.
    """
    shares = [share_lost, share_won, max(0.0, 1 - share_lost - share_won)]
    return generator.multinomial(num_examples, shares, size=runs)[:, :2]


def masks(generator: np.random.Generator, num_examples: int, budget: float) -> tuple[Floats, Floats]:
    """Draws scores in [0, 1] of a candidate that loses whole examples, with a mean drop of the budget.

    Args:
        generator: Source of random numbers.
        num_examples: Number of test examples.
        budget: Tolerated drop.
    """
    baseline = generator.beta(8, 2, num_examples)
    fails = generator.random(num_examples) < budget / 0.8  # 0.8 is the mean of the baseline's scores
    return baseline, np.where(fails, 0, baseline)


def seconds(scores: tuple[Floats, Floats], alpha: float) -> float:
    """Returns the wall time of a certificate of scores between 0 and 1, with its upper bound."""
    started = time.perf_counter()
    certify(*scores, tolerated_drop=0.01, alpha=alpha, score_range=(0, 1))
    return time.perf_counter() - started


def table_of_seconds(generator: np.random.Generator, num_examples: int, alpha: float) -> Table:
    """Measures certificates of many examples: few and many lost and won ones, and scores that are all different."""
    baseline = generator.beta(8, 2, num_examples)
    noise = generator.normal(0, 0.1, num_examples)
    kinds = {
        f"{lost:,} lost, {won:,} won": outcomes(num_examples, lost, won)
        for lost, won in ((0, 0), (300, 200), (5_000, 3_000), (100_000, 95_000))
    }
    kinds["all different"] = baseline, np.clip(baseline + noise, 0, 1)
    kinds["rare failures"] = masks(generator, num_examples, 0.005)
    kinds["no differences"] = baseline, baseline
    table = Table(f"scores of {num_examples:,} examples", "seconds", box=None)
    for kind, scores in kinds.items():
        table.add_row(kind, f"{seconds(scores, alpha):.2f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--alpha", type=float, default=0.05)
    arguments = parser.parse_args()
    runs, alpha = arguments.runs, arguments.alpha
    generator = np.random.default_rng(arguments.seed)
    started = time.perf_counter()
    table = Table("scores", "examples", "budget", "drop", "won", "certified", "share", "interval", "exact", box=None)
    total = total_runs = 0
    violators = 0

    def add(
        kind: str, examples: int, drops: tuple[float, float], won: str, certified: int, exact: str, runs: int
    ) -> None:
        low, high = interval(certified, runs)
        share = f"{certified / runs:.4f}"
        budget, drop = drops
        table.add_row(
            kind, str(examples), f"{budget:g}", f"{drop:g}", won, str(certified), share, f"{low:.4f}-{high:.4f}", exact
        )

    for num_examples, budget in BUDGETS.items():
        verdicts = Verdicts(num_examples, budget, alpha)
        for drop in (times * budget for times in DROPS):
            for share_won in SHARES_WON:
                drawn = draw(generator, num_examples, drop + share_won, share_won, runs)
                certified = sum(verdicts(int(lost), int(won)) for lost, won in drawn)
                exact = f"{verdicts.probability(drop + share_won, share_won):.4f}"
                add("0 or 1", num_examples, (budget, drop), f"{share_won:g}", certified, exact, runs)
                total, total_runs = total + certified, total_runs + runs
        if num_examples == 2500:
            planted = draw(generator, num_examples, 2 * budget + 0.005, 0.005, VIOLATORS)
            violators = sum(verdicts(int(lost), int(won)) for lost, won in planted)
    few = min(runs, 500)  # these are computed for every run, which takes longer
    for num_examples, budget in ((100, 0.05), (360, 0.01)):
        certified = sum(
            certify(
                *masks(generator, num_examples, budget), tolerated_drop=budget, alpha=alpha, score_range=(0, 1)
            ).is_certified
            for _ in range(few)
        )
        add("masks", num_examples, (budget, budget), "-", certified, "-", few)
        total, total_runs = total + certified, total_runs + few
    console = Console(width=100)
    console.print(table)
    seconds((np.ones(2), np.ones(2)), alpha)  # imports take time, too
    console.print(table_of_seconds(generator, 1_000_000, alpha))
    low, high = interval(total, total_runs)
    console.print(
        f"certified and truly violating, all {total_runs} runs: {total / total_runs:.4f} ({low:.4f}-{high:.4f})"
    )
    console.print(f"planted violators of twice the budget at 2500 examples: {violators} of {VIOLATORS} certified")
    for examples in (360, 2500):
        reached = power(examples, 0.003, 0.02, 0.01, alpha)
        console.print(f"power of {examples} examples, true drop 0.003, discordance 0.02, budget 0.01: {reached:.2f}")
    console.print(f"examples for a power of 0.8: {examples_needed(0.003, 0.02, 0.01, alpha=alpha)}")
    console.print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
