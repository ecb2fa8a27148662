"""Guards: further metrics, and classes, that every accepted model keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kedro_aat.budget import DropSettings, Outcome
from kedro_aat.delivery.choosing import kept_records
from kedro_aat.errors import ConfigurationError, MetricError
from kedro_aat.reporting.summary import trajectory
from kedro_aat.testing.training import assert_same_bits
from kedro_aat.training.checkpoints import CheckpointStore
from kedro_aat.training.records import pareto_front
from tests.training.guarded_search import PER_CLASS, RARE, RECALL, VALIDATION, Searched, search

HERE = "tests.training.guarded_search"
CALIBRATION = {
    "metric": {"class_path": "torchmetrics.classification.MulticlassCalibrationError", "init_args": {"num_classes": 3}},
    "max_relative_drop": 1.0,
}
PRECISION = {
    "metric": {
        "class_path": "torchmetrics.classification.MulticlassPrecision",
        "init_args": {"num_classes": 3, "average": "macro"},
    },
    "max_drop": 0.02,
}
NAMED = {"name": "rare", "higher_is_better": True, "max_drop": 0.1}
STEPPING = {
    "kind": "uniform_decrease",
    "initial_training_phase_epochs": 1,
    "patience_epochs": 1,
    "maximal_total_epochs": 12,
}


@pytest.fixture(scope="module")
def unguarded(tmp_path_factory: pytest.TempPathFactory) -> Searched:
    return search(tmp_path_factory.mktemp("unguarded"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("guarded")


@pytest.fixture(scope="module")
def guarded(store: Path) -> Searched:
    return search(store, PER_CLASS)


def assert_keeps_guards(searched: Searched) -> None:
    """Whatever is returned keeps every guard, and so does every epoch that another budget could choose."""
    best = searched.result.best
    assert best is not None
    assert searched.result.outcome is Outcome.WITHIN_BUDGET
    assert searched.result.guards == best.guards
    margins = {guard.name: guard.margin(searched.result.guards[guard.name]) for guard in searched.budget.also}
    assert margins
    assert min(margins.values()) >= 0
    history = searched.result.history
    for number in pareto_front(history, range(len(history))):
        assert searched.budget.smallest_margin(searched.budget.baseline, history[number].guards) >= 0


def test_a_rare_class_dies_without_a_guard_and_lives_with_it(unguarded: Searched, guarded: Searched) -> None:
    assert unguarded.result.outcome is Outcome.WITHIN_BUDGET
    assert unguarded.budget.margin(unguarded.result.metric) >= 0
    assert unguarded.recall_of_rare_class() == 0
    (floor,) = (guard.lowest_tolerated for guard in guarded.budget.also if guard.name == RARE)
    assert floor > 0.5
    assert guarded.recall_of_rare_class() >= floor - 1e-6
    assert guarded.recall_of_rare_class() == pytest.approx(guarded.result.guards[RARE])
    assert_keeps_guards(guarded)
    assert 0 < guarded.result.achieved_rate < unguarded.result.achieved_rate


@pytest.mark.parametrize("policy", [None, STEPPING])
@pytest.mark.parametrize(
    "guards",
    [
        [PER_CLASS | {"max_drop": 0.05}],
        [{"metric": RECALL, "max_relative_drop": 0.2, "name": "recall"}],
        [CALIBRATION],
        [PRECISION, PER_CLASS],
        [PER_CLASS | {"max_drop": 0}],
    ],
    ids=["absolute", "relative", "lower is better", "two", "no drop"],
)
def test_no_guard_is_ever_broken(guards: list[dict[str, Any]], policy: dict[str, Any] | None, tmp_path: Path) -> None:
    changes: dict[str, Any] = {} if policy is None else {"search": policy}
    searched = search(tmp_path, *guards, **changes)
    if searched.result.best is None:
        assert searched.result.outcome is Outcome.INFEASIBLE
        assert "not its guards" in searched.result.reason
        assert searched.result.achieved_rate == 0
    else:
        assert_keeps_guards(searched)


def test_the_policy_is_told_the_smallest_margin_in_units_of_the_main_drop(guarded: Searched) -> None:
    drop = guarded.budget.drop
    guards = {guard.name: guard for guard in guarded.budget.also}
    assert len(guards) == 3
    for row in guarded.result.history:
        assert row.metric is not None
        shares = [(0.1 - guards[name].degradation(value)) / 0.1 for name, value in row.guards.items()]
        assert row.guard_margin == pytest.approx(min(shares) * drop, abs=1e-6)
        assert row.margin == guarded.budget.margin(row.metric)
        assert row.smallest_margin == min(row.margin, row.guard_margin or 0.0)
        assert row.keeps(guarded.budget) == (row.smallest_margin >= 0)


def test_a_guard_that_binds_nowhere_changes_nothing(tmp_path: Path) -> None:
    """No epoch is better than the baseline, so that the constant guard always has the larger margin."""
    constant = {"metric": f"{HERE}.Constant", "max_drop": 0.4}
    plain = search(tmp_path / "plain", max_drop=0.04)
    searched = search(tmp_path / "constant", constant, max_drop=0.04)
    without = [row | {"guards": {}, "guard_margin": None} for row in searched.trajectory]
    assert without == plain.trajectory
    assert_same_bits(dict(searched.model.state_dict()), dict(plain.model.state_dict()))
    assert "guard_margin" not in trajectory(plain.result.history)


def test_the_same_call_again_trains_nothing_and_knows_the_guards(guarded: Searched, store: Path) -> None:
    again = search(store, PER_CLASS)
    assert again.trajectory == guarded.trajectory
    assert again.result.guards == guarded.result.guards


def test_another_guard_is_another_run(guarded: Searched, store: Path) -> None:
    search(store, PER_CLASS | {"max_drop": 0.2})
    assert len([folder for folder in store.iterdir() if (folder / "run.json").exists()]) == 2


def test_what_is_kept_for_another_drop_keeps_the_guards(guarded: Searched, store: Path) -> None:
    """A search without guards would keep smaller models, too."""
    also = {
        each.parent.name: json.loads(each.read_text())["settings"]["budget"]["also"]
        for each in store.glob("*/run.json")
    }
    (run,) = [name for name, guards in also.items() if guards and guards[0]["max_drop"] == PER_CLASS["max_drop"]]
    kept = kept_records(CheckpointStore(store), run, None)
    assert kept
    assert all((row.guard_margin or 0) >= 0 for row in kept)
    smaller = [row for row in guarded.result.history if row.achieved_rate > kept[0].achieved_rate]
    assert smaller
    assert all((row.guard_margin or 0) < 0 for row in smaller)


def test_the_table_has_a_column_for_each_guard(guarded: Searched) -> None:
    table = trajectory(guarded.result.history)
    assert table[f"guards.{RARE}"].tolist() == [row.guards[RARE] for row in guarded.result.history]
    assert table["guard_margin"].min() < 0


# --- a user's own validation function ----------------------------------------------------------------------------


def test_a_function_of_the_users_returns_its_own_guard(tmp_path: Path) -> None:
    searched = search(tmp_path, NAMED, training={"validate": f"{HERE}.validate", "higher_is_better": True})
    assert_keeps_guards(searched)
    assert searched.recall_of_rare_class() >= searched.budget.also[0].lowest_tolerated - 1e-6


def test_a_missing_value_is_one_clear_error(tmp_path: Path) -> None:
    training = {"validate": f"{HERE}.validate_without_guards", "higher_is_better": True}
    with pytest.raises(
        MetricError, match=r"has no value of the guard rare, but of none\. Let .*also=\{'rare': value\}"
    ):
        search(tmp_path, NAMED, training=training)


def test_an_undefined_guard_fails_its_epoch(tmp_path: Path) -> None:
    training = {"validate": f"{HERE}.validate_undefined_under_compression", "higher_is_better": True}
    searched = search(tmp_path, NAMED, training=training)
    failed = [row for row in searched.result.history if row.failed]
    assert failed
    assert all(row.guards == {} and row.guard_margin is None for row in failed)
    assert_keeps_guards(searched)


# --- mistakes, found before training -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("guards", "training", "words"),
    [
        ([{"metric": "torchmetrics.classification.MulticlasRecall", "max_drop": 0.1}], {}, "Did you mean"),
        ([{"metric": "torchmetrics.classification.MulticlassRecall", "max_drop": 0.1}], {}, "refuses its init_args"),
        ([{"metric": RECALL}], {}, "exactly one of max_drop and max_relative_drop"),
        ([{"max_drop": 0.1}], {}, "a metric is required"),
        ([PER_CLASS, PER_CLASS], {}, r"also\.1\.name: another guard is called MulticlassRecall"),
        ([{"metric": "torchmetrics.SumMetric", "max_drop": 0.1}], {}, "does not say which direction is better"),
        ([PER_CLASS | {"max_drop": 10}], {}, r"also\.0\.max_drop: must be between 0 .* Write 0\.1"),
        ([NAMED], {}, "nothing computes the guard rare"),
        ([PER_CLASS], {"validate": f"{HERE}.validate"}, "validate computes no metric of budget.also"),
    ],
)
def test_mistakes(guards: list[dict[str, Any]], training: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=words):
        search(tmp_path, *guards, training=training)


def test_a_chosen_drop_has_no_guards_of_its_own() -> None:
    with pytest.raises(ConfigurationError, match="unknown key"):
        DropSettings.model_validate({"max_drop": 0.1, "also": [PER_CLASS]})


def test_rare_class_is_rare() -> None:
    """What the tests above rest on."""
    assert torch.bincount(VALIDATION["targets"]).tolist()[2] == 40
