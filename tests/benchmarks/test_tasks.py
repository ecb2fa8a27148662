"""The command that runs the zoo, on a small network and a table of a few kilobytes."""

from __future__ import annotations

import logging
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.tasks import __main__ as command
from benchmarks.tasks import runs
from benchmarks.tasks.baseline import problem_of
from benchmarks.tasks.methods import FILTERS_ONLY, METHODS
from benchmarks.tasks.results import Row, add_rows, read_rows, run
from benchmarks.tasks.task import Algorithm, Candidate, Found, Problem, Splits, Task


def splits(seed: int) -> Splits:
    inputs = torch.randn(192, 8, generator=torch.Generator().manual_seed(seed))
    targets = (inputs[:, 0] > inputs[:, 1]).long()

    def split(start: int) -> dict[str, Tensor]:
        return {"inputs": inputs[start : start + 64], "targets": targets[start : start + 64]}

    return Splits(split(0), split(64), split(128))


TASK = Task(
    name="toy",
    source="Generated.",
    is_for_choosing=True,
    is_unlimited=False,
    model=lambda: nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2)),
    splits=splits,
    training={
        "batch_size": 8,
        "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.01}},
        "metric": {
            "class_path": "torchmetrics.classification.MulticlassAccuracy",
            "init_args": {"num_classes": 2, "average": "micro"},
        },
    },
    budget={"max_drop": 0.2},
    baseline_epochs=10,
    baseline_lr=0.05,
)


@pytest.fixture
def problem(request: pytest.FixtureRequest, tmp_path: Path) -> Problem:
    algorithm: Algorithm = request.param
    return problem_of(TASK, 0, algorithm, tmp_path)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        # Which weights are removed is the same code for each; one method has both in the default tests.
        pytest.param(name, algorithm, marks=() if algorithm == "filters" or name == "ours" else pytest.mark.slow)
        for name in METHODS
        for algorithm in ("filters", "sparsity")
        if algorithm == "filters" or name not in FILTERS_ONLY
    ],
    indirect=["problem"],
)
def test_a_method_compresses_within_budget_and_leaves_the_baseline_alone(name: str, problem: Problem) -> None:
    before = {key: tensor.clone() for key, tensor in problem.baseline.state_dict().items()}
    row = run(problem, name, METHODS[name], num_epochs=8)
    assert not row.error
    assert row.epochs_trained <= 8
    assert row.size_ratio > 1
    assert row.validation_drop <= 1
    assert all(torch.equal(tensor, before[key]) for key, tensor in problem.baseline.state_dict().items())


@pytest.mark.parametrize("problem", ["filters"], indirect=True)
def test_a_method_that_fails_has_compressed_nothing(problem: Problem) -> None:
    def fails(problem: Problem, num_epochs: int) -> Found:
        raise RuntimeError("no graph")

    row = run(problem, "fails", fails, num_epochs=2)
    assert (row.size_ratio, row.best_size_ratio, row.is_broken) == (1, 1, False)
    assert row.error == "RuntimeError: no graph"


@pytest.mark.parametrize("problem", ["filters"], indirect=True)
def test_the_best_ratio_is_that_of_a_model_that_keeps_the_budget_on_the_test_split(problem: Problem) -> None:
    constant = nn.Linear(8, 2)
    nn.init.zeros_(constant.weight)
    kept = Candidate(problem.baseline, 3.0, 0.9)

    def lucky(problem: Problem, num_epochs: int) -> Found:
        return Found(Candidate(constant, 9.0, 0.9), (kept, Candidate(problem.baseline, 2.0, 0.9)), 1, 0.1)

    row = run(problem, "lucky", lucky, num_epochs=2)
    assert row.is_broken
    assert (row.size_ratio, row.best_size_ratio) == (9, 3)


def test_the_command_continues_where_it_was_stopped_and_shows_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in (command, runs):
        monkeypatch.setattr(module, "all_tasks", lambda: {"toy": TASK})
    monkeypatch.setattr(runs, "problem_of", partial(problem_of, folder=tmp_path))
    path = tmp_path / "results.parquet"
    arguments = ["tasks", "--algorithms", "sparsity", "--seeds", "0", "--epochs", "2", "--out", str(path)]

    def shown_by(*methods: str) -> str:
        monkeypatch.setattr(sys, "argv", [*arguments, "--methods", *methods])
        command.main()
        return capsys.readouterr().out

    level, num_threads = logging.getLogger("kedro_aat").level, torch.get_num_threads()
    assert "1/1 toy 0 sparsity ours" in shown_by("ours", "scratch")  # `scratch` is for filters only
    assert (logging.getLogger("kedro_aat").level, torch.get_num_threads()) == (level, num_threads)
    both = shown_by("ours", "climb")
    assert "1/1 toy 0 sparsity climb" in both
    assert "ours to best rival" in both
    rows = read_rows(path)
    assert list(rows["method"]) == ["climb", "ours"]
    first = {str(key): value for key, value in rows.iloc[0].items()}
    add_rows(path, [Row(**{**first, "size_ratio": 7.0})])
    assert list(read_rows(path)["size_ratio"]) == [7, rows["size_ratio"][1]]
