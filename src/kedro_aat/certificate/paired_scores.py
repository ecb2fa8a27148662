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


def paired_standard_error(baseline_scores: ArrayLike, candidate_scores: ArrayLike) -> float:
    """Computes the standard error of the difference of two metrics that are means of scores over the same examples.

    The plain estimate is 0 if all differences are equal, as if a few hundred examples without a disagreement proved
    that there is none. Agresti and Min (2005, Statistics in Medicine 24:729-740) therefore add half an example to each
    cell of the table of paired outcomes, which makes the Wald interval cover as it should: two more examples, one of
    them discordant, half lost and half won. Without a disagreement this gives 1 / (N + 2); with many it changes
    nothing. It is always added, since a floor with a threshold would rank 0 and 1 disagreements wrongly. If scores are
    not 0 or 1, the added disagreement is as large as the largest difference, or as the largest score if there is no
    difference.

    Args:
        baseline_scores: One score per example, (N,), in any unit.
        candidate_scores: Scores of the same examples in the same order, (N,).

    Returns:
        The standard error in units of the scores, above 0. It does not depend on whether higher or lower is better.

    Raises:
        DataError: If the scores are not finite numbers in two vectors of the same length, at least 1.
    """
    baseline, candidate = paired(baseline_scores, candidate_scores)
    difference = baseline - candidate
    sizes = (np.abs(difference).max(), np.abs(baseline).max(), 1.0)
    size = next(float(size) for size in sizes if size > 0)
    scaled = difference / size  # so that squares neither overflow nor vanish
    count = len(scaled) + 2
    return size * math.sqrt(float(scaled @ scaled) + 1 - float(scaled.sum()) ** 2 / count) / count


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
