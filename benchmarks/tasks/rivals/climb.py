"""A climb by hand: small steps from the last accepted model, with another learning rate or importance when stuck."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from functools import partial

from benchmarks.tasks.rivals.compressed import compress, size_ratio
from benchmarks.tasks.rivals.training import LR_FACTOR, Training, found_of
from benchmarks.tasks.task import Candidate, Found, Problem
from kedro_aat.compression.settings import FilterPruning, MagnitudeSparsity
from kedro_aat.errors import DivergedError, ModelError
from kedro_aat.training.random_state import rng_state, seed_everything, set_rng_state

Importance = FilterPruning | MagnitudeSparsity
IMPORTANCES: dict[str, tuple[Importance, ...]] = {
    "filters": (
        FilterPruning(importance="l2"),
        FilterPruning(importance="batch_norm_scale", ranking="global"),
        FilterPruning(importance="taylor"),
        FilterPruning(importance="l2", ranking="global"),
    ),
    "sparsity": (MagnitudeSparsity(importance="lamp"), MagnitudeSparsity(importance="abs")),
}
# Sizes are logarithms of the size ratio, u = -ln(1 - rate).
FIRST_STEP = {"filters": 0.7, "sparsity": 1.2}
HIGHEST_U = 14.0  # a millionth is left
EPOCHS_PER_TRIAL = 4
STEP_FACTORS = {1: 2.0, 2: 1.4}  # by the number of epochs after which a trial was accepted
STEP_FACTOR_IF_REFUSED = 0.55
LR_STEP = 10**0.5
CHANCE_LEVEL = 0.1  # share of the way from an untrained model's metric to the baseline's


@dataclass(frozen=True)
class Trial:
    """A target that was trained: its largest margin, the number of its epochs, and whether it was accepted."""

    margin: float
    num_epochs: int
    is_accepted: bool


@dataclass
class Climb:
    """The state of a climb.

    Attributes:
        problem: The problem.
        num_epochs: Epochs that may be trained.
        kept_in_hand: Share of the budget that an accepted model must leave unused.
        accepted: The accepted models, each smaller than the one before.
        num_trained: Epochs trained so far.
    """

    problem: Problem
    num_epochs: int
    kept_in_hand: float = 0.0
    accepted: list[Candidate] = field(default_factory=list)
    num_trained: int = 0

    def run(self) -> Found:
        """Climbs until the epochs are used."""
        started = time.perf_counter()
        self._chance = self._metric_of_untrained()
        step, factor, up = FIRST_STEP[self.problem.algorithm], LR_FACTOR, True
        importances = self._ranked(step)
        if self.accepted:
            step *= STEP_FACTORS[1]
        while self.epochs_left > 0 and self.u + step < HIGHEST_U:
            target, importance = self.u + step, importances[0]
            trial = self._trial(importance, target, factor)
            if trial is None:  # nothing was removed
                step *= 2
                continue
            if not trial.is_accepted and self.epochs_left > 0:
                other = factor * (LR_STEP if up else 1 / LR_STEP)
                again = self._trial(importance, target, other)
                if again is not None and again.margin > trial.margin:
                    trial, factor = again, other
                else:
                    up = not up
            if trial.is_accepted:
                step *= STEP_FACTORS.get(trial.num_epochs, 1.0)
            else:
                importances = (*importances[1:], importance)
                step *= STEP_FACTOR_IF_REFUSED
        return found_of(self.accepted, self.num_trained, started)

    @property
    def epochs_left(self) -> int:
        return self.num_epochs - self.num_trained

    @property
    def u(self) -> float:
        """Size of the last accepted model."""
        return math.log(self.accepted[-1].size_ratio) if self.accepted else 0.0

    def _ranked(self, step: float) -> tuple[Importance, ...]:
        """The importances, best first, by an epoch of each; the best model is accepted if it is within budget."""
        margins: dict[Importance, float] = {}
        models: list[Candidate] = []
        for importance in IMPORTANCES[self.problem.algorithm]:
            trial = self._trial(importance, step, LR_FACTOR, num_epochs=1)
            margins[importance] = trial.margin if trial else -math.inf
            if trial and trial.is_accepted:
                models.append(self.accepted.pop())
                models.sort(key=lambda model: -self.problem.budget.margin(model.validation))
        self.accepted = models[:1]
        return tuple(sorted(margins, key=lambda importance: -margins[importance]))

    def _trial(
        self, importance: Importance, target: float, factor: float, num_epochs: int = EPOCHS_PER_TRIAL
    ) -> Trial | None:
        """Compresses the last accepted model and trains it; it is accepted at the first epoch within budget.

        Returns:
            The trial; None if the model could not be made smaller.
        """
        problem, best = self.problem, -math.inf
        start = self.accepted[-1].model if self.accepted else problem.baseline
        try:
            compressed = compress(problem, start, math.exp(target), importance)
        except ModelError:  # no channel is left that can be cut
            return None
        if size_ratio(problem, compressed.copy()) <= size_ratio(problem, start):
            return None
        num_epochs = min(num_epochs, self.epochs_left)
        training = Training(problem, compressed, num_epochs, first_epoch=self.num_trained, lr_factor=factor)
        number = 0
        for number in range(1, num_epochs + 1):
            metric = training.epoch()
            self.num_trained += 1
            if metric is None:
                break
            margin = problem.budget.margin(metric) - self.kept_in_hand * problem.budget.drop
            best = max(best, margin)
            if margin >= 0:
                model = compressed.copy()
                self.accepted.append(Candidate(model, size_ratio(problem, model), metric))
                return Trial(margin, number, is_accepted=True)
            if self._is_at_chance(metric):
                break
        return Trial(best, number, is_accepted=False)

    def _metric_of_untrained(self) -> float | None:
        before = rng_state()
        seed_everything(self.problem.seed)
        model = self.problem.task.model()
        set_rng_state(before)
        try:
            return self.problem.metric(model, self.problem.splits.validation)
        except DivergedError:
            return None

    def _is_at_chance(self, metric: float) -> bool:
        if self._chance is None:
            return False
        drop, whole = map(self.problem.budget.degradation, (metric, self._chance))
        return drop > (1 - CHANCE_LEVEL) * whole > 0


def climb(problem: Problem, num_epochs: int, kept_in_hand: float = 0.0) -> Found:
    """Accepts the first epoch within budget."""
    return Climb(problem, num_epochs, kept_in_hand).run()


climb30 = partial(climb, kept_in_hand=0.3)
