"""Simulated compression problems: a model that loses accuracy as its rate rises, and recovers as it trains.

Each run draws its validation noise from its own seed, and answers a search policy's questions as the training loop
would, including saved and restored checkpoints. Rates are converted to u = -ln(1 - r), in which equal increments are
equal factors in size.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from kedro_aat.search.frontier import u_of
from kedro_aat.search.policy import Epoch, EpochResult, Problem

# The slow damage takes this many times as long to recover from as the fast damage.
SLOWNESS = 6


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

    def cap(self, u: float) -> float:
        """Returns the accuracy at u after all damage has recovered."""
        x = (self.drop + self.beta) * (math.exp(min(50.0, self.s * (u - self.uc))) - math.exp(-self.s * self.uc))
        span = self.A0 - self.c0
        return self.A0 + self.beta * (1 - math.exp(-3 * u)) - span * (1 - math.exp(-x / span))


def load_problems(path: Path) -> tuple[list[SimulatedProblem], float]:
    """Reads all problems of a file, and the maximal rate that a search may try."""
    content = json.loads(path.read_text())
    problems = [SimulatedProblem(**row, c0=content["floor_accuracy"]) for row in content["problems"]]
    return problems, 1 - math.exp(-content["u_max"])


@dataclass(frozen=True)
class Weights:
    """The state in a checkpoint.

    Attributes:
        u: Position of the rate.
        fast: Accuracy lost by damage that recovers fast.
        slow: Accuracy lost by damage that recovers slowly.
        penalty: Accuracy that the last learning rate costs.
    """

    u: float = 0.0
    fast: float = 0.0
    slow: float = 0.0
    penalty: float = 0.0


def raised(problem: SimulatedProblem, weights: Weights, u: float) -> Weights:
    """Returns the weights after the rate has gone to u."""
    if u <= weights.u:
        return replace(weights, u=u)
    a = 1 - math.exp(weights.u - u)
    damage = problem.K * a**problem.p * math.exp(min(3.0, problem.rho * (u - problem.uc)))
    fast = weights.fast + damage * (1 - problem.phi * a)
    slow = weights.slow + damage * problem.phi * a
    scale = min(1.0, (problem.A0 - problem.c0) / (fast + slow)) if fast + slow > 0 else 1.0
    return Weights(u, fast * scale, slow * scale, weights.penalty)


@dataclass
class SimulatedRun:
    """One run of a search on one problem.

    Args:
        problem: The problem.
        seed: Seed of the noise, together with the problem's id.
        initial_rate: Rate of the model at the beginning.
        checkpoints: Weights after each epoch, by the number of the checkpoint.
        truths: True accuracy after each epoch.
    """

    problem: SimulatedProblem
    seed: int
    initial_rate: float = 0.0
    checkpoints: list[Weights] = field(default_factory=list)
    truths: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        problem = self.problem
        self._random = np.random.default_rng([self.seed, problem.id])
        self._shared, self._drift, own = self._random.standard_normal(3)
        self._weights = raised(problem, Weights(), u_of(self.initial_rate))
        baseline = self._rounded(problem.A0 + self._sd(problem.A0) * math.sqrt(0.5) * (self._shared + own))
        self.lowest_tolerated = baseline - problem.drop

    def answer(self, move: Epoch) -> EpochResult:
        """Trains and validates as the policy asks, and saves a checkpoint."""
        problem, weights = self.problem, self._weights
        if move.start_from is not None:
            weights = self.checkpoints[move.start_from]
        if move.new_optimizer and move.train:
            weights = replace(weights, fast=weights.fast + problem.breset * move.lr_scale)
        path = [u_of(rate) for rate in move.rate_path or ()] or [weights.u]
        for u in path:
            weights = raised(problem, weights, u)
            if move.train:
                time = problem.tau * (1 + 0.3 * u) / math.sqrt(max(move.lr_scale, 0.001)) * len(path)
                fast, slow = weights.fast * math.exp(-1 / time), weights.slow * math.exp(-1 / (SLOWNESS * time))
                weights = Weights(u, fast, slow, problem.lam * move.lr_scale)
        truth = problem.cap(weights.u) - weights.fast - weights.slow - weights.penalty
        if move.train:
            truth += problem.jit * move.lr_scale * self._random.standard_normal()
        truth = max(problem.c0, truth)
        self._weights = weights
        self.checkpoints.append(weights)
        self.truths.append(truth)
        measured = self._validated(truth)
        rate = 1 - math.exp(-weights.u)
        return EpochResult(
            checkpoint=len(self.checkpoints) - 1,
            trained=move.train,
            requested_rate=move.rate_path[-1] if move.rate_path else rate,
            achieved_rate=rate,
            metric=measured,
            margin=measured - self.lowest_tolerated,
            standard_error=math.sqrt(measured * (1 - measured) / problem.N),
        )

    def is_broken(self, checkpoint: int) -> bool:
        """Whether the true accuracy of a checkpoint is below the budget."""
        return self.truths[checkpoint] < self.problem.A0 - self.problem.drop

    def _validated(self, truth: float) -> float:
        self._drift = 0.8 * self._drift + 0.6 * self._random.standard_normal()
        noise = math.sqrt(0.5) * self._shared + 0.5 * self._drift + 0.5 * self._random.standard_normal()
        return self._rounded(truth + self._sd(truth) * noise)

    def _sd(self, truth: float) -> float:
        return math.sqrt(max(1e-4, truth * (1 - truth)) / self.problem.N)

    def _rounded(self, accuracy: float) -> float:
        return min(max(round(accuracy * self.problem.N) / self.problem.N, 0.0), 1.0)


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
    """

    rate: float
    relative_rate: float
    broken: bool
    true_drop: float | None
    tolerated_drop: float
    rises: tuple[tuple[int, float], ...]
    num_epochs: int

    def epochs_to(self, rate: float) -> float:
        """Returns the number of epochs until the best rate was at least `rate`; infinite if it never was."""
        return next((float(epochs) for epochs, best in self.rises if best >= rate - 1e-9), math.inf)


def simulate(policy: Any, problem: SimulatedProblem, seed: int, *, maximal_rate: float, initial_rate: float) -> Ending:
    """Runs a whole search.

    Args:
        policy: The search policy.
        problem: The simulated problem.
        seed: Seed of the noise.
        maximal_rate: Highest rate that the search may try, in [0, 1).
        initial_rate: Rate of the model at the beginning, in [0, 1).
    """
    run = SimulatedRun(problem, seed, initial_rate)
    posed = Problem(maximal_rate=maximal_rate, initial_rate=initial_rate, tolerated_drop=problem.drop)
    state, num_epochs = policy.initial(posed), 0
    rises: list[tuple[int, float]] = []
    while isinstance(move := policy.ask(state), Epoch):
        state = policy.tell(state, run.answer(move))
        num_epochs += move.train
        if state.best and (not rises or state.best.achieved_rate > rises[-1][1]):
            rises.append((num_epochs, state.best.achieved_rate))
    rate = 1 - math.exp(-run.checkpoints[move.best].u) if move.best is not None else 0.0
    return Ending(
        rate=rate,
        relative_rate=rate / (1 - math.exp(-problem.ustar)),
        broken=move.best is not None and run.is_broken(move.best),
        true_drop=None if move.best is None else problem.A0 - run.truths[move.best],
        tolerated_drop=problem.drop,
        rises=tuple(rises),
        num_epochs=num_epochs,
    )
