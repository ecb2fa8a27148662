"""Scores per example of metrics that depend on the order of the outputs: AUROC and average precision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.utilities.data import dim_zero_cat

from kedro_aat.training.callables import Evaluation, Linearization
from kedro_aat.training.scoring.linearization.reproduction import agrees

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Ranked:
    """A metric of the order of outputs, for one class against the rest.

    Attributes:
        value: The metric.
        influences: First-order influence of each example, (N,); their mean is 0.
        of_negative: Smallest and largest influence that another negative example could have.
        of_positive: The same for another positive one.
    """

    value: float
    influences: Floats
    of_negative: tuple[float, float]
    of_positive: tuple[float, float]


class Ranks:
    """AUROC or average precision, whose states are all outputs and targets.

    Args:
        metric: A metric that `suits` accepts.
        num_examples: Number of examples, N.
    """

    def __init__(self, metric: Any, num_examples: int) -> None:
        self._num_examples = num_examples
        self._is_weighted = getattr(metric, "average", "macro") == "weighted"

    @staticmethod
    def suits(metric: Any) -> bool:
        """Whether it is such a metric, of all thresholds, and a single number."""
        return (
            _kind_of(metric) is not None
            and metric.thresholds is None
            and metric.ignore_index is None
            and getattr(metric, "max_fpr", None) in (None, 1)
            and getattr(metric, "average", "macro") in ("macro", "weighted")
        )

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Adds nothing: the metric keeps all outputs and targets itself."""

    def evaluation(self, metric: Any) -> Evaluation | None:
        """The metric with a score per example; None if they do not reproduce the metric."""
        outputs = dim_zero_cat(metric.preds).cpu().numpy()  # (N,) or (N, C)
        targets = dim_zero_cat(metric.target).cpu().numpy()  # (N,) or (N, C)
        if len(outputs) != self._num_examples or len(targets) != self._num_examples or outputs.ndim > 2:
            return None
        rank = _kind_of(metric)
        assert rank is not None
        columns = outputs.reshape(self._num_examples, -1).T
        has_classes = outputs.ndim > targets.ndim
        labels = targets.reshape(self._num_examples, -1).T
        positives = [targets == number if has_classes else labels[number] == 1 for number in range(len(columns))]
        # torchmetrics leaves out classes for which the metric is undefined.
        used = [number for number, each in enumerate(positives) if 0 < each.sum() < len(each)]
        if not used:
            return None
        ranked = [rank(columns[number], positives[number]) for number in used]
        shares = np.array([positives[number].mean() for number in used])
        weights = shares / shares.sum() if self._is_weighted else np.full(len(used), 1 / len(used))
        value = float(weights @ [each.value for each in ranked])
        influences = np.zeros(self._num_examples)
        for weight, each in zip(weights, ranked, strict=True):
            influences += weight * each.influences
        if self._is_weighted:  # the weights are shares of the examples
            for number, each in zip(used, ranked, strict=True):
                influences += positives[number] * (each.value - value) / shares.sum()
        scores = torch.from_numpy(value + influences)
        if not agrees(scores, metric):
            return None
        # A class that is left out here counts on other examples.
        rarest = 0.0 if len(used) < len(columns) else self._num_examples * float(min(shares.min(), 1 - shares.max()))
        return Evaluation(
            float(scores.mean()),
            scores,
            score_range=None if self._is_weighted else _range(value, weights, ranked, has_classes),
            is_linearized=True,
            linearization=Linearization(rarest),
        )


def _range(value: float, weights: Floats, ranked: list[Ranked], has_classes: bool) -> tuple[float, float]:
    """Lowest and highest score of another example; of classes it has one, of independent labels any."""
    ends = []
    for end, extreme in ((0, min), (1, max)):
        negative = weights * [each.of_negative[end] for each in ranked]
        positive = weights * [each.of_positive[end] for each in ranked]
        if has_classes:
            influence = extreme(negative.sum() + positive - negative)
        else:
            influence = sum(map(extreme, negative, positive))
        ends.append(value + float(influence))
    return ends[0], ends[1]


@dataclass(frozen=True)
class _Groups:
    """Examples in the order of their outputs, in groups of equal outputs.

    Attributes:
        order: Numbers of the examples, by ascending output, (N,).
        is_positive: Whether they are positive, in that order, (N,).
        sizes: Examples in each group, (G,).
        positives: Positives in each group, (G,).
    """

    order: Indices
    is_positive: Flags
    sizes: Indices
    positives: Indices

    @classmethod
    def of(cls, outputs: NDArray[Any], is_positive: Flags) -> _Groups:
        if outputs.dtype == np.float32 and outputs.min() >= 0:
            # Bits of such numbers are in the order of the numbers, and integers are sorted faster than indices.
            bits = (outputs + np.float32(0)).view(np.int32).astype(np.int64)  # no negative zero
            keys = np.sort(bits << 32 | np.arange(len(outputs)))
            order, ascending = keys & 0xFFFFFFFF, keys >> 32
        else:
            order = np.argsort(outputs)
            ascending = outputs[order]
        in_order = is_positive[order]
        last = np.append(np.flatnonzero(ascending[1:] != ascending[:-1]), len(order) - 1)  # of each group
        return cls(order, in_order, np.diff(last, prepend=-1), np.diff(np.cumsum(in_order)[last], prepend=0))

    def influences(self, of_positive: Floats, of_negative: Floats) -> Floats:
        """Influences of all examples, (N,), from those in each group, (G,)."""
        found = np.empty(len(self.order))
        positive, negative = (np.repeat(values, self.sizes) for values in (of_positive, of_negative))
        found[self.order] = np.where(self.is_positive, positive, negative)
        return found


def auroc(outputs: NDArray[Any], is_positive: Flags) -> Ranked:
    """Computes the area under the ROC curve, and the influence of each example on it.

    The placement value of a positive is the share of negatives below it, of a negative the share of positives above it;
    ties count half (DeLong, DeLong and Clarke-Pearson 1988, Biometrics 44:837-845, equations 4 and 5). They come from
    one sort (Sun and Xu 2014, IEEE Signal Processing Letters 21:1389-1393).

    Args:
        outputs: One output per example, (N,).
        is_positive: Whether the example is positive, (N,); at least one is, and at least one is not.
    """
    groups = _Groups.of(outputs, is_positive)
    positives, negatives = groups.positives, groups.sizes - groups.positives
    num_negatives, num_positives = int(negatives.sum()), int(positives.sum())
    below = (np.cumsum(negatives) - 0.5 * negatives) / num_negatives
    above = (num_positives - np.cumsum(positives) + 0.5 * positives) / num_positives
    value = float(below @ positives / num_positives)
    share = num_positives / len(outputs)
    influences = groups.influences((below - value) / share, (above - value) / (1 - share))
    lowest, highest = -value, 1 - value
    return Ranked(value, influences, (lowest / (1 - share), highest / (1 - share)), (lowest / share, highest / share))


def average_precision(outputs: NDArray[Any], is_positive: Flags) -> Ranked:
    """Computes the average precision, and the influence of each example on it.

    It is the mean over the positives of the precision at their own outputs. With the share P of positives, the shares
    h(s) of examples and a(s) of positives with an output of at least s, it is E[Y a(S) / h(S)] / P; the influence is
    its derivative by the share of examples like (s, y), by the rules for a product and a quotient.

    Args:
        outputs: One output per example, (N,).
        is_positive: Whether the example is positive, (N,); at least one is.
    """
    groups = _Groups.of(outputs, is_positive)
    positives = groups.positives
    num_examples, num_positives = len(outputs), int(positives.sum())
    at_least = np.cumsum(groups.sizes[::-1])[::-1]
    positives_at_least = np.cumsum(positives[::-1])[::-1]
    precision = positives_at_least / at_least
    value = float(precision @ positives / num_positives)
    share = num_positives / num_examples
    # Among the positives at or below s, an example at s adds to h, and if it is positive to a as well.
    gain = np.cumsum(positives / at_least)
    loss = np.cumsum(positives * precision / at_least)
    of_negative = -loss / share
    of_positive = (precision - value + gain - loss) / share
    below_all = (share - value) / share
    return Ranked(
        value,
        groups.influences(of_positive, of_negative),
        (float(of_negative.min()), 0.0),
        (min(below_all, float(of_positive.min())), max(float(of_positive.max()), (1 - value + gain[-1]) / share)),
    )


def _kind_of(metric: Any) -> Callable[[NDArray[Any], Flags], Ranked] | None:
    name = type(metric).__name__
    kinds = {"AUROC": auroc, "AveragePrecision": average_precision}
    return next(
        (
            function
            for kind, function in kinds.items()
            if name in (f"Binary{kind}", f"Multiclass{kind}", f"Multilabel{kind}")
        ),
        None,
    )
