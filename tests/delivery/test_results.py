"""Results that nodes pass to each other: what their methods and validators derive."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from kedro_aat.budget import Budget, Outcome
from kedro_aat.delivery.measurements import Measurements
from kedro_aat.delivery.results import (
    BaselineEvaluation,
    BudgetResult,
    ExportResult,
    MetricInfo,
    SearchResult,
    SkippedSearch,
    Summary,
)
from tests.reporting.runs import changed, summary_of

COSTS = Measurements(parameters=1, nonzero_parameters=1, macs=1, onnx_bytes=1, onnx_gzip_bytes=1)


@pytest.fixture(scope="module")
def delivered() -> Summary:
    return summary_of("within_budget")


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_budget_of_a_baseline_judges_metrics(higher_is_better: bool) -> None:
    own = BudgetResult(kind="relative", drop=0.25, lowest_tolerated=0.25)
    evaluation = BaselineEvaluation(
        metric=MetricInfo(name="metric", higher_is_better=higher_is_better), validation=0.5, budget=own
    )
    assert evaluation.budget_of() == Budget(kind="relative", baseline=0.5, drop=0.25, higher_is_better=higher_is_better)
    other = BudgetResult(kind="absolute", drop=0.125, lowest_tolerated=0.375)
    assert evaluation.budget_of(other) == Budget(baseline=0.5, drop=0.125, higher_is_better=higher_is_better)


@pytest.mark.parametrize("is_delivered", [True, False])
@pytest.mark.parametrize("has_candidates", [True, False])
def test_limits_are_broken_if_files_keep_the_budget_and_none_is_delivered(
    delivered: Summary, is_delivered: bool, has_candidates: bool
) -> None:
    (first, _) = delivered.candidates
    export = ExportResult(
        outcome=Outcome.WITHIN_BUDGET if is_delivered else Outcome.INFEASIBLE,
        reason="",
        delivered=first.name if is_delivered else None,
        baseline=COSTS,
        compressed=first if is_delivered else None,
        candidates=[first] if has_candidates else [],
        rejected={},
    )
    summary = changed(delivered, delivered=export.delivered, candidates=export.candidates)
    assert export.breaks_limits == summary.breaks_limits == (has_candidates and not is_delivered)


def test_nothing_is_delivered_if_no_candidate_has_the_identity(delivered: Summary) -> None:
    assert changed(delivered, delivered_id="stage-1-checkpoint-77").delivered_candidate is None
    assert summary_of("infeasible").delivered_candidate is None


def test_stages_of_a_candidate_are_those_that_changed_it(delivered: Summary) -> None:
    first, second = delivered.candidates
    assert delivered.stages_of(first) == [1]
    assert delivered.stages_of(second) == [1, 2]
    nothing_found: list[SearchResult] = [
        delivered.stages[0].model_copy(update={"outcome": Outcome.INFEASIBLE}),
        delivered.stages[1],
    ]
    assert changed(delivered, stages=nothing_found).stages_of(second) == [2]


def test_a_third_stage_keeps_its_number_if_the_second_was_skipped(delivered: Summary) -> None:
    first, last = delivered.stages
    third = delivered.candidates[1].model_copy(update={"stage": 3})
    stages = [first.model_copy(update={"stage": 1}), last.model_copy(update={"stage": 3})]
    summary = changed(delivered, stages=stages)
    assert list(summary.numbered_stages) == [1, 3]
    assert summary.stages_of(third) == [1, 3]
    assert summary.stages_of(delivered.candidates[0]) == [1]


def test_identity_is_found_by_name_only_if_it_is_missing(delivered: Summary) -> None:
    data = delivered.model_dump(mode="json")
    first, second = delivered.candidates
    assert Summary.model_validate(data | {"delivered_id": None}).delivered_id == second.id
    assert Summary.model_validate(data | {"delivered_id": first.id}).delivered_id == first.id
    assert Summary.model_validate(data | {"delivered_id": None, "delivered": "another"}).delivered_id is None
    assert Summary.model_validate(data | {"delivered_id": None, "delivered": None}).delivered_id is None


@pytest.mark.parametrize("candidates", [None, "none", [{}]])
def test_wrong_candidates_are_one_error(delivered: Summary, candidates: object) -> None:
    data = delivered.model_dump(mode="json", exclude={"delivered_id", "candidates"})
    with pytest.raises(ValidationError, match="candidates"):
        Summary.model_validate(data)
    with pytest.raises(ValidationError):
        Summary.model_validate(data | {"candidates": candidates})


def test_only_a_result_that_says_so_is_skipped() -> None:
    with pytest.raises(ValidationError, match="outcome"):
        SkippedSearch.model_validate({})
