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
    from kedro_aat.compression.base import ModelController
    from kedro_aat.datasets.handles import TensorBoardLog
    from kedro_aat.export.exported import NotExported
    from kedro_aat.training.checkpoints import CheckpointStore
    from kedro_aat.training.epoch import Data
    from kedro_aat.training.runner import Evaluation
else:
    # Kedro reads a node's type hints to find the settings class that it validates parameters with. One
    # hint that it cannot resolve switches that check off, and importing these takes seconds.
    ModelProto = DataFrame = ExportedProgram = Module = ModelController = Tensor = Any
    TensorBoardLog = NotExported = CheckpointStore = CertificateLedger = Forecast = Budget = Evaluation = Data = Any

logger = logging.getLogger(__name__)


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
    from kedro_aat.training.epoch import DefaultTraining, example_count, seed_everything
    from kedro_aat.training.runner import TrainingRunner

    settings.training.check()
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
    from kedro_aat.training.epoch import example_input

    inputs = None if train_data is None else example_input(train_data)
    return build(copy.deepcopy(model), settings.compression, example_input=inputs)


def finetune_adaptively(
    controller: ModelController,
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
    from kedro_aat.budget import Outcome
    from kedro_aat.errors import InterruptedRunError
    from kedro_aat.reporting.summary import trajectory
    from kedro_aat.search.policy import with_epochs
    from kedro_aat.training.cost import expected_cost, timed_epoch
    from kedro_aat.training.epoch import DefaultTraining, data_fingerprint, seed_everything
    from kedro_aat.training.fine_tune import adaptive_problem, choose, fine_tune, fingerprint, records_of
    from kedro_aat.training.progress import LoopProgress
    from kedro_aat.training.runner import TrainingRunner

    budget = _budget(baseline_evaluation, baseline_evaluation["budget"])

    def training_of(controller: ModelController) -> DefaultTraining:
        return DefaultTraining(controller.model, settings.training, train_data, validation_data, seed=settings.seed)

    def runner_of(controller: ModelController) -> TrainingRunner:
        return TrainingRunner(
            controller.model,
            controller,
            training_of(controller).callables(),
            uncompressed_model_accuracy=budget.baseline,
            minimal_tolerable_accuracy=budget.lowest_tolerated,
            higher_is_better=budget.higher_is_better,
        )

    seed_everything(settings.seed)
    training = training_of(controller)
    controller.steps_per_epoch, device = training.steps_per_epoch, str(training.device)
    runner = runner_of(controller)
    identity = {
        "functions": runner.callables.fingerprint,
        "settings": settings.model_dump(mode="json", include=settings.SEARCHED),
        "model": fingerprint(controller.model),
        "train_data": data_fingerprint(train_data),
        "validation_data": data_fingerprint(validation_data),
    }
    problem = adaptive_problem(
        controller, budget, minimal_rate=settings.minimal_rate, maximal_rate=settings.maximal_rate
    )
    with checkpoint_store.open(identity) as checkpoints:
        run = checkpoints.folder.name
        if settings.choose is not None:
            budget = settings.choose.budget(budget.baseline, higher_is_better=budget.higher_is_better)
            result = choose(runner, settings.search, budget, checkpoints)
        else:
            known = records_of(checkpoints.latest())
            limit = None if settings.time_limit_minutes is None else 60 * settings.time_limit_minutes
            cost = expected_cost(
                known, settings.search.maximal_total_epochs, lambda: timed_epoch(controller, runner_of), limit
            )
            if not checkpoints.is_finished:
                logger.info("%s", cost)
            next_epoch = known[-1].epoch + 1 if known else 0
            writer = None if checkpoints.is_finished else tensorboard_log.writer(run, next_epoch=next_epoch)
            result = fine_tune(
                runner,
                with_epochs(settings.search, cost.epochs),
                problem,
                budget,
                checkpoints,
                LoopProgress(verbose=True, total=cost.epochs, writer=writer),
                baseline=_evaluation(budget.baseline, baseline_scores),
                time_limit=limit,
            )
            if writer is not None:
                writer.close()
    if result.outcome is Outcome.INTERRUPTED:
        raise InterruptedRunError(
            f"Stopped after epoch {result.history[-1].epoch}. {result.outcome.advice} "
            f"Its checkpoints are in {checkpoints.folder}."
        )
    controller.model.cpu()
    search_result = {
        "outcome": str(result.outcome),
        "reason": result.reason,
        "budget": budget.summary,
        "validation": result.metric,
        "standard_error": result.best.standard_error if result.best else None,
        "rate": {
            "requested": result.best.requested_rate if result.best else 0.0,
            "achieved": result.achieved_rate,
        },
        "epochs": {"used": result.history[-1].epoch, "allowed": settings.search.maximal_total_epochs},
        "seconds": {
            "used": sum(row.seconds for row in result.history),
            "limit": None if settings.time_limit_minutes is None else 60 * settings.time_limit_minutes,
        },
        "best_checkpoint": result.best.checkpoint if result.best else None,
        "device": device,
        "run": run,
    }
    return controller, search_result, trajectory(result.history)


def export_model(
    controller: ModelController,
    baseline_model: Module,
    validation_data: Data,
    search_result: dict[str, Any],
    settings: AatSettings,
) -> tuple[Module | NotExported, ModelProto | NotExported, ExportedProgram | NotExported, dict[str, Any]]:
    """Writes the stripped model as ONNX and `.pt2`, reads both back, and measures them beside the baseline.

    Returns:
        The stripped model, the two files, and the report: `baseline` and `compressed` with their sizes and
        costs, and `agreement` of the files with the model. Nothing is exported of an infeasible search.
    """
    from dataclasses import asdict

    from kedro_aat.budget import Outcome
    from kedro_aat.compression.quantized_layers import quantized_of
    from kedro_aat.export.exported import NotExported
    from kedro_aat.export.measure import latency_ms
    from kedro_aat.export.onnx_file import to_onnx
    from kedro_aat.export.program import to_program
    from kedro_aat.export.verify import verify_onnx, verify_program
    from kedro_aat.training.epoch import example_input

    inputs = example_input(validation_data, max(64, *settings.export.batch_sizes))
    baseline_onnx = to_onnx(baseline_model, inputs)
    baseline = _costs(baseline_model, baseline_onnx, inputs)
    if search_result["outcome"] == Outcome.INFEASIBLE:
        nothing = NotExported(search_result["reason"])
        return (
            nothing,
            nothing,
            nothing,
            {
                "baseline": baseline | {"latency_ms": None},
                "compressed": dict.fromkeys([*baseline, "latency_ms"]),
                "agreement": None,
            },
        )
    model = controller.strip().eval()
    onnx_model, program = to_onnx(model, inputs), to_program(model, inputs)
    # Where an integer is rounded up in one place and down in the other, the outputs differ by a step of 8 bits.
    tolerance = settings.export.tolerance if quantized_of(model) is None else settings.export.quantized_tolerance
    agreement: dict[str, Any] = {
        "onnx": asdict(verify_onnx(onnx_model, model, inputs, tolerance=tolerance)),
        "program": asdict(verify_program(program, model, inputs, tolerance=tolerance)),
    }
    rate = search_result["rate"]["achieved"]
    agreement["exported_rate"] = _exported_rate(onnx_model, controller.weight_names, rate)
    before, after = latency_ms(
        [baseline_onnx, onnx_model],
        inputs,
        batch_sizes=settings.export.batch_sizes,
        num_threads=settings.export.num_threads,
    )
    report = {
        "baseline": baseline | {"latency_ms": before},
        "compressed": _costs(model, onnx_model, inputs) | {"latency_ms": after},
        "agreement": agreement,
    }
    return model, onnx_model, program, report


def certify_model(
    controller: ModelController,
    baseline_model: Module,
    test_data: Data,
    search_result: dict[str, Any],
    baseline_evaluation: dict[str, Any],
    export_report: dict[str, Any],
    certificate_ledger: CertificateLedger,
    settings: AatSettings,
) -> dict[str, Any]:
    """Tests the returned model on the test split: the only node that reads it, after all has been chosen.

    Returns:
        `baseline` and `compressed`, their metrics on the test split; `is_certified`; the fields of `Certificate`, None
        where there is no certificate; and the result in `words`.
    """
    from kedro_aat.budget import Outcome
    from kedro_aat.certificate import Certificate
    from kedro_aat.training.certification import Verdict, certify_once

    verdict = Verdict(None, None, None, "Nothing was exported, so there is nothing to certify.")
    if search_result["outcome"] != Outcome.INFEASIBLE:
        budget = _budget(baseline_evaluation, search_result["budget"])
        alpha = settings.certificate.alpha
        verdict = certify_once(
            controller.strip(), baseline_model, test_data, budget, settings.training, certificate_ledger, alpha=alpha
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
    export_report: dict[str, Any],
    certificate: dict[str, Any],
    settings: AatSettings,
) -> dict[str, Any]:
    """Puts the summary together, and prints the closing table."""
    from kedro_aat.reporting.summary import print_summary, summarize

    summary = summarize(baseline_evaluation, search_result, export_report, certificate, settings.seed)
    print_summary(summary)
    return summary


def require_feasible(summary: dict[str, Any], settings: AatSettings) -> None:
    """Ends the run as an error if nothing kept the budget and `on_infeasible` says so; all is saved by then.

    Raises:
        InfeasibleError: Tells what was tried.
    """
    from kedro_aat.budget import Outcome
    from kedro_aat.errors import InfeasibleError

    if settings.on_infeasible == "error" and summary["outcome"] == Outcome.INFEASIBLE:
        raise InfeasibleError(
            f"{summary['reason']} {summary['advice']} What was tried stands in the trajectory; the baseline is "
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


def _costs(model: Module, onnx_model: ModelProto, inputs: Tensor) -> dict[str, int]:
    """Sizes and operations of a model and its file; bytes are of the file as written, and compressed."""
    import gzip

    from kedro_aat.export.measure import num_macs, num_parameters

    file = onnx_model.SerializeToString()
    return {
        "parameters": num_parameters(model),
        "nonzero_parameters": sum(int(parameter.count_nonzero()) for parameter in model.parameters()),
        "macs": num_macs(model, inputs),
        "onnx_bytes": len(file),
        "onnx_gzip_bytes": len(gzip.compress(file, mtime=0)),
    }


def _exported_rate(onnx_model: ModelProto, names: list[str], achieved: float) -> float | None:
    """The rate counted on the file, at least the one reported; None where it cannot be counted.

    It is the same number, unless the exporter folded a BatchNorm of scale 0, which adds zeros.
    """
    from kedro_aat.errors import ExportError
    from kedro_aat.export.verify import count_zeros

    if not names:
        return None
    try:
        zeros, total = count_zeros(onnx_model, names)
    except ExportError as error:  # the outputs were compared, so a renamed weight is no reason to fail
        logger.warning("%s", error)
        return None
    if zeros / total < achieved:
        raise ExportError(
            f"The exported file has a rate of {zeros / total:.6f}, but the model has {achieved:.6f}: the "
            "exporter changed weights. Please report this with the model."
        )
    return zeros / total
