"""What a run tells about itself: worked out from made-up searches whose limits are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import pytest

from kedro_aat.compression.settings import CompressionSettings, FilterPruning, MagnitudeSparsity
from kedro_aat.delivery.findings import Findings
from kedro_aat.delivery.results import BaselineEvaluation, ExportResult, SearchResult
from kedro_aat.export.settings import ExportSettings
from kedro_aat.reporting.advice import Asked, find
from kedro_aat.reporting.layers import COLUMNS
from kedro_aat.reporting.summary import trajectory
from kedro_aat.search.frontier import Frontier
from kedro_aat.search.policy import Goal
from kedro_aat.search.tactics import Ranking, Tactic, Tactics
from kedro_aat.training.records import EpochRecord
from tests.reporting.runs import candidate, summary_of

BASELINE, DROP = 0.9, 0.05
SECONDS = 6.0  # of an epoch
EVALUATION = BaselineEvaluation.model_validate(
    {
        "metric": {"name": "BinaryAccuracy", "higher_is_better": True},
        "validation": BASELINE,
        "budget": {"kind": "absolute", "drop": DROP, "lowest_tolerated": BASELINE - DROP},
    }
)


def epoch(number: int, rate: float, margin: float, tactic: Tactic | None = None, **changes: Any) -> EpochRecord:
    values: dict[str, Any] = {
        "checkpoint": number,
        "epoch": number,
        "trained": number > 0,
        "started_from": None,
        "requested_rate": rate,
        "achieved_rate": rate,
        "metric": BASELINE - DROP + margin,
        "margin": margin,
        "standard_error": 0.002,
        "loss": None,
        "learning_rate": 0.1,
        "lr_scale": 1.0,
        "fully_compressed": True,
        "best_rate": None,
        "seconds": SECONDS,
        "tactic": tactic,
    }
    return EpochRecord(**values | changes)


def found(
    steps: Sequence[tuple[float, float] | EpochRecord],
    *,
    best: int | None,
    allowed: int | None = None,
    layers: list[tuple[str, float, str]] | None = None,
    tactics: Tactics | None = None,
    trains: bool = True,
    goal: Goal = "size",
    divides: bool = False,
    export_settings: ExportSettings | None = None,
    devices: tuple[Any, Any] = (None, None),
    maximal_rate: float = 0.998,
    compression: CompressionSettings | None = None,
    **changes: Any,
) -> Findings:
    """What is found of a search.

    Args:
        steps: Rate and margin of each epoch after the first validation.
        best: Number of the epoch that it returned; None for none.
        allowed: Epochs that were allowed; None for those that were used.
        layers: Name, rate and shape of each layer.
        tactics: What the search might try.
        trains: Whether the run trained.
        goal: What is wanted.
        divides: Whether weights were divided among devices.
        export_settings: Settings of the export; None for the defaults.
        devices: What the user's device says of the delivered file, and of the other one.
        maximal_rate: Highest rate that was allowed.
        compression: Settings of the algorithm.
        **changes: Changes of the search's result.
    """
    rows = [
        step if isinstance(step, EpochRecord) else epoch(number, step[0], step[1])
        for number, step in enumerate(steps, 1)
    ]
    history = [epoch(0, 0.0, DROP), *rows]
    returned = history[best] if best is not None else None
    rate = returned.achieved_rate if returned else 0.0
    result = summary_of("within_budget").stages[0].model_dump() | {
        "outcome": "within_budget" if returned else "infeasible",
        "budget": EVALUATION.budget,
        "rate": {"requested": rate, "achieved": rate},
        "best_checkpoint": best,
        "standard_error": returned.standard_error if returned else None,
        "epochs": {"used": len(rows), "allowed": allowed or len(rows)},
        "highest_rate": 0.998,
    }
    table = [
        {"stage": 1, "algorithm": "filter_pruning", "layer": name, "rate": share, "shape": shape}
        for name, share, shape in layers or []
    ]
    delivered = candidate("filter_pruning", 1, best or 0, rate, 0.5, BASELINE) | {"device": devices[0]}
    other = candidate("quantization", 2, 1, 1.0, 0.6, BASELINE) | {"device": devices[1]}
    export = summary_of("within_budget").model_dump()["baseline"]
    return find(
        trajectory(history).assign(stage=1),
        pd.DataFrame(table).reindex(columns=list(COLUMNS)).astype(COLUMNS),
        EVALUATION,
        {1: SearchResult.model_validate(result | changes)},
        ExportResult.model_validate(
            {
                "outcome": "within_budget" if returned else "infeasible",
                "reason": "The search ended.",
                "delivered": "filter_pruning" if returned else None,
                "baseline": export,
                "compressed": delivered if returned else None,
                "candidates": [delivered, other] if returned else [],
                "rejected": {},
            }
        ),
        Asked(
            export_settings or ExportSettings(),
            {1: Frontier(tactics=tactics or Tactics())},
            False,
            trains,
            goal,
            divides,
            maximal_rate,
            compression,
        ),
    )


def kinds(findings: Findings) -> list[str]:
    return [limit.kind for limit in findings.limits]


def changes(findings: Findings) -> list[str]:
    return [step.change for step in findings.next_steps]


def test_a_search_that_ended_by_itself_at_the_top_was_limited_by_nothing() -> None:
    findings = found([(0.5, 0.03), (0.95, 0.02)], best=2, allowed=50, highest_rate=0.95, maximal_rate=0.95)
    assert kinds(findings) == ["nothing"]
    assert (
        "nothing did. The search ended by itself at the highest rate, 0.9500, after 2 of 50" in findings.limits[0].words
    )
    assert "maximal_rate: above 0.95" in changes(findings)
    assert not any("maximal_total_epochs" in change for change in changes(findings))
    assert kinds(found([(0.5, 0.03), (0.95, 0.02)], best=2, highest_rate=0.95)) == ["highest_rate"]


@pytest.mark.parametrize(
    ("compression", "change"),
    [
        (FilterPruning(round_to=8), "compression.round_to: 4"),
        (FilterPruning(round_to=4, minimal_channels=16), "compression.minimal_channels: 8"),
        (FilterPruning(), None),
        (MagnitudeSparsity(pattern="2:4"), None),
    ],
)
def test_where_the_model_ends_before_maximal_rate_that_setting_is_no_advice(
    compression: CompressionSettings, change: str | None
) -> None:
    steps: list[tuple[float, float] | EpochRecord] = [(0.5, 0.03), (0.9, 0.02)]
    findings = found(steps, best=2, allowed=50, highest_rate=0.9, maximal_rate=0.998, compression=compression)
    assert not any("maximal_rate" in each for each in changes(findings))
    of_compression = [each for each in changes(findings) if each.startswith("compression.")]
    assert of_compression == ([] if change is None else [change])


def test_int8_as_a_second_stage_is_no_advice_for_divided_weights() -> None:
    steps: list[tuple[float, float] | EpochRecord] = [(0.5, 0.03), (0.95, 0.02)]
    assert any("second_stage" in change for change in changes(found(steps, best=2)))
    assert not any("second_stage" in change for change in changes(found(steps, best=2, divides=True)))


def test_a_search_that_still_gained_at_its_end_was_limited_by_its_epochs() -> None:
    findings = found([(0.1 * number, 0.02) for number in range(1, 10)], best=9)
    assert kinds(findings) == ["epochs"]
    (step,) = [step for step in findings.next_steps if "maximal_total_epochs" in step.change]
    assert step.change == "search.maximal_total_epochs: 18"
    assert (step.epochs, step.minutes) == (9, 9 * SECONDS / 60)
    assert step.cost == "up to 9 epochs, about 54 s"


def test_a_reserve_that_kept_a_smaller_model_back_is_noise() -> None:
    steps = [
        epoch(number, rate, margin, standard_error=0.01)
        for number, (rate, margin) in enumerate([(0.8, 0.02), (0.9, 0.001)], 1)
    ]
    findings = found([*steps, *(epoch(number, 0.8, 0.02) for number in range(3, 9))], best=1)
    assert kinds(findings) == ["noise"]
    assert "A rate of 0.9000 was measured within budget" in findings.limits[0].words
    assert "The standard error of a drop is 0.01, 20% of the budget." in findings.limits[0].words
    step = findings.next_steps[0]
    assert (step.change, step.cost) == ("kedro aat choose --max-drop 0.05", "no training")


def test_a_standard_error_as_large_as_the_budget_is_noise_and_asks_for_examples() -> None:
    steps = [epoch(number, 0.8, 0.02, standard_error=DROP) for number in range(1, 9)]
    findings = found(steps, best=1)
    assert kinds(findings) == ["noise"]
    assert "9 times as many validation examples" in changes(findings)


def test_a_steep_fall_names_the_layer_that_has_lost_the_most() -> None:
    steps = [(0.8, 0.04), (0.82, -0.5), *[(0.8, 0.04)] * 6]
    layers = [("stem", 0.2, "12x3x3x3"), ("middle", 0.3, "20x12x3x3"), ("neck", 0.98, "1x20x3x3")]
    findings = found(steps, best=1, layers=layers)
    assert kinds(findings) == ["layer"]
    words = (
        "From a rate of 0.8000 to 0.8200 the metric fell by 10.8 budgets. Of the layers, neck had lost the most before "
        "it, 98%, and 1x20x3x3"
    )
    assert words in findings.limits[0].words
    assert "compression.ignored_scopes: [neck]" in changes(findings)
    assert kinds(found(steps, best=1)) == ["budget"]  # without layers there is none to name


def test_the_time_limit_is_told_with_the_epochs_that_are_left() -> None:
    steps = [(0.8, 0.02)] * 8
    findings = found(steps, best=1, allowed=20, seconds={"used": 47.0, "limit": 50.0})
    assert kinds(findings) == ["time"]
    (step,) = [step for step in findings.next_steps if "time_limit" in step.change]
    assert step.epochs == 12


def test_otherwise_it_was_the_budget_and_a_larger_one_is_offered_with_what_it_gives() -> None:
    findings = found([(0.8, 0.001), (0.9, -0.03), *[(0.8, 0.001)] * 7], best=1)
    assert kinds(findings) == ["budget"]
    assert "The best model at a higher rate, 0.9000, broke it by 0.03." in findings.limits[0].words
    step = findings.next_steps[0]
    assert step.change.startswith("kedro aat choose --max-drop 0.08")
    assert float(step.change.split()[-1]) >= DROP + 0.03 - 1e-9  # or it would not be enough
    assert "a rate of 0.9000 instead of 0.8000" in step.words


def test_the_drop_that_is_offered_is_never_rounded_below_what_is_needed() -> None:
    findings = found([(0.8, 0.001), (0.9, -0.0123456712), *[(0.8, 0.001)] * 7], best=1)
    step = findings.next_steps[0]
    assert step.change == "kedro aat choose --max-drop 0.0623457"
    assert "result.choose(max_drop=0.0623457)" in step.words
    findings = found([(0.8, 0.001), (0.9, -0.0123451), *[(0.8, 0.001)] * 7], best=1)
    assert findings.next_steps[0].change == "kedro aat choose --max-drop 0.0623451"
    findings = found([(0.8, 0.001), (0.9, -0.01234511), *[(0.8, 0.001)] * 7], best=1)
    assert findings.next_steps[0].change == "kedro aat choose --max-drop 0.0623452"


def test_for_the_most_accurate_model_files_are_compared_by_the_metric() -> None:
    findings = found([(0.8, 0.001), (0.9, -0.03), *[(0.8, 0.001)] * 7], best=1, goal="accuracy")
    assert f"the best of 2 files by BinaryAccuracy ({BASELINE:.4f}); the others: quantization" in findings.chosen[-1]
    assert not any("kedro aat choose" in change for change in changes(findings))


def test_without_any_model_within_budget_it_says_how_near_it_came() -> None:
    findings = found([(0.3, -0.2), (0.3, -0.1), (0.3, -0.05)], best=None)
    assert kinds(findings) == ["epochs"]
    assert "the best margin still rose, from -0.1 to -0.05" in findings.limits[0].words
    assert findings.chosen[0].endswith(
        "0 of 3 epochs were within budget; the nearest compressed model has a margin of -0.05."
    )
    assert findings.chosen[1] == "No file is delivered. The search ended."


def test_every_way_that_was_tried_is_listed_with_what_it_reached() -> None:
    first = Tactic(ranking=Ranking(importance="l2", ranking="local"), distill=True)
    second = Tactic(ranking=Ranking(importance="taylor", ranking="global"), distill=False)
    steps = [
        epoch(1, 0.5, 0.01, first, lr_scale=3.0),
        epoch(2, 0.7, -0.2, first, lr_scale=0.1),
        epoch(3, 0.9, 0.0, second),
    ]
    findings = found(
        [*steps, epoch(4, 0.9, 0.0, second, metric=None, loss=None)], best=3, tactics=Tactics(importance=("l2",))
    )
    assert [(each.importance, each.ranking, each.distilled, each.highest_rate) for each in findings.tried] == [
        ("l2", "local", True, 0.5),
        ("taylor", "global", False, 0.9),
    ]
    assert findings.tried[0].learning_rate_factors == (0.1, 3.0)
    assert "Stage 1: 2 epochs, ranked by l2 (local), with the baseline as teacher" in findings.tried[0].words
    assert "search.tactics.importance: null" in changes(findings)


def test_the_delivered_file_is_compared_with_the_others_by_the_objective() -> None:
    findings = found([(0.8, 0.02)] * 3, best=1)
    why = "filter_pruning is delivered: the best of 2 files by export.objective bytes (2,000)"
    assert f"{why}; the others: quantization 2,400." in findings.chosen
    assert [title for title, _ in findings.sections] == [
        "Tried",
        "What limited the result",
        "Within budget, and why this file",
        "What to try next",
    ]


def test_it_is_said_what_decided_instead_of_a_device_that_failed() -> None:
    settings = ExportSettings.model_validate(
        {"measure_with": "examples.device.measure.Board", "objective": "device_memory"}
    )
    answer = {"target": "onnx", "memory_bytes": 5000}
    answered = found(
        [(0.8, 0.02)] * 3, best=1, export_settings=settings, devices=(answer, answer | {"memory_bytes": 6000})
    )
    why = "filter_pruning is delivered: the best of 2 files by export.objective"
    assert f"{why} device_memory (5,000); the others: quantization 6,000." in answered.chosen
    failed = found(
        [(0.8, 0.02)] * 3, best=1, export_settings=settings, devices=(answer, {"target": "onnx", "failure": "no board"})
    )
    assert f"{why} bytes (2,000); the others: quantization 2,400." in failed.chosen
    assert any("(no board). bytes decides instead of device_memory" in words for words in failed.chosen)


def test_after_a_delivery_without_training_the_first_thing_to_do_is_to_go_on() -> None:
    findings = found([(0.5, 0.03), (0.8, 0.02)], best=2, allowed=9, trains=False)
    (step,) = [step for step in findings.next_steps if step.change == "kedro run"]
    assert step.epochs == 7
    assert kinds(findings) == ["epochs"]
    assert findings.limits[0].words == "Stage 1: the epochs so far. 2 of 9 were used."
    assert Findings.model_validate_json(findings.model_dump_json()) == findings
