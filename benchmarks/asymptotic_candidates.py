"""Simulated candidates whose true drop of a metric is known exactly, with the linearized scores of drawn examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import norm

from benchmarks.table_metrics import TableMetric, mean_iou, slopes_of
from kedro_aat.training.scoring.linearization.ranks import auroc, average_precision

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """Linearized scores of both models on drawn examples, and what the certificate needs beside them."""

    baseline: Floats
    candidate: Floats
    worst_drop: float
    effective_examples: float


@dataclass(frozen=True)
class Case:
    """A metric, a number of examples, and a candidate.

    Attributes:
        metric: Name of the metric.
        candidate: How the candidate loses.
        num_examples: Number of drawn examples.
        budget: Tolerated drop.
        samples: From the true drop in budgets, the number of runs and a generator to that many samples.
        higher_is_better: Direction of the metric.
        is_limited: Whether draws with too few effective examples get no certificate, as they should.
    """

    metric: str
    candidate: str
    num_examples: int
    budget: float
    samples: Callable[[float, int, np.random.Generator], Iterator[Sample]]
    higher_is_better: bool = True
    is_limited: bool = True


def of_counts(metric: TableMetric, counts: Floats) -> Sample:
    """Linearizes a metric.

    Args:
        metric: The metric.
        counts: How often each example has each triple of target, baseline's and candidate's class, (N, K, K, K).
    """
    num_examples = len(counts)
    scores, ends, effective = [], [], []
    for other in (3, 2):
        tables = counts.sum(other)  # (N, K, K)
        total = tables.sum(0)
        slopes, value = num_examples * slopes_of(metric, total), float(metric(total))
        scores.append(value + np.einsum("nij,ij->n", tables, slopes))
        targets = tables.sum(2)
        ends.append((value + (targets @ slopes.min(1)).min(), value + (targets @ slopes.max(1)).max()))
        lines = np.concatenate((targets, tables.sum(1)), axis=1)
        effective.append((lines.sum(0) ** 2 / np.maximum((lines**2).sum(0), 1e-300)).min())
    return Sample(scores[0], scores[1], ends[0][1] - ends[1][0], min(effective))


def _solved(drop: Callable[[float], float], wanted: float, highest: float = 1.0, precision: float = 1e-14) -> float:
    """Finds the strength of a candidate at which its true drop is the wanted one."""
    return float(brentq(lambda strength: drop(strength) - wanted, 0, highest, xtol=precision, rtol=1e-12))


def _lossy(kind: str, num_classes: int, strength: float) -> Floats:
    """Probabilities of the candidate's class (last axis), by target and the baseline's class, (K, K, K)."""
    same = np.broadcast_to(np.eye(num_classes), (num_classes,) * 3).copy()
    if kind == "many small":  # any class instead, which is sometimes the right one
        return (1 - strength) * same + strength / num_classes
    failed = np.zeros_like(same)
    failed[..., 0] = 1
    if kind == "rare failures":  # the most frequent class instead
        return (1 - strength) * same + strength * failed
    same[-1] = (1 - strength) * same[-1] + strength * failed[-1]  # only of the rarest class
    return same


KINDS = ("many small", "rare failures", "rare class only")


def of_labels(
    name: str, metric: TableMetric, kind: str, num_examples: int, shares: Floats, accuracy: float, budget: float
) -> Case:
    """A classifier.

    Args:
        name: Name of the metric.
        metric: The metric of a table.
        kind: How the candidate loses.
        num_examples: Number of drawn examples.
        shares: Shares of the classes, (K,), the last one the rarest.
        accuracy: Share of examples on which the baseline does not guess.
        budget: Tolerated drop.
    """
    classes = len(shares)
    confusion = (1 - accuracy) * np.broadcast_to(shares, (classes, classes)) + accuracy * np.eye(classes)
    confusion = shares[:, None] * confusion  # frequent classes are also predicted more often

    def joint(strength: float) -> Floats:
        return confusion[..., None] * _lossy(kind, classes, strength)

    def drop(strength: float) -> float:
        table = joint(strength)
        return float(metric(table.sum(2)) - metric(table.sum(1)))

    def samples(times: float, runs: int, generator: np.random.Generator) -> Iterator[Sample]:
        cells = joint(_solved(drop, times * budget)).ravel()
        triples = np.eye(classes**3).reshape(-1, classes, classes, classes)
        for counts in generator.multinomial(num_examples, cells / cells.sum(), size=runs):
            yield _of_cells(metric, counts, triples)

    return Case(name, kind, num_examples, budget, samples)


def _of_cells(metric: TableMetric, counts: NDArray[np.int64], triples: Floats) -> Sample:
    """`of_counts` for examples of one label each, from the number of examples with each triple."""
    seen = np.flatnonzero(counts)
    num_examples = int(counts.sum())
    table = (counts[:, None, None, None] * triples).sum(0)
    scores, ends, effective = [], [], []
    for other in (2, 1):
        total = table.sum(other)
        slopes, value = num_examples * slopes_of(metric, total), float(metric(total))
        each = value + np.einsum("nij,ij->n", triples[seen].sum(other + 1), slopes)
        scores.append(np.repeat(each, counts[seen]))
        is_target = total.sum(1) > 0
        ends.append((value + slopes[is_target].min(), value + slopes[is_target].max()))
        effective.append(min(total.sum(1).min(), total.sum(0).min()))
    return Sample(scores[0], scores[1], ends[0][1] - ends[1][0], float(min(effective)))


def of_many_classes(num_classes: int, per_class: int, budget: float) -> Case:
    """A classifier of many rare classes, whose errors in the linearization may add up, judged by macro IoU.

    Args:
        num_classes: Number of classes, equally frequent.
        per_class: Expected number of drawn examples of each.
        budget: Tolerated drop.
    """
    num_examples, accuracy = num_classes * per_class, 0.8

    def iou(right: float) -> float:
        """Of each class, for models that guess where they do not know; `right` is the share of right examples."""
        return right / (2 - right)

    def right(share_known: float) -> float:
        return share_known + (1 - share_known) / num_classes

    def samples(times: float, runs: int, generator: np.random.Generator) -> Iterator[Sample]:
        def drop(strength: float) -> float:
            return iou(right(accuracy)) - iou(right(accuracy * (1 - strength)))

        strength = _solved(drop, times * budget)
        for _ in range(runs):
            targets, guesses, others = generator.integers(num_classes, size=(3, num_examples))
            before = np.where(generator.random(num_examples) < accuracy, targets, guesses)
            after = np.where(generator.random(num_examples) < strength, others, before)
            scores, ends, fewest = zip(
                *(_iou_of_labels(targets, each, num_classes) for each in (before, after)), strict=True
            )
            yield Sample(scores[0], scores[1], ends[0][1] - ends[1][0], float(min(fewest)))

    return Case(f"mean IoU of {num_classes}", KINDS[0], num_examples, budget, samples)


def _iou_of_labels(
    targets: NDArray[np.int64], predicted: NDArray[np.int64], num_classes: int
) -> tuple[Floats, tuple[float, float], float]:
    """Scores, their range, and the fewest targets or predictions of a class; a table would be large."""
    counts = [np.bincount(each, minlength=num_classes) for each in (targets, predicted, targets[targets == predicted])]
    union = np.maximum(counts[0] + counts[1] - counts[2], 1e-9)
    value, scale = float((counts[2] / union).mean()), len(targets) / num_classes
    line = -counts[2] / union**2  # derivative by a class's targets, and by its predictions
    hit = 1 / union - line
    scores = value + scale * (line[targets] + line[predicted] + hit[targets] * (targets == predicted))
    ends = line.min() + np.minimum(line + hit, line.min()).min(), (line + np.maximum(line + hit, line.max())).max()
    return scores, (value + scale * ends[0], value + scale * ends[1]), float(min(counts[0].min(), counts[1].min()))


# Pixels of an image.
PIXELS = 400


def of_images(kind: str, num_examples: int, presence: float, budget: float) -> Case:
    """A segmentation into background, a frequent class, and a rare one of very different sizes.

    Args:
        kind: How the candidate loses; failures are of whole images.
        num_examples: Number of drawn images.
        presence: Share of images that have the rare class.
        budget: Tolerated drop of the mean IoU.
    """
    classes = 3
    # One image in ten is hard, for both models.
    confusions = np.full((2, classes, classes), 0.05)
    confusions[1] = 0.2
    for confusion in confusions:
        np.fill_diagonal(confusion, 1 - 2 * confusion[0, 1])
    weights = (0.9, 0.1)

    def losses(strength: float) -> list[tuple[float, Floats]]:
        """Kinds of images for the candidate: their shares, and its class by target and baseline's class."""
        if kind == "many small":
            return [(1.0, _lossy(kind, classes, strength))]
        return [(1 - strength, _lossy(kind, classes, 0.0)), (strength, _lossy(kind, classes, 1.0))]

    def drop(strength: float) -> float:
        sizes = np.array([1 - 0.3 - presence * 0.04, 0.3, presence * 0.04])
        mixed = sum(weight * each for weight, each in zip(weights, confusions, strict=True))
        lossy = sum(weight * each for weight, each in losses(strength))
        table = (sizes[:, None] * mixed)[..., None] * lossy
        return float(mean_iou(table.sum(2)) - mean_iou(table.sum(1)))

    def samples(times: float, runs: int, generator: np.random.Generator) -> Iterator[Sample]:
        kinds = losses(_solved(drop, times * budget))
        for _ in range(runs):
            common = generator.beta(2, 2, num_examples) * 0.6
            rare = (generator.random(num_examples) < presence) * generator.beta(1, 4, num_examples) * 0.2
            sizes = np.stack((1 - common - rare, common, rare), axis=1)
            targets = generator.multinomial(PIXELS, sizes)  # (N, K)
            hard = (generator.random(num_examples) < weights[1]).astype(int)
            predicted = generator.multinomial(targets, confusions[hard])  # (N, K, K)
            lost = generator.choice(len(kinds), num_examples, p=[share for share, _ in kinds])
            lossy = np.stack([each for _, each in kinds])[lost]  # (N, K, K, K)
            yield of_counts(mean_iou, generator.multinomial(predicted, lossy).astype(float))

    return Case("mean IoU", kind, num_examples, budget, samples)


# Distance of the positives' mean output, in standard deviations.
DISTANCE = 2.0
# Examples that show the true drop of the average precision, which has no formula.
MANY = 1_000_000


def _outputs(
    kind: str, strength: float, num_examples: int, share: float, generator: np.random.Generator
) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Outputs of both models, and which examples are positive, (N,) each."""
    positive = generator.random(num_examples) < share
    outputs = generator.normal(size=num_examples) + DISTANCE * positive
    chances, noise = generator.random(num_examples), generator.normal(size=num_examples)
    if kind == "many small":
        return outputs, outputs + strength * noise, positive
    fails = (chances < strength) & (positive == (kind == "rare class only"))
    return outputs, np.where(fails, 100.0 * (1 - 2 * positive), outputs), positive


def of_ranks(name: str, kind: str, num_examples: int, share: float, budget: float) -> Case:
    """A classifier whose outputs are normal.

    Args:
        name: `AUROC` or `average precision`.
        kind: `many small` adds noise; `rare failures` puts negatives at the top, `rare class only` positives at the
            bottom.
        num_examples: Number of drawn examples.
        share: Share of positives.
        budget: Tolerated drop.
    """
    rank = auroc if name == "AUROC" else average_precision

    def drop(strength: float) -> float:
        if name == "AUROC":
            value = float(norm.cdf(DISTANCE / math.sqrt(2)))
            if kind == "many small":
                return value - float(norm.cdf(DISTANCE / math.sqrt(2 + strength**2)))
            return strength * value
        before, after, positive = _outputs(kind, strength, MANY, share, np.random.default_rng(0))
        return rank(before, positive).value - rank(after, positive).value

    def samples(times: float, runs: int, generator: np.random.Generator) -> Iterator[Sample]:
        strength = _solved(drop, times * budget, 20.0 if kind == "many small" else 1.0, 1e-5)
        for _ in range(runs):
            before, after, positive = _outputs(kind, strength, num_examples, share, generator)
            if not 0 < positive.sum() < num_examples:
                continue
            ranked = [rank(each, positive) for each in (before, after)]
            scores = [each.value + each.influences for each in ranked]
            highest = ranked[0].value + max(ranked[0].of_negative[1], ranked[0].of_positive[1])
            lowest = ranked[1].value + min(ranked[1].of_negative[0], ranked[1].of_positive[0])
            rarest = min(positive.sum(), num_examples - positive.sum())
            yield Sample(scores[0], scores[1], highest - lowest, float(rarest))

    return Case(name, kind, num_examples, budget, samples)


def of_errors(name: str, kind: str, num_examples: int, shape: tuple[float, float], budget: float) -> Case:
    """A regression, judged by RMSE or R2; absolute errors are at most 1.

    Args:
        name: `RMSE` or `R2`.
        kind: `many small` makes all errors larger; `rare failures` makes a few as large as possible; `rare class only`
            does so where the target is in its upper tail.
        num_examples: Number of drawn examples.
        shape: Parameters of the Beta distribution of absolute errors; the first one is small if they are skewed.
        budget: Tolerated drop in worst drops of one example, divided by the number of examples.
    """
    first, second = shape
    square = first * (first + 1) / ((first + second) * (first + second + 1))  # of the baseline
    spread = square * 10  # variance of the targets, so that R2 is 0.9
    is_r2 = name == "R2"
    tolerated = budget / num_examples / (spread if is_r2 else 2 * math.sqrt(square))

    def samples(times: float, runs: int, generator: np.random.Generator) -> Iterator[Sample]:
        wanted = square + times * tolerated * spread if is_r2 else (math.sqrt(square) + times * tolerated) ** 2
        strength = (wanted - square) / (1 - square)
        if strength > {"many small": 0.5, "rare failures": 1.0, "rare class only": 0.1}[kind]:
            raise ValueError(f"no such candidate loses {times * tolerated:g}")
        for _ in range(runs):
            targets = math.sqrt(spread) * generator.normal(size=num_examples)
            errors = generator.beta(first, second, num_examples)
            chance = np.full(num_examples, strength)
            if kind == "rare class only":
                chance = np.where(targets > norm.isf(0.1) * math.sqrt(spread), 10 * strength, 0.0)
            fails = generator.random(num_examples) < chance
            after = np.where(fails, 1.0, errors**2)
            if kind == "many small":
                after = errors**2 + 2 * strength * (1 - errors**2) * generator.random(num_examples)
            yield _of_squares(errors**2, after, targets, is_r2)

    return Case(name, kind, num_examples, tolerated, samples, higher_is_better=is_r2)


def _of_squares(before: Floats, after: Floats, targets: Floats, is_r2: bool) -> Sample:
    scores, ends = [], []
    deviations = (targets - targets.mean()) ** 2
    variance = deviations.mean()
    effective = len(before) * variance**2 / (deviations**2).mean() if is_r2 else math.inf
    for squares in (before, after):
        mean = squares.mean()
        if is_r2:
            rest, slope = 1 - mean / variance + mean * deviations / variance**2, -1 / variance
        else:
            rest, slope = np.full(len(squares), math.sqrt(mean) / 2), 1 / (2 * math.sqrt(mean))
        scores.append(rest + slope * squares)
        ends.append((rest.min() + min(slope, 0), rest.max() + max(slope, 0)))
        effective = min(effective, squares.sum() ** 2 / (squares**2).sum())
    worst = ends[0][1] - ends[1][0] if is_r2 else ends[1][1] - ends[0][0]
    return Sample(scores[0], scores[1], float(worst), float(effective))
