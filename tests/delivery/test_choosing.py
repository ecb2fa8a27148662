"""The choice for another budget, on made-up files: a larger budget never gives a worse file by the objective."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kedro_aat.budget import Budget, Outcome
from kedro_aat.delivery.choosing import Option, choose
from kedro_aat.delivery.costs import Costs
from kedro_aat.delivery.files import Files
from kedro_aat.delivery.finished import FinishedSteps
from kedro_aat.delivery.measurements import DeviceCosts
from kedro_aat.delivery.on_device import Device
from kedro_aat.delivery.results import ExportResult
from kedro_aat.errors import DamagedCheckpointError
from kedro_aat.export.settings import ExportSettings
from kedro_aat.training.records import EpochRecord
from tests.delivery.made_up import BASELINE, DATA, TRAINING, Tools, made

ACCURACY = 0.9  # of the baseline


@pytest.fixture(autouse=True)
def costs(monkeypatch: pytest.MonkeyPatch, tools: Tools) -> None:
    """Costs of made-up models, as `costs_by_objective` measures them."""

    def by_objective(
        models: list[Any], rates: list[float], _: Any, settings: ExportSettings, finished: FinishedSteps
    ) -> list[Costs]:
        device = None if settings.without_device is settings else Device.of(settings, finished)
        return [
            Costs(
                rate=rate,
                parameters=model.parameters_,
                macs=model.macs,
                onnx_bytes=model.bytes,
                latency_fastest_ms=model.fastest if settings.objective == "latency" else None,
                device=None
                if device is None
                else DeviceCosts(target="onnx", **device.measured(Files(model)).model_dump()),
            )
            for model, rate in zip(models, rates, strict=True)
        ]

    monkeypatch.setattr("kedro_aat.delivery.costs.costs_by_objective", by_objective)


def option(number: int, metric: float, *, stage: int = 1, rate: float = 0.5, **properties: Any) -> Option:
    """A model that a search kept.

    Args:
        number: Number of its checkpoint.
        metric: Its metric when the search judged it; its files have the same, unless `properties` say otherwise.
        stage: Its stage.
        rate: Its rate.
        **properties: What its files would show.
    """
    name = f"stage {stage}, checkpoint {number}"
    record = EpochRecord(
        checkpoint=number,
        epoch=number,
        trained=True,
        started_from=None,
        requested_rate=rate,
        achieved_rate=rate,
        metric=metric,
        margin=metric - ACCURACY,
        standard_error=None,
        loss=None,
        learning_rate=None,
        lr_scale=1.0,
        fully_compressed=True,
        best_rate=None,
        seconds=1.0,
    )
    properties = {"metrics": dict.fromkeys(("onnx", "pt2", "openvino"), metric)} | properties
    return Option(name, stage, record, lambda: made(name, rate, **properties))


def chosen(options: list[Option], drop: float, **changes: Any) -> ExportResult:
    export = {"batch_sizes": (1, 4), "num_threads": 3, "latency_seconds": 0.25} | changes
    budget = Budget(baseline=ACCURACY, drop=drop)
    _, result = choose(options, BASELINE, DATA, budget, TRAINING, ExportSettings.model_validate(export))
    return result


def cost(result: ExportResult, objective: str) -> float:
    delivered = result.compressed
    if delivered is None:
        return float("inf")
    values = {
        "bytes": delivered.onnx_bytes,
        "parameters": delivered.parameters,
        "macs": delivered.macs,
        "rate": 1 - delivered.rate,
        "latency": (delivered.latency_fastest_ms or {})[1],
    }
    return values[objective]


MODELS = st.lists(
    st.fixed_dictionaries(
        {
            "metric": st.floats(0.5, 0.95),
            "lost": st.sampled_from([0.0, 0.0, 0.01, 0.3]),  # by the export
            "stage": st.integers(1, 3),
            "rate": st.floats(0.1, 0.9),
            "bytes": st.integers(100, 105),
            "parameters": st.integers(1, 5),
            "macs": st.integers(1, 5),
            "fast": st.integers(1, 5),
        }
    ),
    max_size=6,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    models=MODELS,
    drops=st.tuples(st.floats(0, 0.4), st.floats(0, 0.4)),
    objective=st.sampled_from(["bytes", "parameters", "macs", "rate", "latency"]),
    limit=st.none() | st.integers(100, 105),
)
def test_a_larger_budget_never_gives_a_worse_file_and_every_file_is_within_it(
    models: list[dict[str, Any]], drops: tuple[float, float], objective: str, limit: int | None
) -> None:
    options = []
    for number, model in enumerate(models):
        metrics = dict.fromkeys(("onnx", "pt2", "openvino"), model["metric"] - model["lost"])
        properties = {key: model[key] for key in ("stage", "rate", "bytes", "parameters", "macs")}
        fastest = {1: float(model["fast"]), 4: 1.0}
        options.append(option(number, model["metric"], metrics=metrics, fastest=fastest, **properties))
    small, large = sorted(drops)
    export: dict[str, Any] = {"objective": objective, "limits": {} if limit is None else {"onnx_bytes": limit}}
    results = [chosen(options, drop, **export) for drop in (small, large)]
    assert cost(results[1], objective) <= cost(results[0], objective)
    for drop, result in zip((small, large), results, strict=True):
        delivered = result.compressed
        assert (result.outcome is Outcome.WITHIN_BUDGET) == (delivered is not None)
        if delivered is not None:
            assert delivered.validation >= ACCURACY - drop - 1e-9
            assert limit is None or delivered.onnx_bytes <= limit
        keeps = [
            number
            for number, model in enumerate(models)
            if model["metric"] - model["lost"] > ACCURACY - drop + 1e-9 and (limit is None or model["bytes"] <= limit)
        ]
        assert delivered is not None or not keeps


def test_models_of_later_stages_are_among_them() -> None:
    result = chosen([option(1, 0.9, bytes=500), option(1, 0.9, stage=2, bytes=200)], 0.05, objective="bytes")
    assert result.delivered == "stage 2, checkpoint 1"
    assert [each.onnx_bytes for each in result.candidates] == [200]


def test_what_cannot_be_delivered_is_said_and_the_next_is_taken() -> None:
    def lost() -> Any:
        raise DamagedCheckpointError("checkpoint-000003 is damaged")

    damaged = option(3, 0.9, bytes=10)
    damaged = Option(damaged.name, damaged.stage, damaged.record, lost)
    broken = option(4, 0.9, bytes=20, metrics={"onnx": 0.5})
    result = chosen([damaged, broken, option(5, 0.88, bytes=30), option(6, 0.5, bytes=5)], 0.05, objective="bytes")
    assert result.delivered == "stage 1, checkpoint 5"
    assert result.rejected["stage 1, checkpoint 3"] == "checkpoint-000003 is damaged"
    assert "breaks the budget: 0.5000" in result.rejected["stage 1, checkpoint 4"]


def test_the_most_accurate_one_is_chosen_if_accuracy_is_the_goal() -> None:
    export = ExportSettings.model_validate({"batch_sizes": (1, 4), "num_threads": 3, "latency_seconds": 0.25})
    options = [option(1, 0.88, bytes=10), option(2, 0.89, bytes=20)]
    budget = Budget(baseline=ACCURACY, drop=0.05)
    _, result = choose(options, BASELINE, DATA, budget, TRAINING, export, goal="accuracy")
    assert result.delivered == "stage 1, checkpoint 2"


@pytest.mark.parametrize(("answer", "delivered"), [({"memory_bytes": 2}, 2), (None, 1)])
def test_the_device_chooses_unless_it_fails(
    answer: Any, delivered: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BASELINE, "on_device", {"memory_bytes": 9})
    one = option(1, 0.89, bytes=10, on_device={"memory_bytes": 3})
    other, unfit = option(2, 0.88, bytes=20, on_device=answer), option(3, 0.5, bytes=5)
    named = {"objective": "device_memory", "measure_with": "tests.delivery.test_on_device.made_up"}
    assert chosen([one, other, unfit], 0.05, **named).delivered == f"stage 1, checkpoint {delivered}"
    assert caplog.text.count("bytes decides instead of device_memory") == (answer is None)


def test_no_more_models_are_tried_if_the_device_checks_no_limit(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BASELINE, "on_device", {"latency_ms": 9})
    several = [option(number, 0.89, bytes=10 * number, on_device={"latency_ms": 1}) for number in (1, 2, 3)]
    dying = {"class_path": "tests.delivery.test_on_device.Dying", "init_args": {"num_answers": 1}}
    result = chosen(several, 0.05, measure_with=dying, limits={"device_latency_ms": 3})
    assert result.delivered is None
    assert list(result.rejected) == ["stage 1, checkpoint 1"]
    assert "Models within the chosen budget: 3. The device measured no file any more" in result.reason
    assert caplog.text.count("did not measure a file: TimeoutError") == 1


def test_without_a_model_within_budget_nothing_is_delivered() -> None:
    result = chosen([option(1, 0.5), option(2, 0.6)], 0.05)
    assert (result.outcome, result.delivered) == (Outcome.INFEASIBLE, None)
    assert result.reason == "None of the 2 models that the searches kept is within the chosen budget."
