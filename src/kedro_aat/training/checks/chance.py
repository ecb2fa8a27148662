"""What a metric is worth without looking at the input: the best of a few answers, judged by the metric itself.

No list of metrics and their chance levels is needed: accuracy finds the most frequent class, F1 of a rare class that it
pays to say yes always, AUROC one half, R2 zero, and a metric of the user's whatever it finds. Of a mean over examples,
no answer without the input is expected to be better than the best constant one. By other metrics, such as macro F1, it
may be: there, the targets of other examples are an answer, too.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from kedro_aat.training.callables import Evaluation
from kedro_aat.training.default import DefaultTraining
from kedro_aat.training.loading.settings import BatchSettings, LoaderSettings
from kedro_aat.training.scoring.scores import standard_error_of
from kedro_aat.training.settings import TrainingSettings

logger = logging.getLogger(__name__)

NUM_LABELS = 3  # of the most frequent labels, each is tried as the constant answer
MAX_SORTED = 1_000_000  # numbers that a median is computed of
ROUNDING = 1e-6  # relative
CLOSE = 5  # in standard errors
NUM_SHUFFLES = 3


class _Constant(nn.Module):
    """Gives each example the same output, (...)."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.register_buffer("output", output)

    def forward(self, inputs: Tensor) -> Tensor:
        output = self.get_buffer("output")
        return output.expand(len(inputs), *output.shape).contiguous()  # some metrics view it in another shape


class _Shuffled(nn.Module):
    """Gives each example the target of another one, whose number is its input, (B,), in the form of an output."""

    def __init__(self, targets: Tensor, output: Tensor, dim_of_classes: int | None) -> None:
        super().__init__()
        self._targets, self._output, self._dim = targets, output, dim_of_classes

    def forward(self, inputs: Tensor) -> Tensor:
        chosen = self._targets[inputs.long().to(self._targets.device)].to(inputs.device)
        if self._dim is None:
            return chosen.reshape(len(chosen), *self._output.shape).to(self._output.dtype)
        num_classes = self._output.shape[self._dim]
        one_hot = nn.functional.one_hot(chosen.long().clamp(0, num_classes - 1), num_classes)
        return one_hot.movedim(-1, self._dim + 1).to(self._output.dtype)


@dataclass(frozen=True)
class Chance:
    """An answer that ignores the input, and what the metric makes of it.

    Attributes:
        answer: The answer in words, such as "always answering class 3".
        evaluation: Its metric, with scores if the metric has them.
        output: The output of a constant answer, (...); None for another one.
    """

    answer: str
    evaluation: Evaluation
    output: Tensor | None = None

    def standard_error(self, baseline: Evaluation, settings: TrainingSettings, targets: Tensor) -> float:
        """Standard error of the difference to the baseline, in metric units; 0 if unknown.

        Args:
            baseline: The baseline's evaluation.
            settings: Settings of the training.
            targets: All targets, (N, ...).
        """
        error = _own_error(baseline)
        if self.output is None:
            return error
        compared = self.evaluation
        # Resamples take time, so the constant answer has them only where they may decide.
        is_close = abs(baseline.metric - compared.metric) < CLOSE * error
        if compared.scores is None and baseline.resampled is not None and is_close:
            compared = _evaluate(settings, _Constant(self.output), targets, resamples=True) or compared
        paired = standard_error_of(baseline, compared)
        return paired if paired is not None and math.isfinite(paired) else error


def _own_error(evaluation: Evaluation) -> float:
    """Standard error of one metric, in its units; 0 if unknown."""
    values = evaluation.resampled if evaluation.scores is None else evaluation.scores
    known = torch.zeros(0) if values is None else values[values.isfinite()].double()
    if len(known) < 2:
        return 0.0
    return float(known.std()) / (1 if evaluation.scores is None else math.sqrt(len(known)))


def is_better(metric: float, chance: float, standard_error: float, *, higher_is_better: bool) -> bool:
    """Whether a metric is better than chance by more than rounding and luck explain.

    A useless model beats a constant answer by luck in up to half of the cases, but by a standard error in 16% at most.
    A real model that does not, on these examples, cannot be told from the constant by a search either; see
    `docs/decisions/baseline-check.md` for what was measured.

    Args:
        metric: The metric.
        chance: The metric of the best answer that ignores the input.
        standard_error: Standard error of their difference, in metric units.
        higher_is_better: Direction of the metric.
    """
    gain = metric - chance if higher_is_better else chance - metric
    return gain > max(ROUNDING * max(abs(metric), abs(chance)), standard_error)


def best_chance(
    settings: TrainingSettings, targets: Tensor, mean_output: Tensor, *, higher_is_better: bool
) -> Chance | None:
    """The best constant answer.

    Args:
        settings: Settings of the training, whose metric judges.
        targets: All targets, (N, ...).
        mean_output: The model's mean output, (...).
        higher_is_better: Direction of the metric.

    Returns:
        The best answer; None if the metric can judge none, or if it is one of calibration, by which a constant answer
        may be perfect.
    """
    if "Calibration" in settings.metric_name:
        return None
    found = []
    # Pearson's correlation with a constant is undefined, and torchmetrics may compute one from rounding errors.
    for answer, output in () if "Pearson" in settings.metric_name else _constants(targets, mean_output):
        evaluation = _evaluate(settings, _Constant(output), targets)
        if evaluation is not None:
            found.append(Chance(answer, evaluation, output))
    if not any(chance.evaluation.scores is not None and not chance.evaluation.is_linearized for chance in found):
        found += _shuffled(settings, targets, mean_output)
    choose = max if higher_is_better else min
    return choose(found, key=lambda chance: chance.evaluation.metric, default=None)


def _shuffled(settings: TrainingSettings, targets: Tensor, mean_output: Tensor) -> list[Chance]:
    """The mean metric of several answers with the targets of other examples, which has less noise than one."""
    dim = _dim_of_classes(targets, mean_output)
    if dim is None and targets[0].numel() != mean_output.numel():
        return []
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(len(targets), generator=generator) for _ in range(NUM_SHUFFLES)]
    model = _Shuffled(targets, mean_output, dim)
    evaluations = [_evaluate(settings, model, targets, inputs=order) for order in orders]
    metrics = [evaluation.metric for evaluation in evaluations if evaluation is not None]
    return [Chance("answering at random", Evaluation(sum(metrics) / len(metrics)))] if metrics else []


def _evaluate(
    settings: TrainingSettings,
    model: nn.Module,
    targets: Tensor,
    *,
    inputs: Tensor | None = None,
    resamples: bool = False,
) -> Evaluation | None:
    """The metric of an answer, computed as that of a model; None if it is undefined, or if the metric refuses it."""
    plain: dict[str, object] = {
        "compile": False,
        "channels_last": False,
        "num_workers": 0,
        "step_timeout_seconds": None,
        "batch": BatchSettings(),  # one tensor each
        "loader": LoaderSettings(),
        "output": None,
        "group": None,
    }
    if not resamples:
        plain["num_bootstrap_resamples"] = 0
    data = {"inputs": torch.zeros(len(targets)) if inputs is None else inputs, "targets": targets}
    try:
        evaluation = DefaultTraining(model, settings.model_copy(update=plain), None, data).validate(model)
        metric = float(evaluation.metric)
    except Exception as error:  # a metric may refuse an output that no model would give
        logger.debug("The metric refuses an answer: %s", error)
        return None
    return replace(evaluation, metric=metric) if math.isfinite(metric) else None


def _constants(targets: Tensor, mean_output: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Constant answers in words, and as an output, (...)."""
    dim = _dim_of_classes(targets, mean_output)
    if dim is not None:
        yield from _labels(targets, mean_output, dim)
    elif targets[0].numel() == mean_output.numel():
        yield from _values(targets, mean_output)
    yield "always giving its own mean output", mean_output


def _dim_of_classes(targets: Tensor, output: Tensor) -> int | None:
    """The dimension of an output, (...), with a score for each class: the first, as in torch, or the last.

    None if the targets, (N, ...), are no labels.
    """
    shape = output.shape
    dims = {0: None, len(shape) - 1: None} if shape else {}
    found = [dim for dim in dims if shape[dim] > 1 and shape[:dim] + shape[dim + 1 :] == targets.shape[1:]]
    return found[0] if found and not _is_fractional(targets) else None


def _is_fractional(targets: Tensor) -> bool:
    return targets.is_floating_point() and bool((targets != targets.round()).any())


def _labels(targets: Tensor, mean_output: Tensor, dim: int) -> Iterator[tuple[str, Tensor]]:
    """Scores in [0, 1] that are highest for one label, then for the others by their frequency, as top-k needs it."""
    num_classes = mean_output.shape[dim]
    labels = targets.flatten().long()
    counts = labels[(labels >= 0) & (labels < num_classes)].bincount(minlength=num_classes)
    for label in counts.argsort(descending=True)[:NUM_LABELS].tolist():
        scores = counts / (2 * counts.sum().clamp(min=1))
        scores[label] = 1
        spread = scores.view([num_classes if each == dim else 1 for each in range(mean_output.dim())])
        yield f"always answering class {label}", spread.expand_as(mean_output).to(mean_output.device)


def _values(targets: Tensor, mean_output: Tensor) -> Iterator[tuple[str, Tensor]]:
    numbers = targets.reshape(len(targets), *mean_output.shape)
    some = numbers[:: 1 + numbers.numel() // MAX_SORTED]
    if bool(((some == 0) | (some == 1)).all()):
        # Right as logits and as probabilities: metrics take what lies in [0, 1] for a probability.
        yield "always answering yes", torch.ones_like(mean_output)
        yield "always answering no", -torch.ones_like(mean_output)
    elif not _is_fractional(some):
        values, counts = some.unique(return_counts=True)
        for value in values[counts.argsort(descending=True)[:NUM_LABELS]].tolist():
            yield f"always answering {value:g}", torch.full_like(mean_output, value)
    yield "always answering the mean of the targets", numbers.to(mean_output.dtype).mean(0)
    yield "always answering the median of the targets", some.to(mean_output.dtype).median(0).values
