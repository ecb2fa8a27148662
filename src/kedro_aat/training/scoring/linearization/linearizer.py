"""Which metrics can be linearized, and how."""

from __future__ import annotations

from torchmetrics import Metric

from kedro_aat.training.scoring.linearization.ranks import Ranks
from kedro_aat.training.scoring.linearization.sums import Sums
from kedro_aat.training.scoring.linearization.tables import Table

Linearizer = Table | Ranks | Sums


def linearizer_for(metric: Metric) -> type[Table] | type[Ranks] | type[Sums] | None:
    """What linearizes a metric; None if nothing does.

    Args:
        metric: A metric of torchmetrics.
    """
    if any(isinstance(part, Metric) for part in metric.children()):
        return None  # a metric made of others has no states of its own
    return next((kind for kind in (Table, Ranks, Sums) if kind.suits(metric)), None)
