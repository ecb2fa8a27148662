"""Scores of two models on the same examples: checks, and the standard error of the drop that they measure."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kedro_aat.errors import DataError

# Scores of one right example, in files of fractions and of percentages.
UNITS_OF_OUTCOMES = (1.0, 100.0)
# A bootstrap needs a finite metric on at least this share of its resamples.
MIN_FINITE_RESAMPLES = 0.9

Floats = NDArray[np.float64]


def paired(baseline_scores: ArrayLike, candidate_scores: ArrayLike) -> tuple[Floats, Floats]:
    """Checks scores, and returns them as two vectors with one score per example, (N,) each.

    Raises:
        DataError: If they are not finite numbers in two vectors of the same length, at least 1.
    """
    vectors: list[Floats] = []
    for name, scores in (("baseline_scores", baseline_scores), ("candidate_scores", candidate_scores)):
        try:
            vector = np.asarray(scores, dtype=np.float64)
        except (TypeError, ValueError):
            raise DataError(f"{name} must be numbers, but got {type(scores).__name__}") from None
        if vector.ndim != 1:
            raise DataError(f"{name} must be one score per example, of shape (N,), but its shape is {vector.shape}")
        if num_invalid := int((~np.isfinite(vector)).sum()):
            raise DataError(f"{name} must be finite numbers, but {num_invalid} of {len(vector)} are NaN or infinite")
        vectors.append(vector)
    baseline, candidate = vectors
    if len(baseline) != len(candidate):
        raise DataError(
            "the scores must be of the same examples in the same order, "
            f"but there are {len(baseline)} of the baseline and {len(candidate)} of the candidate"
        )
    if not len(baseline):
        raise DataError("there must be at least one score, but there are none")
    return baseline, candidate


def unit_of_outcomes(*scores: Floats) -> float | None:
    """Returns the score of one right example, 1 or 100, if every score is right or wrong; otherwise None."""
    return next((unit for unit in UNITS_OF_OUTCOMES if all(np.isin(each, (0.0, unit)).all() for each in scores)), None)


def numbered(groups: ArrayLike, num_examples: int) -> NDArray[np.intp]:
    """Numbers groups from 0.

    Args:
        groups: The group of each example, as numbers or texts, (N,).
        num_examples: Number of examples, N.

    Returns:
        The numbers, (N,).

    Raises:
        DataError: If there is not one group for each example.
    """
    names = np.asarray(groups)
    if names.shape != (num_examples,):
        raise DataError(
            f"groups must be one for each of {num_examples} examples, of shape ({num_examples},), "
            f"but their shape is {names.shape}"
        )
    return np.unique(names, return_inverse=True)[1]


def paired_standard_error(
    baseline_scores: ArrayLike, candidate_scores: ArrayLike, groups: ArrayLike | None = None
) -> float:
    """Computes the standard error of the difference of two metrics that are means of scores over the same examples.

    The plain estimate is 0 if all differences are equal, as if a few hundred examples without a disagreement proved
    that there is none. Agresti and Min (2005, Statistics in Medicine 24:729-740) therefore add half an example to each
    cell of the table of paired outcomes, which makes the Wald interval cover as it should: two more examples, one of
    them discordant, half lost and half won. Without a disagreement this gives 1 / (N + 2); with many it changes
    nothing. It is always added, since a floor with a threshold would rank 0 and 1 disagreements wrongly. If scores are
    not 0 or 1, the added disagreement is as large as the largest difference, or as the largest score if there is no
    difference.

    If examples depend on each other within groups, the groups are what varies: the metric is the sum of their sums of
    scores divided by the sum of their sizes, and its variance that of a ratio (Cochran 1977, Sampling Techniques,
    chapter 6, with the groups as the sample). The two added groups have the mean size, and lose per example what the
    group with the largest difference does.

    Args:
        baseline_scores: One score per example, (N,), in any unit.
        candidate_scores: Scores of the same examples in the same order, (N,).
        groups: The group of each example, (N,); None if each counts for itself.

    Returns:
        The standard error in units of the scores, above 0. It does not depend on whether higher or lower is better.

    Raises:
        DataError: If the scores are not finite numbers in two vectors of the same length, at least 1, or if there is
            not one group for each example.
    """
    baseline, candidate = paired(baseline_scores, candidate_scores)
    difference, counts = baseline - candidate, np.ones(len(baseline))
    if groups is not None:
        numbers = numbered(groups, len(baseline))
        difference = np.bincount(numbers, weights=difference).astype(np.float64)
        counts = np.bincount(numbers).astype(np.float64)
    sizes = (np.abs(difference).max(), np.abs(baseline).max(), 1.0)
    size = next(float(size) for size in sizes if size > 0)
    scaled = difference / size  # so that squares neither overflow nor vanish
    typical = float(counts.mean())
    added = typical / float(counts[np.abs(scaled).argmax()]) if scaled.any() else 1.0
    total = float(counts.sum()) + 2 * typical
    mean = float(scaled.sum()) / total
    # Sums of squares instead of squared residuals, so that right or wrong scores give the same bits in any order.
    squares = float(scaled @ scaled) - 2 * mean * float(scaled @ counts) + mean**2 * float(counts @ counts)
    return size * math.sqrt(squares + 2 * (mean * typical) ** 2 + added**2) / total


def bootstrap_standard_error(baseline_resampled: ArrayLike, candidate_resampled: ArrayLike) -> float:
    """Computes the standard error of the difference of two metrics that are not means over examples (AUC, IoU, ...).

    Both metrics were computed on the same resamples of the examples, drawn with replacement (Efron and Tibshirani
    1993, An Introduction to the Bootstrap, chapter 6), or are values with the same standard deviation from a jackknife
    (chapter 11) with the same groups.

    Args:
        baseline_resampled: Metric of the baseline on each resample, (R,), in any unit; R is at least 2.
        candidate_resampled: Metric of the candidate on the same resamples, (R,).

    Returns:
        The standard error in units of the metric. Its own relative uncertainty is 1 / sqrt(2 R). It is 0 if no
        resample distinguishes the models.

    Raises:
        DataError: If there are too few resamples, or if the metric is not a finite number on more than a tenth of them.
            Fewer are left out: an AUC has no value on a resample without positives.
    """
    baseline, candidate = (np.asarray(values, dtype=np.float64) for values in (baseline_resampled, candidate_resampled))
    if baseline.shape != candidate.shape or baseline.ndim != 1 or len(baseline) < 2:
        raise DataError(
            "a bootstrap needs the same resamples of both models, (R,) with R at least 2, "
            f"but got {baseline.shape} and {candidate.shape}"
        )
    differences = baseline - candidate
    finite = differences[np.isfinite(differences)]
    if len(finite) < MIN_FINITE_RESAMPLES * len(differences):
        raise DataError(
            f"the metric must be a finite number on at least nine tenths of the resamples, but it is on {len(finite)} "
            f"of {len(differences)}. Are there too few examples of one class?"
        )
    return float(finite.std(ddof=1))
