"""The project's own pipeline: with its default search, and with NNCF's `uniform_decrease`."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.search import STEPPING_RATES
from benchmarks.tasks.rivals.compressed import size_ratio
from benchmarks.tasks.task import Candidate, Found, Problem
from kedro_aat.config import AatSettings
from kedro_aat.datasets.handles import TensorBoardLog
from kedro_aat.pipelines.aat.baseline import evaluate_baseline
from kedro_aat.pipelines.aat.search import build_controller, finetune_adaptively
from kedro_aat.search.policy import with_epochs
from kedro_aat.training.checkpoints import CheckpointStore

ALGORITHMS = {"filters": "filter_pruning", "sparsity": "magnitude_sparsity"}


def ours(problem: Problem, num_epochs: int) -> Found:
    """The pipeline with its defaults."""
    return _search(problem, num_epochs, {}, {})


def uniform(problem: Problem, num_epochs: int) -> Found:
    """`uniform_decrease` between NNCF's rates."""
    settings = {"search": {"kind": "uniform_decrease"}, "maximal_rate": STEPPING_RATES["maximal_rate"]}
    return _search(problem, num_epochs, settings, {"schedule": {"initial_rate": STEPPING_RATES["initial_rate"]}})


def _search(problem: Problem, num_epochs: int, changes: Mapping[str, Any], compression: Mapping[str, Any]) -> Found:
    """Runs the pipeline's nodes with settings that differ from its defaults and the task's."""
    task, train, validation = problem.task, problem.splits.train, problem.splits.validation
    settings = AatSettings.model_validate(
        {
            "seed": problem.seed,
            "budget": dict(task.budget),
            "training": {**task.training, "device": "cpu", "num_threads": 1},
            "compression": {"algorithm": ALGORITHMS[problem.algorithm], **compression},
            **changes,
        }
    )
    settings = settings.model_copy(update={"search": with_epochs(settings.search, num_epochs)})
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        store, log = CheckpointStore(Path(folder) / "checkpoints"), TensorBoardLog(Path(folder) / "tensorboard")
        evaluation, scores = evaluate_baseline(problem.baseline, train, validation, settings)
        controller = build_controller(problem.baseline, evaluation, settings, train)
        controller, result, trajectory = finetune_adaptively(
            controller, problem.baseline, train, validation, evaluation, scores, store, log, settings
        )
        returned = None
        if result.rate.achieved > 0:
            model = controller.strip()
            returned = Candidate(model, size_ratio(problem, model), result.validation)
        seconds = time.perf_counter() - started
        rows = trajectory[(trajectory["margin"] >= 0) & (trajectory["checkpoint"] != result.best_checkpoint)]

        def others() -> Iterator[Candidate]:
            """The other models within budget whose checkpoints were kept: those on the Pareto front."""
            kept_numbers = set(store.numbers_of(result.run))
            for number, metric in zip(rows["checkpoint"].tolist(), rows["metric"].tolist(), strict=True):
                if number not in kept_numbers:
                    continue
                kept = store.load(result.run, number)
                other = build_controller(problem.baseline, evaluation, settings, train)
                other.load_state(kept.training["controller"])
                other.model.load_state_dict(kept.model)
                model = other.strip()
                yield Candidate(model, size_ratio(problem, model), metric)

        tactic = result.reason.partition("The model was last trained at ")[2].partition(". ")[0].removesuffix(".")
        return Found(returned, tuple(others()), result.epochs.used, seconds, tactic)
