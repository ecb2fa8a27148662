"""Scores per example of metrics that count pairs of target and predicted label: F1, IoU, kappa, macro accuracy, ..."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification.stat_scores import BinaryStatScores, MulticlassStatScores, MultilabelStatScores
from torchmetrics.segmentation import DiceScore
from torchmetrics.utilities.compute import normalize_logits_if_needed

from kedro_aat.training.callables import Evaluation, Linearization
from kedro_aat.training.scoring.linearization.gradient import value_and_gradients
from kedro_aat.training.scoring.linearization.labels import classes_of
from kedro_aat.training.scoring.linearization.reproduction import agrees, effective_number
from kedro_aat.training.scoring.linearization.waiting import Waiting

# Cells of a table. 4,096 classes have so many; a larger table takes more memory than most models.
MAX_CELLS = 2**24
# Counts that are held at once while the pixels of images are counted.
MAX_COUNTS = 2**22

_STATES = ("tp", "fp", "tn", "fn")

# Metrics, and how they average labels, that are means over examples of shares of right or of wrong labels.
_MEANS = {
    ("MulticlassAccuracy", "weighted"),
    ("MulticlassRecall", "weighted"),
    ("MulticlassHammingDistance", "micro"),
    ("MulticlassHammingDistance", "weighted"),
    ("MulticlassSpecificity", "micro"),
    ("BinaryHammingDistance", None),
    ("MultilabelAccuracy", "macro"),
    ("MultilabelAccuracy", "micro"),
    ("MultilabelHammingDistance", "macro"),
    ("MultilabelHammingDistance", "micro"),
}
# Digits of such scores that are not due to rounding.
DIGITS = 12


class Table:
    """A metric that is a function of a table of counts, with a row per target label and a column per predicted one.

    An example adds to cells of the table: one cell if it has one label, as many as it has labels if it has several,
    those of all pixels if it is an image. So its influence is the sum of the metric's derivatives by these cells, and
    one derivative of `compute` by the table gives all influences.

    Rows and columns are classes; if labels are independent of each other, each has its own two rows, and the columns
    are 0 and 1.

    Args:
        metric: A metric that `suits` accepts.
        num_examples: Number of examples, N.
    """

    def __init__(self, metric: Any, num_examples: int) -> None:
        self._num_examples = num_examples
        self._metric = metric.clone()
        self._metric.reset()
        self._has_classes = _has_classes(metric)
        if self._has_classes:
            self._num_rows = self._num_columns = int(metric.num_classes)
        else:
            self._num_rows, self._num_columns = 2 * int(getattr(metric, "num_labels", 1)), 2
        self._waiting = Waiting(self._count)
        self._num_seen = 0
        # For each chunk the number of the example, the cell, and how often the example is in the cell.
        self._entries: list[tuple[Tensor, Tensor, Tensor]] = []
        self._sums_of_squares: Tensor | None = None  # of the examples' counts in each row and each column

    @staticmethod
    def suits(metric: Any) -> bool:
        """Whether the metric counts pairs of labels, over all examples together, and is a single number."""
        if isinstance(metric, DiceScore):
            return metric.aggregation_level == "global" and metric.average != "none" and metric.include_background
        states = set(metric._defaults)
        is_known = isinstance(metric, BinaryStatScores | MulticlassStatScores | MultilabelStatScores)
        if not (is_known and states == set(_STATES)) and not (states == {"confmat"} and _label_kind(metric)):
            return False
        if getattr(metric, "multidim_average", "global") != "global" or getattr(metric, "thresholds", None) is not None:
            return False
        if getattr(metric, "average", "macro") in (None, "none") or getattr(metric, "normalize", None) is not None:
            return False
        if not _has_classes(metric):
            return True
        return metric.num_classes is not None and metric.num_classes**2 <= MAX_CELLS

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Adds a batch of outputs (B, ...) and targets (B, ...)."""
        if not self._has_classes:
            # Whether outputs are logits is decided for each batch.
            outputs = normalize_logits_if_needed(outputs, "sigmoid") if outputs.is_floating_point() else outputs
        self._waiting.add(outputs, targets)

    def _count(self, outputs: Tensor, targets: Tensor) -> None:
        if self._has_classes:
            predicted, labels = classes_of(self._metric, outputs, targets)
            cells = labels * self._num_columns + predicted
        else:
            predicted, labels = outputs > self._metric.threshold, targets.long()
            num_labels = self._num_rows // 2
            if num_labels > 1:  # (B, L, ...) to (B, ..., L)
                predicted, labels = predicted.movedim(1, -1), labels.movedim(1, -1)
            cells = (2 * torch.arange(num_labels, device=labels.device) + labels) * 2 + predicted
        cells = cells.reshape(len(cells), -1)  # (B, E)
        if (ignored := getattr(self._metric, "ignore_index", None)) is not None:
            cells = torch.where(labels.reshape(len(cells), -1) == ignored, -1, cells)
        if cells.shape[1] == 1:
            self._add(torch.arange(len(cells), device=cells.device), cells.flatten(), None)
        else:
            size = max(1, MAX_COUNTS // (self._num_rows * self._num_columns))
            for first in range(0, len(cells), size):
                self._add(*self._counted(cells[first : first + size]), first=first)
        self._num_seen += len(cells)

    def _counted(self, cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Examples, cells and counts of cells (B, E) of several labels each."""
        num_cells = self._num_rows * self._num_columns
        flat = torch.arange(len(cells), device=cells.device).unsqueeze(1) * num_cells + cells
        if getattr(self._metric, "ignore_index", None) is not None:
            flat = flat[cells >= 0]
        counts = torch.bincount(flat.flatten(), minlength=len(cells) * num_cells)
        is_hit = counts.nonzero().flatten()
        return is_hit // num_cells, is_hit % num_cells, counts[is_hit]

    def _add(self, examples: Tensor, cells: Tensor, counts: Tensor | None, first: int = 0) -> None:
        if counts is None:
            if getattr(self._metric, "ignore_index", None) is not None:
                examples, cells = examples[cells >= 0], cells[cells >= 0]
            counts = torch.ones((), dtype=torch.int32, device=cells.device).expand(len(cells))
        else:
            sums = [self._sum_by(examples, lines, size, counts) for lines, size in self._lines(cells)]
            squares = torch.cat([(each.square()).sum(0) for each in sums])
            self._sums_of_squares = squares if self._sums_of_squares is None else self._sums_of_squares + squares
        examples = (examples + first + self._num_seen).to(torch.int32)
        self._entries.append((examples, cells.to(torch.int32), counts.to(torch.int32)))

    def _lines(self, cells: Tensor) -> tuple[tuple[Tensor, int], tuple[Tensor, int]]:
        """The row of each cell and the number of rows, and the same for columns; each label has its own two columns."""
        rows = cells // self._num_columns
        columns = cells % self._num_columns
        if self._has_classes:
            return (rows, self._num_rows), (columns, self._num_columns)
        return (rows, self._num_rows), (rows // 2 * 2 + columns, self._num_rows)

    @staticmethod
    def _sum_by(examples: Tensor, lines: Tensor, size: int, counts: Tensor) -> Tensor:
        num_examples = int(examples.max()) + 1 if len(examples) else 0
        index = examples.long() * size + lines.long()
        return torch.bincount(index, weights=counts.double(), minlength=num_examples * size).reshape(-1, size)

    def evaluation(self, metric: Metric) -> Evaluation | None:
        """The metric with a score per example; None if they do not reproduce the metric."""
        self._waiting.flush()
        if self._num_seen != self._num_examples or not self._entries:
            return None
        examples, cells, counts = (torch.cat(parts).cpu().long() for parts in zip(*self._entries, strict=True))
        num_cells = self._num_rows * self._num_columns
        table = torch.bincount(cells, weights=counts.double(), minlength=num_cells)
        self._metric.cpu()
        found = value_and_gradients(self._metric, {"table": table}, self._states_of)
        if found is None or not self._has_state_of(metric, table):
            return None
        value, gradients, is_constant = found
        slopes = self._num_examples * gradients["table"]  # (rows * columns,), NaN where undefined

        def per_example(values: Tensor) -> Tensor:
            sums = torch.zeros(self._num_examples, dtype=torch.float64)
            return sums.index_add_(0, examples, values * counts)

        scores = value + per_example(slopes[cells])
        if not agrees(scores, metric):
            return None
        num_labels = per_example(torch.ones_like(slopes[cells]))
        is_mean = (type(metric).__name__, getattr(metric, "average", None)) in _MEANS
        if is_mean and bool((num_labels == num_labels[0]).all()):
            return Evaluation(float(scores.mean()), scores.round(decimals=DIGITS), score_range=(0.0, 1.0))
        by_row = slopes.reshape(self._num_rows, self._num_columns)
        lowest, highest = (
            value + extreme(per_example(values.flatten()[cells // self._num_columns]))
            for extreme, values in (
                (torch.min, by_row.nan_to_num(torch.inf).amin(1)),
                (torch.max, by_row.nan_to_num(-torch.inf).amax(1)),
            )
        )
        return Evaluation(
            float(scores.mean()),
            scores,
            score_range=None if is_constant else (float(lowest), float(highest)),
            is_linearized=True,
            linearization=Linearization(self._effective_examples(cells, counts)),
        )

    def _effective_examples(self, cells: Tensor, counts: Tensor) -> float:
        """Effective number of examples with that label that has the fewest, as a target or as a prediction.

        If the metric weights labels by how many there are, or counts all alike, rare ones do not matter. Otherwise a
        class that is absent has 0: the metric leaves it out, but on other examples it counts as much as any class.
        """
        if self._has_classes and getattr(self._metric, "average", "macro") in ("micro", "weighted"):
            return float(len(counts)) if self._sums_of_squares is None else float(self._num_examples)
        sums = torch.cat(
            [torch.bincount(lines, weights=counts.double(), minlength=size) for lines, size in self._lines(cells)]
        )
        squares = sums if self._sums_of_squares is None else self._sums_of_squares.cpu()
        if self._has_classes and (ignored := getattr(self._metric, "ignore_index", None)) is not None:
            is_used = (sums.reshape(2, -1).sum(0) > 0) | (torch.arange(self._num_rows) != ignored)
            sums, squares = sums[is_used.repeat(2)], squares[is_used.repeat(2)]
        return effective_number(sums, squares)

    def _has_state_of(self, metric: Metric, table: Tensor) -> bool:
        for name, state in self._states_of({"table": table}).items():
            own = getattr(metric, name)
            # A list of rows, one per example, whose sum counts.
            total = torch.cat(own).sum(0, keepdim=True) if isinstance(own, list) else own
            mine = torch.cat(state) if isinstance(state, list) else state
            if total.shape != mine.shape or not torch.equal(total.cpu().double(), mine):
                return False
        return True

    def _states_of(self, sums: dict[str, Tensor]) -> dict[str, Any]:
        """The metric's states as functions of the table, (rows * columns,)."""
        table = sums["table"]
        if self._has_classes:
            matrix = table.reshape(self._num_rows, self._num_columns)
            right, targets, predicted = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
            if isinstance(self._metric, DiceScore):
                states = {"numerator": 2 * right, "denominator": targets + predicted, "support": targets}
                return {name: [state.unsqueeze(0)] for name, state in states.items()}
            wrong = table.sum() - targets - predicted + right
            counts = (right, predicted - right, wrong, targets - right)
        else:
            matrix = table.reshape(-1, 2, 2)
            counts = (matrix[:, 1, 1], matrix[:, 0, 1], matrix[:, 0, 0], matrix[:, 1, 0])
            if len(matrix) == 1:
                matrix = matrix[0]
        if "confmat" in self._metric._defaults:
            return {"confmat": matrix}
        states = {}
        for name, count in zip(_STATES, counts, strict=True):
            shape = self._metric._defaults[name].shape
            states[name] = (count.sum() if shape.numel() == 1 else count).reshape(shape)
        return states


def _label_kind(metric: Any) -> str | None:
    """`Binary`, `Multiclass` or `Multilabel`, the first part of the names of torchmetrics' classification metrics."""
    names = [each.__name__ for each in type(metric).__mro__]
    kinds = ("Binary", "Multiclass", "Multilabel")
    return next((kind for kind in kinds if f"{kind}ConfusionMatrix" in names), None)


def _has_classes(metric: Any) -> bool:
    return isinstance(metric, MulticlassStatScores | DiceScore) or _label_kind(metric) == "Multiclass"
