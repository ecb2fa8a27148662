"""The nodes of the `aat` pipeline: typed functions without catalog or paths, as usable from a notebook.

torch is imported when a node runs, so that listing pipelines stays quick.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from kedro_aat.config import AatSettings

if TYPE_CHECKING:
    from onnx import ModelProto
    from pandas import DataFrame
    from torch import Tensor
    from torch.export import ExportedProgram
    from torch.nn import Module

    from kedro_aat.budget import Budget
    from kedro_aat.certificate import Forecast
    from kedro_aat.certificate.ledger import CertificateLedger
    from kedro_aat.compression.controller import ModelController
    from kedro_aat.datasets.handles import TensorBoardLog
    from kedro_aat.export import NotExported
    from kedro_aat.export.openvino_file import OpenvinoFiles
    from kedro_aat.training.checkpoints import CheckpointStore
    from kedro_aat.training.data import Data
    from kedro_aat.training.runner import Evaluation
else:
    # Kedro reads a node's type hints to find the settings class that it validates parameters with. One
    # hint that it cannot resolve switches that check off, and importing these takes seconds.
    ModelProto = DataFrame = ExportedProgram = OpenvinoFiles = Module = ModelController = Tensor = Any
    TensorBoardLog = NotExported = CheckpointStore = CertificateLedger = Forecast = Budget = Evaluation = Data = Any

logger = logging.getLogger(__name__)

NUM_CALIBRATION_BATCHES = 10  # from which the ranges of activations are taken before the second stage


def evaluate_baseline(
    model: Module, train_data: Data, validation_data: Data, settings: AatSettings
) -> tuple[dict[str, Any], DataFrame]:
    """Judges the uncompressed model, works out its budget, and tells what a certificate can be expected to say.

    All that can be checked without training is checked here: import paths, splits, metric and budget.

    Returns:
        `metric` (name, higher_is_better), `validation` (the metric), `budget` (kind, drop, lowest_tolerated),
        `forecast` of the certificate and `examples` of both splits; and a table with one `score` a validation example,
        or, for a metric that is no mean over examples, the metric on each of the `resampled` splits.
    """
    import copy
    from dataclasses import asdict

    import pandas as pd

    from kedro_aat.compression.controller import Uncompressed
    from kedro_aat.training.data import example_count
    from kedro_aat.training.default import DefaultTraining
    from kedro_aat.training.random_state import seed_everything
    from kedro_aat.training.runner import TrainingRunner

    settings.check()
    seed_everything(settings.seed)
    # A copy, since the model may be moved to another device and memory format.
    model = copy.deepcopy(model)
    training = DefaultTraining(model, settings.training, train_data, validation_data, seed=settings.seed)
    evaluation = TrainingRunner(model, Uncompressed(model), training.callables()).validate()
    higher_is_better = settings.training.direction()
    assert higher_is_better is not None  # check() saw to it
    budget = settings.budget.budget(evaluation.metric, higher_is_better=higher_is_better)
    logger.info("The baseline's metric is %.4f; tolerated is %.4f", evaluation.metric, budget.lowest_tolerated)
    values = {"score": evaluation.scores} if evaluation.resampled is None else {"resampled": evaluation.resampled}
    scores = {name: [] if given is None else given.tolist() for name, given in values.items()}
    examples = {"training": example_count(train_data), "validation": example_count(validation_data)}
    expected = forecast_certificate(evaluation.scores, budget.drop, examples["validation"], settings)
    result = {
        "metric": {"name": settings.training.metric_name, "higher_is_better": higher_is_better},
        "validation": evaluation.metric,
        "budget": budget.summary,
        "forecast": None if expected is None else asdict(expected),
        "examples": examples,
    }
    return result, pd.DataFrame(scores, dtype="float64")


def forecast_certificate(
    scores: Tensor | None, tolerated_drop: float, num_validation: int, settings: AatSettings
) -> Forecast | None:
    """Logs what a certificate can be expected to say; None where that is not known before training."""
    from kedro_aat.certificate import forecast

    if scores is None:
        logger.warning("The metric has no score an example, so that the outcome cannot be certified.")
        return None
    if not bool(((scores == 0) | (scores == 1)).all()):
        return None  # how far such scores will differ is not known
    expected = forecast(settings.certificate, tolerated_drop, num_validation)
    if expected is not None:
        logger.info("%s", expected)
        if expected.num_validation_needed > num_validation:
            logger.warning(
                "The validation split is too small to resolve the budget: %d examples measure a drop with a standard "
                "error of about %.2g, and %.4g is tolerated; %d would bring it to a third of that",
                num_validation,
                expected.validation_standard_error,
                tolerated_drop,
                expected.num_validation_needed,
            )
    return expected


def build_controller(
    model: Module, baseline_evaluation: dict[str, Any], settings: AatSettings, train_data: Data | None = None
) -> ModelController:
    """Puts a copy of the model under compression; filter pruning runs it once with the first training examples.

    Returns:
        The controller; it owns the model, so that the two pass between nodes as one.
    """
    import copy

    from kedro_aat.compression.build import build_controller as build
    from kedro_aat.training.data import example_input

    inputs = None if train_data is None else example_input(train_data)
    return build(copy.deepcopy(model), settings.compression, example_input=inputs)


def finetune_adaptively(
    controller: ModelController,
    baseline_model: Module,
    train_data: Data,
    validation_data: Data,
    baseline_evaluation: dict[str, Any],
    baseline_scores: DataFrame,
    checkpoint_store: CheckpointStore,
    tensorboard_log: TensorBoardLog,
    settings: AatSettings,
) -> tuple[ModelController, dict[str, Any], DataFrame]:
    """The loop: raises and lowers the rate while it fine-tunes, on a GPU if there is one.

    With `settings.choose` nothing is trained: the model is read off the frontier of the run that was made before.

    Returns:
        The controller with its model at the best rate within budget (or as it was given, at rate 0), how the
        search ended, and the trajectory.

    Raises:
        InterruptedRunError: If it was stopped; the same command goes on.
    """
    from kedro_aat.compression.settings import algorithms_of
    from kedro_aat.reporting.summary import trajectory
    from kedro_aat.training.stage import Stage

    stage = Stage(
        policy=settings.search,
        training=settings.training,
        minimal_rate=settings.minimal_rate,
        maximal_rate=settings.maximal_rate,
        seed=settings.seed,
        time_limit=settings.time_limit,
        identity=settings.model_dump(mode="json", include=settings.SEARCHED),
    )
    done = stage.run(
        controller,
        baseline_model,
        train_data,
        validation_data,
        _evaluation(baseline_evaluation["validation"], baseline_scores),
        _budget(baseline_evaluation, baseline_evaluation["budget"]),
        checkpoint_store,
        tensorboard_log.writer,
        settings.choose,
    )
    summary = done.summary(
        algorithms_of(settings.compression), settings.search.maximal_total_epochs, settings.time_limit
    )
    return controller, summary, trajectory(done.result.history)


def finetune_second_stage(
    controller: ModelController,
    baseline_model: Module,
    train_data: Data,
    validation_data: Data,
    baseline_evaluation: dict[str, Any],
    baseline_scores: DataFrame,
    search_result: dict[str, Any],
    search_trajectory: DataFrame,
    checkpoint_store: CheckpointStore,
    tensorboard_log: TensorBoardLog,
    settings: AatSettings,
) -> tuple[ModelController, dict[str, Any], DataFrame]:
    """Compresses further what the search found (or the baseline, if it found nothing), as `second_stage` says.

    The budget is the same, so it holds for the joint result. Without a second stage, or when a model was chosen without
    training, all is handed on.

    Returns:
        The second stage's controller, how its search ended, and the trajectory of both.
    """
    import itertools

    import pandas as pd

    from kedro_aat.compression.build import build_controller as build
    from kedro_aat.compression.settings import algorithms_of
    from kedro_aat.reporting.summary import trajectory
    from kedro_aat.training.data import example_input
    from kedro_aat.training.default import DefaultTraining
    from kedro_aat.training.stage import Stage

    first = search_trajectory.assign(stage=1)
    second = settings.second_stage
    if second is None or settings.choose is not None:
        return controller, {"outcome": "skipped"}, first
    training = settings.training.with_learning_rate(second.learning_rate_factor)
    found = build(controller.strip(), second.compression, example_input=example_input(train_data))
    if hasattr(found, "calibrate"):
        batches = DefaultTraining(found.model, training, train_data, validation_data).train_batches(0)
        found.calibrate(itertools.islice(batches, NUM_CALIBRATION_BATCHES))
    limit = settings.time_limit
    stage = Stage(
        policy=second.search,
        training=training,
        minimal_rate=second.minimal_rate,
        maximal_rate=settings.maximal_rate,
        seed=settings.seed,
        time_limit=None if limit is None else max(limit - search_result["seconds"]["used"], 1.0),
        identity=settings.model_dump(mode="json", include=settings.SEARCHED | {"second_stage"}),
    )
    logger.info("Second stage: %s", second.compression.algorithm)
    done = stage.run(
        found,
        baseline_model,
        train_data,
        validation_data,
        _evaluation(baseline_evaluation["validation"], baseline_scores),
        _budget(baseline_evaluation, baseline_evaluation["budget"]),
        checkpoint_store,
        tensorboard_log.writer,
    )
    both = [first, trajectory(done.result.history).assign(stage=2)]
    summary = done.summary(algorithms_of(second.compression), second.search.maximal_total_epochs, limit)
    return found, summary, pd.concat(both, ignore_index=True)


def export_model(
    controller: ModelController,
    second_controller: ModelController,
    baseline_model: Module,
    validation_data: Data,
    baseline_evaluation: dict[str, Any],
    search_result: dict[str, Any],
    second_result: dict[str, Any],
    search_trajectory: DataFrame,
    checkpoint_store: CheckpointStore,
    settings: AatSettings,
) -> tuple[
    Module | NotExported,
    ModelProto | NotExported,
    ExportedProgram | NotExported,
    OpenvinoFiles | NotExported,
    dict[str, Any],
]:
    """Writes what each stage came to as ONNX and `.pt2`, judges and measures the files, and delivers one of them.

    With `settings.export.openvino` the same goes for OpenVINO's files.

    Returns:
        The delivered model, its files (ONNX, `.pt2`, OpenVINO's), and the report: `outcome`, `reason`, the
        `delivered` one's name, `baseline` and `compressed` with their sizes and costs, all `candidates`, and why
        others were `rejected`. Nothing is exported where no stage kept the budget.

    Raises:
        ExportError: If no file keeps the budget that its model kept.
    """
    from kedro_aat.budget import Outcome
    from kedro_aat.delivery.candidates import Candidate, frontier_models
    from kedro_aat.delivery.deliver import costs, deliver, files_of, measured
    from kedro_aat.export import NotExported
    from kedro_aat.training.data import example_input

    budget = _budget(baseline_evaluation, search_result["budget"])
    stages = enumerate(((controller, search_result), (second_controller, second_result)), start=1)
    candidates = [
        Candidate(
            stage.settings.algorithm,
            number,
            stage.strip(),
            result["rate"]["achieved"],
            stage.weight_names,
            result["rate"]["requested"],
            result["standard_error"],
            result["best_checkpoint"],
        )
        for number, (stage, result) in stages
        if result["outcome"] == Outcome.WITHIN_BUDGET
    ]
    if not candidates:
        inputs = example_input(validation_data)
        files = files_of(baseline_model, inputs, settings.export)
        (measurement,) = measured([files], inputs, settings.export)
        baseline = costs(baseline_model, files, inputs) | measurement
        nothing = NotExported(search_result["reason"])
        report = {"outcome": Outcome.INFEASIBLE, "reason": search_result["reason"], "baseline": baseline}
        empty: dict[str, Any] = {"delivered": None, "compressed": None, "candidates": [], "rejected": {}}
        return nothing, nothing, nothing, nothing, report | empty
    others = frontier_models(
        controller, search_trajectory, search_result, checkpoint_store, budget, settings.minimal_rate
    )
    delivery = deliver(candidates, others, baseline_model, validation_data, budget, settings.training, settings.export)
    report = {
        "outcome": Outcome.WITHIN_BUDGET,
        "reason": search_result["reason"],
        "baseline": delivery.baseline,
        "candidates": delivery.candidates,
        "rejected": delivery.rejected,
    }
    if delivery.exported is None:
        assert delivery.nearest is not None
        reason = (
            f"No model within budget keeps the limits. {delivery.nearest} comes nearest: "
            f"{delivery.rejected[delivery.nearest]}."
        )
        nothing = NotExported(reason)
        infeasible = {"outcome": Outcome.INFEASIBLE, "reason": reason, "delivered": None, "compressed": None}
        return nothing, nothing, nothing, nothing, report | infeasible
    exported = delivery.exported
    chosen = {"delivered": exported.candidate.name, "compressed": exported.report}
    openvino = exported.files.openvino or NotExported("OpenVINO's files are made where `export.openvino` is true.")
    return exported.candidate.model, exported.files.onnx, exported.program, openvino, report | chosen


def certify_model(
    compressed_onnx: ModelProto | NotExported,
    baseline_model: Module,
    test_data: Data,
    baseline_evaluation: dict[str, Any],
    search_result: dict[str, Any],
    certificate_ledger: CertificateLedger,
    settings: AatSettings,
) -> dict[str, Any]:
    """Tests the delivered file on the test split: the only node that reads it, after all has been chosen.

    Returns:
        `baseline` and `compressed`, their metrics on the test split; `is_certified`; the fields of `Certificate`, None
        where there is no certificate; and the result in `words`.
    """
    from kedro_aat.certificate import Certificate
    from kedro_aat.delivery.certify import Verdict, certify_once
    from kedro_aat.export import NotExported

    if isinstance(compressed_onnx, NotExported):
        verdict = Verdict(None, None, None, "Nothing was exported, so there is nothing to certify.")
    else:
        verdict = certify_once(
            compressed_onnx,
            baseline_model,
            test_data,
            _budget(baseline_evaluation, search_result["budget"]),
            settings.training,
            certificate_ledger,
            alpha=settings.certificate.alpha,
        )
        logger.info("%s", verdict.words)
    certificate = verdict.certificate
    return {
        "baseline": verdict.baseline,
        "compressed": verdict.compressed,
        "is_certified": verdict.is_certified,
        **(certificate.model_dump() if certificate else dict.fromkeys(Certificate.model_fields)),
        "words": verdict.words,
    }


def summarize_run(
    baseline_evaluation: dict[str, Any],
    search_result: dict[str, Any],
    second_result: dict[str, Any],
    export_report: dict[str, Any],
    certificate: dict[str, Any],
    settings: AatSettings,
) -> dict[str, Any]:
    """Puts the summary together, and prints the closing table."""
    from kedro_aat.reporting.summary import print_summary, summarize

    summary = summarize(
        baseline_evaluation,
        search_result,
        second_result,
        export_report,
        certificate,
        seed=settings.seed,
        time_limit=settings.time_limit,
        distillation=settings.teaching,
    )
    print_summary(summary)
    return summary


def collect_metrics(
    summary: dict[str, Any], trajectory: DataFrame
) -> tuple[dict[str, float], dict[str, list[dict[str, float]]]]:
    """The summary's and the trajectory's numbers, for trackers of experiments.

    Returns:
        The summary's as `{name: number}`, and the trajectory's as `{name: [{"step": epoch, "value": number}]}`.
    """
    from kedro_aat.reporting.metrics import flat_metrics, metrics_history

    return flat_metrics(summary), metrics_history(trajectory)


def require_feasible(summary: dict[str, Any], settings: AatSettings, model_card: str = "") -> None:
    """Ends the run as an error if nothing kept the budget and `on_infeasible` says so; all is saved by then.

    Args:
        summary: Of the run.
        settings: Likewise.
        model_card: Not read: asking for it puts this node after those that write the run up.

    Raises:
        InfeasibleError: Tells what was tried.
    """
    from kedro_aat.budget import Outcome
    from kedro_aat.errors import InfeasibleError

    if settings.on_infeasible == "error" and summary["outcome"] == Outcome.INFEASIBLE:
        raise InfeasibleError(
            f"{summary['reason']} {summary['advice']} What was tried stands in the report; the baseline is "
            "untouched, and nothing was exported. (on_infeasible: keep_baseline ends such a run without an error.)"
        )


def _budget(baseline_evaluation: dict[str, Any], given: dict[str, Any]) -> Budget:
    from kedro_aat.budget import Budget

    return Budget(
        kind=given["kind"],
        baseline=baseline_evaluation["validation"],
        drop=given["drop"],
        higher_is_better=baseline_evaluation["metric"]["higher_is_better"],
    )


def _evaluation(metric: float, scores: DataFrame) -> Evaluation:
    """The baseline's evaluation, from what `evaluate_baseline` saved of it."""
    import torch

    from kedro_aat.training.runner import Evaluation

    values = {name: torch.tensor(column.to_numpy()) for name, column in scores.items() if len(column)}
    return Evaluation(metric, values.get("score"), values.get("resampled"))
