"""Fallbacks from the Pareto front: which models may be delivered instead, and the layer table of a delivered one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from kedro_aat.budget import Budget, Outcome
from kedro_aat.compression.build import build_controller
from kedro_aat.compression.controller import ModelController
from kedro_aat.compression.settings import MagnitudeSparsity, Quantization
from kedro_aat.delivery.candidates import Candidate, front_candidates, stage_candidates
from kedro_aat.delivery.measurements import CandidateResult, Measurements
from kedro_aat.delivery.results import (
    BudgetResult,
    EpochCount,
    ExportResult,
    Rates,
    SearchResult,
    SkippedSearch,
    WallTime,
)
from kedro_aat.errors import CheckpointError
from kedro_aat.pipelines.aat.reporting import describe_layers
from kedro_aat.testing.store_saving import flip_a_bit
from kedro_aat.training.checkpoints import Checkpoint, CheckpointStore
from tests.nets import Perceptron
from tests.reporting.runs import epochs

BUDGET = Budget(baseline=0.9, drop=0.05)
# The search returned the last model. Two of the others have rates that agree in four digits.
RATES = (0.0, 0.50001, 0.50003, 0.8)
METRICS = (0.9, 0.89, 0.88, 0.87)


def search_result(run: str) -> SearchResult:
    return SearchResult(
        algorithms=["magnitude_sparsity"],
        outcome=Outcome.WITHIN_BUDGET,
        reason="",
        budget=BudgetResult.model_validate(BUDGET),
        validation=METRICS[3],
        standard_error=None,
        rate=Rates(requested=0.8, achieved=0.8),
        epochs=EpochCount(used=3, allowed=3),
        seconds=WallTime(used=1.0, limit=None),
        best_checkpoint=3,
        device="cpu",
        run=run,
    )


def export_of(stage: int | None, checkpoint: int | None = None) -> ExportResult:
    """Result of an export that delivers the model of a checkpoint.

    Args:
        stage: Search stage of the model; None if no model is delivered.
        checkpoint: Number of its checkpoint.
    """
    costs = Measurements(parameters=1, nonzero_parameters=1, macs=1, onnx_bytes=1, onnx_gzip_bytes=1)
    delivered = None
    if stage is not None:
        delivered = CandidateResult(
            name="model", stage=stage, checkpoint=checkpoint, rate=0.5, validation=0.9, **costs.model_dump()
        )
    return ExportResult(
        outcome=Outcome.WITHIN_BUDGET,
        reason="",
        delivered="model",
        baseline=costs,
        compressed=delivered,
        candidates=[],
        rejected={},
    )


class FinishedSearch:
    """A search that has ended: its controller at the returned rate, and the checkpoints of all epochs."""

    def __init__(self, folder: Path) -> None:
        self.controller: ModelController = build_controller(Perceptron([6, 300, 300, 4]), MagnitudeSparsity())
        self.store = CheckpointStore(folder)
        with self.store.open({}) as run:
            for number, rate in enumerate(RATES):
                self.controller.compression_rate = rate
                training = {"controller": self.controller.get_state()}
                run.save(Checkpoint(number, dict(self.controller.model.state_dict()), training, {}))
        steps = list(zip(RATES, METRICS, strict=True))
        self.trajectory = epochs(1, steps, baseline=0.9, is_higher_better=True).drop(columns="stage")
        self.result = search_result(run.folder.name)

    def fallbacks(self, **options: Any) -> list[Candidate]:
        return list(front_candidates(self.controller, self.trajectory, self.result, self.store, BUDGET, **options))


@pytest.fixture
def search(tmp_path: Path) -> FinishedSearch:
    return FinishedSearch(tmp_path)


def test_each_fallback_has_a_unique_name_and_its_rate(search: FinishedSearch) -> None:
    fallbacks = search.fallbacks()
    assert [fallback.checkpoint for fallback in fallbacks] == [2, 1]
    assert len({fallback.name for fallback in fallbacks}) == 2
    for fallback in fallbacks:
        weights = [weight for name, weight in fallback.model.named_parameters() if name in set(fallback.weight_names)]
        zeros = sum(int((weight == 0).sum()) for weight in weights)
        assert zeros / sum(weight.numel() for weight in weights) == pytest.approx(fallback.rate, abs=0.01)


def test_fallback_knows_its_checkpoint_and_how_it_was_measured(search: FinishedSearch) -> None:
    first, second = search.fallbacks()
    assert (first.rate, second.rate) == (0.50003, 0.50001)
    assert (first.requested_rate, second.requested_rate) == (0.50003, 0.50001)
    assert (first.stage, first.checkpoint) == (1, 2)
    assert first.standard_error == 0.01
    assert first.name == "magnitude_sparsity at rate 0.5000 (checkpoint 2)"
    assert list(first.weight_names) == list(search.controller.weight_names)


def test_fallbacks_keep_the_budget_and_are_less_compressed(search: FinishedSearch) -> None:
    result = search.result.model_copy(update={"rate": Rates(requested=0.50003, achieved=0.50003)})
    budget = Budget(baseline=0.9, drop=0.015)
    (fallback,) = front_candidates(search.controller, search.trajectory, result, search.store, budget)
    assert fallback.checkpoint == 1
    exactly_kept = Budget(baseline=1.0, drop=0.125)
    trajectory = search.trajectory.assign(metric=[0.9, 0.875, 0.8, 0.75])
    (fallback,) = front_candidates(search.controller, trajectory, search.result, search.store, exactly_kept)
    assert fallback.checkpoint == 1


def test_damaged_fallback_is_left_out(search: FinishedSearch, caplog: pytest.LogCaptureFixture) -> None:
    flip_a_bit(search.store.root / search.result.run / "checkpoint-000002" / "model.safetensors")
    assert [fallback.checkpoint for fallback in search.fallbacks()] == [1]
    assert "The model at rate 0.5000 is lost, and is no candidate: " in caplog.text


def test_trajectory_of_another_version_may_have_more_columns(search: FinishedSearch) -> None:
    search.trajectory["gradient_norm"] = 1.0
    assert len(search.fallbacks()) == 2


def test_fallbacks_do_not_change_the_controller_of_the_search(search: FinishedSearch) -> None:
    before = [parameter.clone() for parameter in search.controller.model.parameters()]
    rate = search.controller.compression_rate
    assert len(search.fallbacks()) == 2
    assert search.controller.compression_rate == rate
    for parameter, expected in zip(search.controller.model.parameters(), before, strict=True):
        assert parameter.equal(expected)


@pytest.mark.parametrize("algorithms", [(MagnitudeSparsity(), Quantization()), (MagnitudeSparsity(),) * 2])
def test_candidates_that_the_stages_returned(search: FinishedSearch, algorithms: tuple[Any, ...]) -> None:
    controllers = [build_controller(Perceptron([6, 8, 4]), settings) for settings in algorithms]
    for controller in controllers:
        controller.model(torch.rand(3, 6))
    first_result = search.result.model_copy(update={"standard_error": 0.02})
    second_result = search.result.model_copy(
        update={"rate": Rates(requested=0.9, achieved=0.75), "best_checkpoint": None}
    )
    first, second = stage_candidates([(1, controllers[0], first_result), (2, controllers[1], second_result)])
    if algorithms[0] == algorithms[1]:
        assert (first.name, second.name) == ("magnitude_sparsity (stage 1)", "magnitude_sparsity (stage 2)")
    else:
        assert (first.name, second.name) == ("magnitude_sparsity", "quantization")
    assert (first.rate, first.requested_rate, first.standard_error, first.checkpoint) == (0.8, 0.8, 0.02, 3)
    assert (second.rate, second.requested_rate, second.standard_error, second.checkpoint) == (0.75, 0.9, None, None)
    assert list(first.weight_names) == list(controllers[0].weight_names) != []
    for candidate, controller in zip((first, second), controllers, strict=True):
        inputs = torch.rand(3, 6)
        assert candidate.model is not controller.model
        assert candidate.model(inputs).allclose(controller.strip()(inputs))


def test_fallbacks_have_at_least_the_minimal_rate(search: FinishedSearch) -> None:
    assert [fallback.checkpoint for fallback in search.fallbacks(minimal_rate=0.50002)] == [2]
    assert [fallback.checkpoint for fallback in search.fallbacks(minimal_rate=0.50003)] == [2]
    assert not search.fallbacks(minimal_rate=0.6)


def test_an_unknown_standard_error_stays_unknown(search: FinishedSearch, tmp_path: Path) -> None:
    search.trajectory = search.trajectory.assign(standard_error=float("nan"))
    search.trajectory.to_parquet(tmp_path / "trajectory.parquet")
    search.trajectory = pd.read_parquet(tmp_path / "trajectory.parquet")
    assert [fallback.standard_error for fallback in search.fallbacks()] == [None, None]


def test_layer_table_describes_the_delivered_model(search: FinishedSearch) -> None:
    def zeros(result: ExportResult) -> int:
        controllers = (search.controller, search.controller)
        table = describe_layers(*controllers, search.result, SkippedSearch(outcome="skipped"), result, search.store)
        return int(table["zeros"].sum())

    best_zeros, fallback_zeros = zeros(export_of(1, 3)), zeros(export_of(1, 1))
    assert fallback_zeros / best_zeros == pytest.approx(0.5 / 0.8, abs=0.02)
    assert zeros(export_of(None)) == best_zeros


def test_layer_table_of_a_damaged_fallback_says_what_to_do(search: FinishedSearch) -> None:
    flip_a_bit(search.store.root / search.result.run / "checkpoint-000001" / "model.safetensors")
    controllers = (search.controller, search.controller)
    with pytest.raises(CheckpointError, match=r"checkpoint-000001 is damaged: .*from the node export_model on"):
        describe_layers(*controllers, search.result, SkippedSearch(outcome="skipped"), export_of(1, 1), search.store)


def test_layer_table_of_a_first_stage_fallback_has_no_second_stage(search: FinishedSearch) -> None:
    second = build_controller(search.controller.strip(), MagnitudeSparsity())
    for delivered, stages in ((export_of(2, 1), {1, 2}), (export_of(1, 1), {1})):
        table = describe_layers(search.controller, second, search.result, search.result, delivered, search.store)
        assert set(table["stage"]) == stages
