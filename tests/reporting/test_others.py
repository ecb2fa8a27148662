"""Why other models were not delivered: for each that looks better, the reason in words."""

from __future__ import annotations

import pandas as pd
import pytest

from kedro_aat.delivery.environment import processor_name
from kedro_aat.delivery.results import Summary
from kedro_aat.export.settings import TargetObjective
from kedro_aat.reporting.figures import frontier_figure
from kedro_aat.reporting.others import Choice, not_delivered
from tests.reporting.runs import changed, summary_of, trajectory_of


def reasons(summary: Summary, trajectory: pd.DataFrame, choice: Choice | None = None) -> dict[str, str]:
    return {model.name: model.why for model in not_delivered(trajectory, summary, choice or Choice())}


def single(summary: Summary) -> Summary:
    """The run with its first stage alone, whose model is delivered."""
    first = summary.candidates[0]
    return changed(summary, stages=summary.stages[:1], candidates=[first], delivered=first.name, delivered_id=first.id)


@pytest.mark.parametrize("is_higher_better", [True, False])
def test_epochs_that_look_better_than_the_delivered_one(is_higher_better: bool) -> None:
    summary = single(summary_of("certified", is_higher_better=is_higher_better))
    broken, tolerated = ("0.7000", "at least 0.8500") if is_higher_better else ("0.6000", "at most 0.4500")
    assert reasons(summary, trajectory_of(summary)) == {
        "epoch 4": f"It breaks the budget: {broken}, where {tolerated} is tolerated.",
        "epoch 1": "It is larger: its rate is 0.5000, and another within budget has 0.8000.",
    }


def test_model_that_was_passed_on_is_compared_in_its_stage() -> None:
    summary = summary_of("certified")
    found = reasons(summary, trajectory_of(summary))
    assert found.keys() == {"filter pruning", "stage 1, epoch 4", "stage 1, epoch 1"}
    assert found["filter pruning"] == "The objective is the fewest bytes: 2,000, but the delivered file has 400."


def test_smaller_epoch_within_budget_that_the_search_did_not_return() -> None:
    summary = single(summary_of("certified"))
    trajectory = trajectory_of(summary)
    trajectory.loc[4, ["metric", "margin"]] = [0.86, 0.01]
    found = reasons(summary, trajectory)["epoch 4"]
    assert found.startswith(
        "It kept the budget in this epoch. Epoch 2 was returned as the latest that also kept a reserve"
    )
    stepping = reasons(summary, trajectory, Choice(search="interpolate"))["epoch 4"]
    assert stepping == "It kept the budget in this epoch, but the search returned another model."
    minimal = reasons(summary, trajectory, Choice(minimal_rate=0.95))["epoch 4"]
    assert minimal == "A rate of 0.9000 was asked for, and minimal_rate is 0.95."
    trajectory["fully_compressed"] = False
    assert "schedule of the rate had not ended" in reasons(summary, trajectory)["epoch 4"]
    lost = "All 5 epochs were used. Validated again, checkpoint 4 broke the budget."
    again = changed(summary, stages=[summary.stages[0].model_copy(update={"reason": lost})])
    assert reasons(again, trajectory_of(summary).assign(**{"margin": trajectory["margin"]}))["epoch 4"] == lost


def test_goal_of_accuracy_chooses_by_the_metric() -> None:
    summary = changed(summary_of("certified"), goal="accuracy")
    found = reasons(summary, trajectory_of(summary))
    assert found["filter pruning"].startswith("The goal is accuracy: BinaryAccuracy is 0.8800, but")
    assert found["stage 1, epoch 1"] == "It is larger: its rate is 0.5000, and export.limits needs more."


def test_the_goal_of_accuracy_compares_the_files_that_would_be_shipped() -> None:
    run = summary_of("certified")
    metrics = zip(run.candidates, (0.86, 0.87), strict=True)
    judged = [
        each.model_copy(update={"shipped": "openvino", "validations": {"openvino": metric}}) for each, metric in metrics
    ]
    summary = changed(run, goal="accuracy", candidates=[each.model_dump() for each in judged])
    found = not_delivered(trajectory_of(summary), summary, Choice())[0]
    assert found.metric == 0.86
    assert found.why == "The goal is accuracy: BinaryAccuracy is 0.8600, but the delivered file has 0.8700."
    unjudged = [judged[0].model_copy(update={"validations": {}}), judged[1]]
    summary = changed(run, goal="accuracy", candidates=[each.model_dump() for each in unjudged])
    found = not_delivered(trajectory_of(summary), summary, Choice())[0]
    assert found.metric is None
    assert found.why == "The goal is accuracy: BinaryAccuracy is not judged, but the delivered file has 0.8700."


def test_latency_is_that_at_the_batch_size_of_the_objective() -> None:
    summary = summary_of("certified")
    objective = TargetObjective.model_validate({"target": "onnx", "latency_ms": 64})
    assert reasons(summary, trajectory_of(summary), Choice(objective))["filter pruning"] == (
        "The objective is the lowest latency at batch 64: 0.800 ms, but the delivered file has 0.160 ms."
    )


def test_only_candidates_are_named_if_nothing_is_delivered() -> None:
    summary = changed(summary_of("infeasible"), rejected={"filter_pruning": "macs are 5,000"})
    assert reasons(summary, trajectory_of(summary)) == {"filter pruning": "macs are 5,000"}


def test_tooltip_says_why() -> None:
    summary = single(summary_of("certified"))
    trajectory = trajectory_of(summary)
    figure = frontier_figure(trajectory, summary, not_delivered(trajectory, summary, Choice()))
    texts = [text.replace("<br>", " ") for trace in figure.data for text in trace.text or ()]
    assert sum("Not delivered: It is larger: its rate is 0.5000" in text for text in texts) == 1
    assert sum("Not delivered" in text for text in texts) == 2


def test_processor_has_a_name() -> None:
    assert processor_name().strip()
