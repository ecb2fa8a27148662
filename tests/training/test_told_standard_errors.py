"""The real loop tells the real policy what the simulator tells it about the same scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.simulated_validation import Paired
from benchmarks.simulator import SimulatedRun, posed, with_tactics
from kedro_aat import TrainingRunner
from kedro_aat.search.attempts import FrontierState
from kedro_aat.search.frontier import Frontier
from kedro_aat.search.policy import Epoch, EpochResult, Stop
from kedro_aat.training.callables import Callables, Evaluation
from kedro_aat.training.checkpoints import CheckpointStore
from kedro_aat.training.loop import fine_tune
from kedro_aat.training.progress import LoopProgress
from tests.benchmarks.simulated_problems import problem
from tests.scripted import ScriptedController, ScriptedModel
from tests.training.checkpoints import small_search

PROBLEM = problem(drop=0.02, uc=1.5, K=0.05, rho=1.0, lam=0.004, jit=0.0005, breset=0.001, N=400)


class Heard:
    """`frontier`, with everything that it asked for and was told."""

    def __init__(self, maximal_total_epochs: int) -> None:
        self.policy = Frontier(maximal_total_epochs=maximal_total_epochs)
        self.maximal_total_epochs = maximal_total_epochs
        self.moves: list[Epoch] = []
        self.told: list[EpochResult] = []
        self.initial, self.load = self.policy.initial, self.policy.load

    def ask(self, state: FrontierState) -> Epoch | Stop:
        move = self.policy.ask(state)
        if isinstance(move, Epoch):
            self.moves.append(move)
        return move

    def tell(self, state: FrontierState, result: EpochResult) -> FrontierState:
        self.told.append(result)
        return self.policy.tell(state, result)


def test_the_loop_tells_the_policy_what_the_simulator_tells_it_of_the_same_scores(tmp_path: Path) -> None:
    """The model trains by the simulator, and is validated with its scores; a buffer says which epoch's they are."""
    simulated = SimulatedRun(with_tactics(PROBLEM), seed=0)
    validation, heard = simulated.validation, Heard(maximal_total_epochs=25)
    assert isinstance(validation, Paired)
    expected = [simulated.answer(Epoch(train=False))]
    model = ScriptedModel(0.0)

    def train(controller: Any, model: ScriptedModel, epoch: int, **_: Any) -> float:
        expected.append(simulated.answer(heard.moves[-1]))
        model.state[2] = len(expected) - 1
        return 0.0

    def validate(model: ScriptedModel) -> Evaluation:
        scores = torch.from_numpy(validation.scores[int(model.state[2])])
        return Evaluation(float(scores.mean()), scores)

    runner = TrainingRunner(model, ScriptedController(model), Callables(train, validate))
    with CheckpointStore(tmp_path).open({}) as checkpoints:
        fine_tune(
            runner,
            heard,
            posed(simulated.problem, maximal_rate=0.95, initial_rate=0.0),
            simulated.budget,
            checkpoints,
            LoopProgress(verbose=False, total=None),
            baseline=Evaluation(validation.baseline, torch.from_numpy(validation.baseline_scores)),
        )

    first, *later = heard.told
    assert first.standard_error == 1 / (PROBLEM.N + 2)  # the baseline, compared with itself
    assert first.margin == pytest.approx(PROBLEM.drop, abs=1e-12)
    assert len(later) == 25
    assert all(result.standard_error and result.standard_error > 1.5 / PROBLEM.N for result in later)
    for told, of_the_simulator in zip(heard.told, expected, strict=True):
        assert told == of_the_simulator.model_copy(
            update={"requested_rate": told.requested_rate, "achieved_rate": told.achieved_rate}
        )
        assert told.achieved_rate == pytest.approx(of_the_simulator.achieved_rate, abs=1e-12)


def test_a_stage_tells_the_policy_the_number_of_validation_examples(tmp_path: Path) -> None:
    """By which the policy chooses `acceptance_z` if no standard error is known."""
    folder = small_search.search(tmp_path).folder
    store = CheckpointStore(tmp_path)
    latest = store.load(folder.name, store.numbers_of(folder.name)[-1])
    state = FrontierState.model_validate_json(json.dumps(latest.value("search")))
    assert state.problem.num_validation == len(small_search.split(24)["targets"])
