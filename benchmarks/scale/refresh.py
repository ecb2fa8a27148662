"""A new rate of a model with 100 million weights: ranking them, and replacing masks and weights."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import nn

from benchmarks.scale.bars import Row
from benchmarks.scale.meter import cost_of
from kedro_aat.compression.build import build_controller
from kedro_aat.compression.own_buffers import mask_hash
from kedro_aat.compression.settings import Importance, MagnitudeSparsity
from kedro_aat.search.tactics import Ranking

# Like the default of a search, and like NNCF's loops, whose weights get their values back.
_KINDS: tuple[tuple[Importance, bool], ...] = (("abs", True), ("lamp", True), ("lamp", False))


def rows(size: float) -> Iterator[Row]:
    """Measures a perceptron with five layers.

    Args:
        size: In 100 million weights.
    """
    width = round((size * 1e8 / 5) ** 0.5)
    weights = 5 * width**2 * 4
    for importance, forgets in _KINDS:
        model = nn.Sequential(*(nn.Linear(width, width) for _ in range(5)))
        controller = build_controller(model, MagnitudeSparsity(importance=importance))
        controller.disable_scheduler()
        if forgets:
            controller.rank_by(Ranking(importance=importance, ranking="global"))
        name = f"{importance}, weights come back {'as zeros' if forgets else 'with their values'}"
        for what, rate, is_bar in (("rate 0 again", 0.0, False), ("first rate", 0.5, False), ("next rate", 0.8, True)):
            seconds, peak = cost_of(partial(setattr, controller, "compression_rate", rate))
            yield Row(f"{name}: {what}", seconds, "s CPU", 1.5 if is_bar else None)
            yield Row(f"{name}: {what}, peak above the start", peak / weights, "x weights", 0.5 if is_bar else None)
        seconds, _ = cost_of(partial(mask_hash, model))
        yield Row(f"{name}: hash of the masks", seconds, "s CPU")
