"""The test of examples that depend on each other within groups: frames of one patient, windows of one series.

A thousand frames of ten patients say about new patients what ten examples say. So groups are counted, not examples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kedro_aat.certificate.p_values import p_of_mean
from kedro_aat.certificate.paired_scores import numbered

# Groups of different sizes from which the level holds by simulation (`benchmarks/grouped_certificate.py`): where a
# tenth of all groups are large, a split of 60 lacks them in 0.2% of all draws, and one of 30 in 4%, whatever they lose.
MIN_UNEQUAL_GROUPS = 60

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class GroupedDrops:
    """The drops of a test split, added up by group.

    The metric is the sum of all scores divided by the number of examples, so the true drop is E[S] / E[m], where S is
    the sum of the drops in a group and m its number of examples. It is at least `d` exactly if E[S - d m] is at least
    0: a hypothesis about the mean over independent groups, which `p_of_mean` tests. Right or wrong scores are not
    counted one by one, since a group can lose any number of them.

    The worst group that was not drawn is taken to be as large as the largest one that was, with all its examples lost.
    So the level holds without limits if all groups are equally large. Otherwise it holds from `MIN_UNEQUAL_GROUPS` on,
    if groups as large as the largest are not rarer than one in ten: no test can know of a kind that it never saw.

    Attributes:
        sums: Sum of the drops in each group, (G,).
        sizes: Number of examples in each group, (G,).
        width: Largest possible drop of an example.
    """

    sums: Floats
    sizes: Floats
    width: float

    @classmethod
    def of(cls, drops: Floats, groups: ArrayLike, width: float) -> GroupedDrops:
        """Adds up the drops by group.

        Args:
            drops: One drop per example, (N,).
            groups: The group of each example, as numbers or texts, (N,).
            width: Largest possible drop of an example.

        Raises:
            DataError: If there is not one group for each example.
        """
        numbers = numbered(groups, len(drops))
        sums, sizes = (np.bincount(numbers, weights=weights).astype(np.float64) for weights in (drops, None))
        return cls(sums, sizes, width)

    @property
    def are_needed(self) -> bool:
        """Whether a group has several examples; otherwise the tests for single examples have more power."""
        return bool(self.sizes.max() > 1)

    @property
    def kind(self) -> Literal["exact", "asymptotic"]:
        """Whether the level of the test holds for any number of groups, or from `holds_from` on."""
        return "exact" if self.sizes.min() == self.sizes.max() else "asymptotic"

    @property
    def holds_from(self) -> int | None:
        """Number of groups from which the level holds; None if it always does."""
        return None if self.kind == "exact" else MIN_UNEQUAL_GROUPS

    @property
    def reason(self) -> str | None:
        """Why there is no certificate, whatever the scores; None if there may be one."""
        if len(self.sizes) >= (self.holds_from or 2):
            return None
        if self.kind == "exact":
            return "all test examples belong to one group, and a certificate is about new groups: add others"
        return (
            f"the test split has {len(self.sizes)} groups of different sizes, and the level of the test is known from "
            f"{MIN_UNEQUAL_GROUPS} on: add groups, or take equally many examples of each"
        )

    def p_value(self, drop: float) -> float:
        """The p-value of the hypothesis that the true drop is at least `drop`, which is below `width`."""
        return p_of_mean(self.sums - drop * self.sizes, float(self.sizes.max()) * (self.width - drop), 0.0)

    def per_group(self) -> Floats:
        """One drop per group, (G,), whose mean is the drop of all examples, and which vary as the groups vary.

        They are the mean drop plus the influence of each group on it, so that a test of independent examples tests
        groups of any size.
        """
        mean = self.sums.sum() / self.sizes.sum()
        return np.asarray(mean + (self.sums - mean * self.sizes) / self.sizes.mean())


def fewest_groups(tolerated_drop: float, alpha: float) -> int:
    """Computes how many groups of equal sizes it takes to certify a model that loses nothing: (1 - drop)^G = alpha.

    Args:
        tolerated_drop: The budget, as a share of the range of the scores, in (0, 1).
        alpha: Level of the test.
    """
    return math.ceil(math.log(alpha) / math.log1p(-tolerated_drop))


def expected_of_groups(groups: ArrayLike, tolerated_drop: float, alpha: float) -> str:
    """Says before training what a certificate by groups takes.

    Args:
        groups: The group of each validation example, (N,).
        tolerated_drop: The budget, as a share of the range of the scores, in (0, 1).
        alpha: Level of the test.
    """
    sizes = np.unique(np.asarray(groups), return_counts=True)[1]
    fewest = fewest_groups(tolerated_drop * float(sizes.mean() / sizes.max()), alpha)
    differ, advice = "", ""
    if sizes.min() < sizes.max():
        fewest = max(fewest, MIN_UNEQUAL_GROUPS)
        differ = f" whose sizes differ as much ({sizes.min():,} to {sizes.max():,} examples)"
        advice = f"; with equally many examples of each group, {fewest_groups(tolerated_drop, alpha):,} may be enough"
    return (
        f"The {sizes.sum():,} validation examples count as {len(sizes):,} groups, because examples of one group may be "
        f"lost together. With fewer than about {fewest:,} groups{differ} in the test split, no model is certified, "
        f"however many examples they have{advice}."
    )
