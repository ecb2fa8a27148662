"""How precisely a drop is measured: the standard error of the difference of two metrics on the same examples."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from kedro_aat.certificate.scores import paired
from kedro_aat.errors import DataError


def paired_standard_error(baseline_scores: ArrayLike, candidate_scores: ArrayLike) -> float:
    """The standard error of the difference of two metrics that are means of scores over the same examples.

    The plain estimate is 0 where all differences are equal, as if a few hundred examples without a disagreement proved
    that there is none. Agresti and Min (2005, Statistics in Medicine 24:729-740) therefore add half an example to each
    cell of the table of paired outcomes, which makes the Wald interval cover as it should: two more examples, one of
    them discordant, half lost and half won. Without a disagreement this gives 1 / (N + 2); with many it changes
    nothing. It is always added, since a floor with a threshold would rank 0 and 1 disagreements wrongly. Where scores
    are not 0 or 1, the added disagreement is as large as the largest difference, or score if there is no difference.

    Args:
        baseline_scores: One score an example, (N,), any units.
        candidate_scores: Scores of the same examples in the same order, (N,).

    Returns:
        The standard error in units of the scores, above 0; its sign and direction do not depend on what is better.

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
    """The standard error of the difference of two metrics that are not means over examples, such as AUC or IoU.

    Both metrics were computed anew on the same resamples of the examples, drawn with replacement (Efron and Tibshirani
    1993, An Introduction to the Bootstrap, chapter 6).

    Args:
        baseline_resampled: The metric on each resample, (R,), any units; R at least 2.
        candidate_resampled: On the same resamples, (R,).

    Returns:
        The standard error in units of the metric, itself uncertain by 1 / sqrt(2 R) of it. It is 0 if no resample tells
        the models apart.

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
    if len(finite) < 0.9 * len(differences):
        raise DataError(
            f"the metric must be a finite number on at least nine tenths of the resamples, but it is on {len(finite)} "
            f"of {len(differences)}. Are there too few examples of one class?"
        )
    return float(finite.std(ddof=1))
