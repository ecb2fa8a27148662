"""Simulated compression problems: a model that loses accuracy as its rate rises, and recovers as it trains.

Each run draws its validation noise from its own seed, and answers a search policy's questions as the training loop
would, including saved and restored checkpoints. Rates are converted to u = -ln(1 - r), in which equal increments are
equal factors in size.

Published problems have no tactics; `with_tactics` draws what tactics change in one. What it assumes:

- The learning rate at which the published costs hold is a factor of 0.3 to 30 on the owner's, log-uniform: the climbs
  by hand ended at 30 in half of the runs and at 10 in a quarter. Above it the penalty, the jitter and the cost of a new
  optimizer grow in proportion; below it recovery takes longer, by the root.
- A ranking puts the cliff closer to the baseline than the problem's best one: at 0.45 to 1 of its distance on average.
  By hand a U-Net with rankings from .797 to .588 at the same rate had a spread like that. The controller's own ranking
  is no better than others, since none was best everywhere. What was cut by one ranking stays cut: the cliff of a model
  is the mean of those of its rankings, weighted by how far each cut.
- With distillation recovery takes 0.8 of the time in the median: it helped most tasks, not those with a rare class.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.simulated_validation import VALIDATIONS, Noise, Validation
from kedro_aat.budget import Budget
from kedro_aat.search.attempts import u_of
from kedro_aat.search.policy import Epoch, EpochResult, Problem
from kedro_aat.search.tactics import Ranking, Tactic

# The slow damage takes this many times as long to recover from as the fast damage.
SLOWNESS = 6

# The good learning rate, relative to the owner's, is between these.
GOOD_LR = (0.3, 30.0)
# The rankings that are offered, the controller's own first.
OFFERED = (("l2", "local"), ("batch_norm_scale", "global"), ("l2", "global"), ("taylor", "global"))
# Rate of the first trial: of filters, and of single weights, which learn again when they come back.
FIRST_RATES = (0.5, 0.7)
# Standard deviation of the log of a cliff's position from ranking to ranking.
RANKING_SPREAD = 0.4
# Median of the factor that distillation has on the time of recovery, and the standard deviation of its log.
DISTILLED_TIME, DISTILLED_SPREAD = 0.8, 0.3


@dataclass(frozen=True)
class Effects:
    """What tactics change in a problem.

    Attributes:
        good_lr: Factor on the owner's learning rate at which the problem's costs hold.
        cliffs: Factor of at most 1 on the position of the cliff, by ranking; the controller's own ranking first.
        distilled_time: Factor that distillation has on the time of recovery.
    """

    good_lr: float = 1.0
    cliffs: tuple[tuple[Ranking, float], ...] = ((Ranking(), 1.0),)
    distilled_time: float = 1.0

    def cliff(self, ranking: Ranking) -> float:
        """Returns the factor of a ranking; that of the controller's own if it is not offered."""
        return dict(self.cliffs).get(ranking, self.cliffs[0][1])


@dataclass(frozen=True)
class SimulatedProblem:
    """One problem, with the names of its file. Accuracies and what is lost of them are fractions.

    Attributes:
        A0: True accuracy of the baseline.
        drop: Tolerated drop of the accuracy.
        uc: Position of the cliff, in u.
        s: Steepness of the cliff, per u.
        beta: Accuracy that light compression adds.
        K: Scale of the damage that a rise of the rate causes.
        p: Power of the size of a rise in its damage.
        rho: Growth of the damage with u, per u.
        phi: Share of the damage that recovers slowly.
        tau: Number of epochs in which damage recovers.
        lam: Accuracy that a full learning rate costs.
        jit: Standard deviation of the true accuracy from epoch to epoch.
        breset: Accuracy that a new optimizer costs.
        N: Number of validation examples.
        ustar: Largest feasible u.
        id: Number of the problem, part of the seed.
        c0: Accuracy of guessing.
        effects: What tactics change.
    """

    A0: float
    drop: float
    uc: float
    s: float
    beta: float
    K: float
    p: float
    rho: float
    phi: float
    tau: float
    lam: float
    jit: float
    breset: float
    N: int
    ustar: float
    id: int
    c0: float
    effects: Effects = Effects()

    def cap(self, u: float, cliff: float = 1.0) -> float:
        """Returns the accuracy at u after all damage has recovered, if the cliff is at this share of its distance."""
        uc = cliff * self.uc
        x = (self.drop + self.beta) * (math.exp(min(50.0, self.s * (u - uc))) - math.exp(-self.s * uc))
        span = self.A0 - self.c0
        return self.A0 + self.beta * (1 - math.exp(-3 * u)) - span * (1 - math.exp(-x / span))


def load_problems(path: Path) -> tuple[list[SimulatedProblem], float]:
    """Reads all problems of a file, and the maximal rate that a search may try."""
    content = json.loads(path.read_text())
    problems = [SimulatedProblem(**row, c0=content["floor_accuracy"]) for row in content["problems"]]
    return problems, 1 - math.exp(-content["u_max"])


def with_tactics(problem: SimulatedProblem) -> SimulatedProblem:
    """Draws what tactics change in a problem, from its own seed."""
    random = np.random.default_rng([problem.id])
    good_lr = math.exp(random.uniform(math.log(GOOD_LR[0]), math.log(GOOD_LR[1])))
    shifts = random.normal(0, RANKING_SPREAD, len(OFFERED))
    cliffs = np.exp(shifts - shifts.max())
    rankings = [Ranking(importance=importance, ranking=ranking) for importance, ranking in OFFERED]
    distilled_time = DISTILLED_TIME * math.exp(random.normal(0, DISTILLED_SPREAD))
    effects = Effects(good_lr, tuple(zip(rankings, map(float, cliffs), strict=True)), distilled_time)
    return replace(problem, effects=effects)


@dataclass(frozen=True)
class Weights:
    """The state in a checkpoint.

    Attributes:
        u: Position of the rate.
        fast: Accuracy lost by damage that recovers fast.
        slow: Accuracy lost by damage that recovers slowly.
        penalty: Accuracy that the last learning rate costs.
        cliff: Position of the cliff, as a share of that of the best ranking.
    """

    u: float = 0.0
    fast: float = 0.0
    slow: float = 0.0
    penalty: float = 0.0
    cliff: float = 1.0


def raised(problem: SimulatedProblem, weights: Weights, u: float, cliff: float = 1.0) -> Weights:
    """Returns the weights after the rate has gone to u by a ranking with this cliff."""
    if u <= weights.u:
        return replace(weights, u=u)
    cliff = (weights.u * weights.cliff + (u - weights.u) * cliff) / u
    a = 1 - math.exp(weights.u - u)
    damage = problem.K * a**problem.p * math.exp(min(3.0, problem.rho * (u - cliff * problem.uc)))
    fast = weights.fast + damage * (1 - problem.phi * a)
    slow = weights.slow + damage * problem.phi * a
    scale = min(1.0, (problem.A0 - problem.c0) / (fast + slow)) if fast + slow > 0 else 1.0
    return replace(weights, u=u, fast=fast * scale, slow=slow * scale, cliff=cliff)


@dataclass
class SimulatedRun:
    """One run of a search on one problem.

    Args:
        problem: The problem.
        seed: Seed of the noise, together with the problem's id.
        initial_rate: Rate of the model at the beginning.
        noise: What the validation measures, and the standard error that it tells.
        checkpoints: Weights after each epoch, by the number of the checkpoint.
        truths: True accuracy after each epoch.
    """

    problem: SimulatedProblem
    seed: int
    initial_rate: float = 0.0
    noise: Noise = "paired"
    checkpoints: list[Weights] = field(default_factory=list)
    truths: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        problem = self.problem
        self._random = np.random.default_rng([self.seed, problem.id])
        self.validation: Validation = VALIDATIONS[self.noise](problem.A0, problem.drop, problem.N, self._random)
        self.budget = Budget(baseline=self.validation.baseline, drop=problem.drop)
        self._tactic = Tactic(ranking=problem.effects.cliffs[0][0], distill=False)

    def answer(self, move: Epoch) -> EpochResult:
        """Trains and validates as the policy asks, and saves a checkpoint."""
        problem, number = self.problem, len(self.checkpoints)
        self._tactic = move.tactic or self._tactic
        source = (number - 1 if number else None) if move.start_from is None else move.start_from
        before = Weights() if source is None else self.checkpoints[source]
        weights = raised(problem, before, u_of(self.initial_rate), self._cliff) if source is None else before
        weights = self._trained(weights, move)
        is_same = not move.train and weights == before
        self.checkpoints.append(weights)
        self.truths.append(self._truth(weights, move, source if is_same else None))
        measured, standard_error = self.validation.measure(self.truths[-1], source, is_same=is_same)
        rate = 1 - math.exp(-weights.u)
        return EpochResult(
            checkpoint=number,
            trained=move.train,
            requested_rate=move.rate_path[-1] if move.rate_path else rate,
            achieved_rate=rate,
            metric=measured,
            margin=self.budget.margin(measured),
            standard_error=standard_error,
            cost=float(move.train),
        )

    def is_broken(self, checkpoint: int) -> bool:
        """Whether the true accuracy of a checkpoint is below the budget."""
        return self.truths[checkpoint] < self.problem.A0 - self.problem.drop

    @property
    def _cliff(self) -> float:
        return self.problem.effects.cliff(self._tactic.ranking)

    def _trained(self, weights: Weights, move: Epoch) -> Weights:
        problem = self.problem
        scale = move.lr_scale / problem.effects.good_lr
        if move.train and move.new_optimizer:
            weights = replace(weights, fast=weights.fast + problem.breset * scale)
        path = [u_of(rate) for rate in move.rate_path or ()] or [weights.u]
        for u in path:
            weights = raised(problem, weights, u, self._cliff)
            if move.train:
                duration = problem.tau * (1 + 0.3 * u) / math.sqrt(max(scale, 0.001)) * len(path)
                duration *= problem.effects.distilled_time if self._tactic.distill else 1.0
                fast, slow = weights.fast * math.exp(-1 / duration), weights.slow * math.exp(-1 / (SLOWNESS * duration))
                weights = replace(weights, fast=fast, slow=slow, penalty=problem.lam * scale)
        return weights

    def _truth(self, weights: Weights, move: Epoch, same_as: int | None) -> float:
        problem = self.problem
        if self.noise == "paired" and same_as is not None:
            return self.truths[same_as]
        truth = problem.cap(weights.u, weights.cliff) - weights.fast - weights.slow - weights.penalty
        if move.train:
            truth += problem.jit * move.lr_scale / problem.effects.good_lr * self._random.standard_normal()
        return max(problem.c0, truth)


@dataclass(frozen=True)
class Ending:
    """How a simulated search ended.

    Attributes:
        rate: Rate of the returned model; 0 if there is none.
        relative_rate: `rate` divided by the largest feasible rate.
        broken: Whether the returned model truly breaks its budget.
        true_drop: How much worse the returned model truly is than the baseline; None if there is none.
        tolerated_drop: The budget.
        rises: Number of epochs trained and best rate, for each epoch at which the best rate rose.
        num_epochs: Number of epochs trained in total.
        seconds: Seconds of the policy's own work per epoch.
    """

    rate: float
    relative_rate: float
    broken: bool
    true_drop: float | None
    tolerated_drop: float
    rises: tuple[tuple[int, float], ...]
    num_epochs: int
    seconds: float = field(default=0.0, compare=False)

    def epochs_to(self, rate: float) -> float:
        """Returns the number of epochs until the best rate was at least `rate`; infinite if it never was."""
        if rate <= 0:
            return 0.0
        return next((float(epochs) for epochs, best in self.rises if best >= rate - 1e-9), math.inf)


def simulate(
    policy: Any,
    problem: SimulatedProblem,
    seed: int,
    *,
    maximal_rate: float,
    initial_rate: float,
    noise: Noise = "paired",
    regrows: bool = False,
) -> Ending:
    """Runs a whole search.

    Args:
        policy: The search policy.
        problem: The simulated problem.
        seed: Seed of the noise.
        maximal_rate: Highest rate that the search may try, in [0, 1).
        initial_rate: Rate of the model at the beginning, in [0, 1).
        noise: What the validation measures, and the standard error that it tells.
        regrows: Whether the policy is told that what comes back learns again, as single weights do.
    """
    run = SimulatedRun(problem, seed, initial_rate, noise)
    told = posed(problem, maximal_rate=maximal_rate, initial_rate=initial_rate, regrows=regrows)
    state, num_epochs = policy.initial(told), 0
    rises: list[tuple[int, float]] = []
    seconds, began = 0.0, time.perf_counter()
    while isinstance(move := policy.ask(state), Epoch):
        seconds += time.perf_counter() - began
        result = run.answer(move)
        began = time.perf_counter()
        state = policy.tell(state, result)
        num_epochs += move.train
        if state.best and (not rises or state.best.achieved_rate > rises[-1][1]):
            rises.append((num_epochs, state.best.achieved_rate))
    seconds += time.perf_counter() - began
    rate = 1 - math.exp(-run.checkpoints[move.best].u) if move.best is not None else 0.0
    return Ending(
        rate=rate,
        relative_rate=rate / (1 - math.exp(-problem.ustar)),
        broken=move.best is not None and run.is_broken(move.best),
        true_drop=None if move.best is None else problem.A0 - run.truths[move.best],
        tolerated_drop=problem.drop,
        rises=tuple(rises),
        num_epochs=num_epochs,
        seconds=seconds / len(run.checkpoints),
    )


def posed(problem: SimulatedProblem, *, maximal_rate: float, initial_rate: float, regrows: bool = False) -> Problem:
    """What a policy is told of a problem; see `simulate`."""
    rankings = tuple(ranking for ranking, _ in problem.effects.cliffs)
    has_tactics = len(rankings) > 1
    return Problem(
        maximal_rate=maximal_rate,
        initial_rate=initial_rate,
        tolerated_drop=problem.drop,
        first_target_rate=FIRST_RATES[regrows],
        regrows=regrows,
        rankings=rankings if has_tactics else (),
        can_sample=has_tactics,
        can_distill=has_tactics,
        num_validation=problem.N,
    )
