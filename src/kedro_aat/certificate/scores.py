"""Scores of two models on the same examples."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kedro_aat.errors import DataError

Floats = NDArray[np.float64]


def paired(baseline_scores: ArrayLike, candidate_scores: ArrayLike) -> tuple[Floats, Floats]:
    """Two vectors of one score an example, (N,) each, checked.

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
            raise DataError(f"{name} must be one score an example, of shape (N,), but its shape is {vector.shape}")
        if bad := int((~np.isfinite(vector)).sum()):
            raise DataError(f"{name} must be finite numbers, but {bad} of {len(vector)} are NaN or infinite")
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


def unit_of_outcomes(baseline: Floats, candidate: Floats) -> float | None:
    """What one right example scores, 1 or 100, if all scores are right or wrong; else None."""
    scores = np.concatenate((baseline, candidate))
    return next((unit for unit in (1.0, 100.0) if np.isin(scores, (0.0, unit)).all()), None)
