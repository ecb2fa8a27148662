"""How a simulated model is validated: what is measured instead of its true accuracy, and the standard error told.

`Paired` is what `fine_tune` sees: the baseline and each model answer the same examples, and a drop is the difference of
their scores. `Unpaired` is the noise that `search_problems.json` was published with.
"""

from __future__ import annotations

import math
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from kedro_aat.certificate import paired_standard_error

Noise = Literal["paired", "unpaired"]
Floats = NDArray[np.float64]

# How much of the variance of a measured drop all epochs share, and how much is kept for some epochs; the rest is new in
# each epoch. Of what is kept, this share is left one epoch later. Not measured: the shares of `Unpaired`.
SHARED, KEPT = 0.5, 0.25
PERSISTENCE = 0.8


class Validation(Protocol):
    """Validates the baseline and then one model after another.

    Attributes:
        baseline: Measured accuracy of the baseline.
    """

    baseline: float

    def measure(self, truth: float, source: int | None, *, is_same: bool) -> tuple[float, float]:
        """Returns the measured accuracy of the next model, and the standard error of its drop.

        Args:
            truth: The true accuracy of the model.
            source: Number of the model from which it was made; None for the baseline.
            is_same: Whether it is that model, unchanged.
        """
        ...


class Paired:
    """Right and wrong answers of the baseline and of each model to the same examples.

    Assumptions:

    - Only one of a model and the baseline is right on a share of two tolerated drops of the examples, which is what
      `certificate.expected_discordance` assumes, or on one tolerated drop more than the true drop if that is more.
    - On which examples is a matter of luck: each example has a uniform number, and models with the same numbers differ
      on the same examples. Half of the examples have the same number for all models, since they are the close calls of
      the baseline; a quarter keep it with a probability of 0.8 when a model becomes another by training or cutting, and
      a quarter never. So the errors of measured drops share half of their variance, and a quarter decays by 0.8 along
      the models of a lineage.

    Args:
        accuracy: True accuracy of the baseline.
        drop: The tolerated drop.
        num_examples: Number of validation examples, N.
        random: Generator of everything that is drawn.

    Attributes:
        baseline: Measured accuracy of the baseline.
        baseline_scores: Whether the baseline is right, 0 or 1, (N,).
        scores: The same of each model measured so far, (N,) each.
    """

    def __init__(self, accuracy: float, drop: float, num_examples: int, random: np.random.Generator) -> None:
        self._accuracy, self._drop, self._random = accuracy, drop, random
        self.baseline_scores: Floats = (random.random(num_examples) < accuracy).astype(np.float64)
        self.baseline = float(self.baseline_scores.mean())
        self.scores: list[Floats] = []
        new = 1 - SHARED - KEPT
        self._renewal = random.choice([0, 1 - PERSISTENCE, 1], num_examples, p=[SHARED, KEPT, new])
        self._first_luck: Floats = random.random(num_examples)
        self._lucks: list[Floats] = []

    def measure(self, truth: float, source: int | None, *, is_same: bool) -> tuple[float, float]:
        luck = self._first_luck if source is None else self._lucks[source]
        scores = self.baseline_scores if source is None else self.scores[source]
        if not is_same:
            is_renewed = self._random.random(len(luck)) < self._renewal
            luck = np.where(is_renewed, self._random.random(len(luck)), luck)
            scores = self._answered(self._accuracy - truth, luck)
        self._lucks.append(luck)
        self.scores.append(scores)
        return float(scores.mean()), paired_standard_error(self.baseline_scores, scores)

    def _answered(self, true_drop: float, luck: Floats) -> Floats:
        discordance = max(2 * self._drop, abs(true_drop) + self._drop)
        num_wrong = 1 - self._accuracy  # as a share
        won = min(max((discordance - true_drop) / 2, -true_drop), num_wrong)
        chance_lost = (won + true_drop) / self._accuracy
        chance_won = won / num_wrong if num_wrong > 0 else 0.0
        answers = np.where(self.baseline_scores > 0, luck >= chance_lost, luck < chance_won)
        return answers.astype(np.float64)


class Unpaired:
    """The noise of an accuracy on its own, part of which all epochs and the baseline share, as published.

    Its arguments are those of `Paired`.
    """

    def __init__(self, accuracy: float, drop: float, num_examples: int, random: np.random.Generator) -> None:
        del drop
        self._num_examples, self._random = num_examples, random
        self._shared, self._drift, own = random.standard_normal(3)
        self.baseline = self._rounded(accuracy + self._sd(accuracy) * math.sqrt(0.5) * (self._shared + own))

    def measure(self, truth: float, source: int | None, *, is_same: bool) -> tuple[float, float]:
        del source, is_same
        self._drift = 0.8 * self._drift + 0.6 * self._random.standard_normal()
        noise = math.sqrt(0.5) * self._shared + 0.5 * self._drift + 0.5 * self._random.standard_normal()
        measured = self._rounded(truth + self._sd(truth) * noise)
        return measured, math.sqrt(measured * (1 - measured) / self._num_examples)

    def _sd(self, truth: float) -> float:
        return math.sqrt(max(1e-4, truth * (1 - truth)) / self._num_examples)

    def _rounded(self, accuracy: float) -> float:
        return min(max(round(accuracy * self._num_examples) / self._num_examples, 0.0), 1.0)


VALIDATIONS: dict[Noise, Any] = {"paired": Paired, "unpaired": Unpaired}
