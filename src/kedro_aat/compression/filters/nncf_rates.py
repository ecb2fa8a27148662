"""What a pruning rate means in NNCF 2.x: the share of filters of every group of layers that are pruned together.

`NncfRates` counts units of groups; the functions below it count filters. The numbers are those of NNCF 2.19.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from kedro_aat.compression.filters.groups import ChannelGroup
from kedro_aat.compression.settings import FilterPruning
from kedro_aat.errors import ModelError

logger = logging.getLogger(__name__)

# NNCF looks for the share of filters that reaches a share of MACs by bisection, until it knows it to this precision.
_SHARE_PRECISION = 0.01
# Largest share of a group's filters that it removes one by one, if the MACs decide (`all_weights`).
_LARGEST_SHARE = 0.9
_TOLERANCE = 1e-9  # of a rate

# Filters or units removed from each group -> removed share of the model's MACs.
MacsShare = Callable[[NDArray[np.int64]], float]


class NncfRates:
    """Turns rates into numbers of units that each group loses.

    Args:
        groups: All groups of units.
        settings: Settings of filter pruning, whose `rate_meaning` is `nncf`.
        macs: Units removed from each group -> removed share of the model's MACs.
    """

    def __init__(self, groups: Sequence[ChannelGroup], settings: FilterPruning, macs: MacsShare) -> None:
        self._settings = settings
        self._per_unit = np.array([group.filters_per_unit for group in groups], dtype=np.int64)
        self._num_units = np.array([group.num_units for group in groups], dtype=np.int64)
        self._num_layers = np.array([len({member.layer for member in group.producers}) for group in groups])
        self._macs = macs
        self._num_filters = [int(number) for number in self._num_units * self._per_unit]
        self._round_to = [_filters_in_step(group, settings.round_to) for group in groups]
        if settings.ranking == "local" and (np.array(self._num_filters) <= np.array(self._round_to)).all():
            logger.warning(
                "No filter will be removed at any rate: %d or a multiple of it remain in each layer, and none that can "
                "be cut has more. Use wider layers, or all_weights.",
                settings.round_to,
            )

    @property
    def maximal(self) -> float:
        """Highest rate, in (0, 1]; as NNCF counts it, with no filter left in the layers that lose some."""
        if self._settings.rate_of == "filters":
            return 1.0
        if self._settings.ranking == "local":
            return self._macs(self._num_units)
        return self._macs_of_filters(most_of_each(self._num_filters))

    def share(self, units: NDArray[np.int64]) -> float:
        """Removed share of the filters of all layers that can lose some.

        Args:
            units: (groups,) units removed from each group.
        """
        lost = (units * self._per_unit * self._num_layers).sum()
        return float(lost / (self._num_units * self._per_unit * self._num_layers).sum())

    def units(self, scores: Sequence[NDArray[np.float32]], rate: float, ranking: str) -> NDArray[np.int64]:
        """Units that each group loses; its last unit stays, where NNCF can remove a whole layer.

        Args:
            scores: (units,) importance for each group.
            rate: Rate in (0, 1).
            ranking: `local` or `global`.

        Returns:
            (groups,)

        Raises:
            ModelError: If all that may be removed one by one has not so many MACs.
        """
        round_to, by_macs = self._round_to, self._settings.rate_of == "macs"
        if ranking == "local":
            share = share_for_macs(self._num_filters, rate, round_to, self._macs_of_filters) if by_macs else rate
            removed = removed_of_each(self._num_filters, share, round_to)
        else:
            per_filter = [np.repeat(score, number) for score, number in zip(scores, self._per_unit, strict=True)]
            if not by_macs:
                removed = removed_of_all(per_filter, rate)
            else:
                found = removed_one_by_one(per_filter, rate, self._macs_of_filters)
                if found is None and rate <= self.maximal + _TOLERANCE:  # more than that rate cannot go, but as much
                    found = most_of_each(self._num_filters)
                if found is None:
                    raise ModelError(
                        f"{rate:.4f} of the MACs cannot be removed: with all_weights, at most {self.maximal:.4f} can."
                    )
                removed = found
        lost: NDArray[np.int64] = np.minimum(removed // self._per_unit, self._num_units - 1)
        return lost

    def _macs_of_filters(self, removed: NDArray[np.int64]) -> float:
        return self._macs(removed // self._per_unit)


def _filters_in_step(group: ChannelGroup, round_to: int) -> int:
    """Smallest number of the group's filters that is a multiple of `round_to` in each layer that makes them.

    The layers of a channel shuffle have unlike parts of the same units.
    """
    widths = {member.indices.shape[1] for member in group.producers}
    return group.filters_per_unit * math.lcm(*(round_to // math.gcd(round_to, width) for width in widths))


def removed_of_each(num_filters: Sequence[int], share: float, round_to: Sequence[int]) -> NDArray[np.int64]:
    """Filters that each group loses if a share of them is removed; the number that remains is rounded up.

    Args:
        num_filters: Filters of each group.
        share: Share to remove, in [0, 1].
        round_to: What the number of remaining filters of each group is a multiple of, unless the group has fewer.

    Returns:
        (groups,); all filters of a group only if the share is 1.
    """
    kept = [
        math.ceil((number - number * share) / step) * step for number, step in zip(num_filters, round_to, strict=True)
    ]
    return np.maximum(np.array(num_filters, dtype=np.int64) - np.array(kept, dtype=np.int64), 0)


def most_of_each(num_filters: Sequence[int]) -> NDArray[np.int64]:
    """Filters that each group may lose if they are removed one by one: nine tenths of them.

    Args:
        num_filters: Filters of each group.

    Returns:
        (groups,)
    """
    return np.array([math.floor(number * _LARGEST_SHARE) for number in num_filters], dtype=np.int64)


def share_for_macs(num_filters: Sequence[int], rate: float, round_to: Sequence[int], macs: MacsShare) -> float:
    """The share of filters to remove from every group, so that at least this share of the MACs goes.

    Args:
        num_filters: Filters of each group.
        rate: Share of the model's MACs to remove, in [0, 1).
        round_to: As in `removed_of_each`.
        macs: The share of the MACs that goes with filters.

    Returns:
        A share in (0, 1], at most 0.01 above the smallest one.
    """
    low, high = 0.0, 1.0
    while high - low > _SHARE_PRECISION:
        middle = (low + high) / 2
        is_enough = macs(removed_of_each(num_filters, middle, round_to)) > rate
        low, high = (low, middle) if is_enough else (middle, high)
    return high


def removed_of_all(scores: Sequence[NDArray[np.float32]], share: float) -> NDArray[np.int64]:
    """Filters that each group loses if the least important ones of all groups are removed, without rounding.

    Args:
        scores: (filters,) importance of each filter, for each group.
        share: Share of all filters to remove, in [0, 1).

    Returns:
        (groups,); a group can lose all of its filters.
    """
    flat = np.sort(np.concatenate(scores))
    threshold = flat[int(share * len(flat))]
    return np.array([np.count_nonzero(score < threshold) for score in scores], dtype=np.int64)


def removed_one_by_one(scores: Sequence[NDArray[np.float32]], rate: float, macs: MacsShare) -> NDArray[np.int64] | None:
    """Filters that each group loses if the least important ones are removed until more than a share of the MACs goes.

    No group loses more than nine tenths of its filters.

    Args:
        scores: (filters,) importance of each filter, for each group.
        rate: Share of the model's MACs to remove, in [0, 1).
        macs: The share of the MACs that goes with filters.

    Returns:
        (groups,), or None if all that may be removed is not enough.
    """
    order = np.argsort(np.concatenate(scores), kind="stable")
    groups = np.repeat(np.arange(len(scores)), [len(score) for score in scores])[order]
    ranks = np.empty(len(groups), dtype=np.int64)  # the how-manieth filter of its group each one is
    for number in range(len(scores)):
        ranks[groups == number] = np.arange(len(scores[number]))
    most = most_of_each([len(score) for score in scores])
    groups = groups[ranks < most[groups]]

    def removed(count: int) -> NDArray[np.int64]:
        return np.bincount(groups[:count], minlength=len(scores)).astype(np.int64)

    low, high = 1, len(groups) + 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if middle > len(groups) or macs(removed(middle)) > rate else (middle + 1, high)
    return removed(low) if low <= len(groups) else None
