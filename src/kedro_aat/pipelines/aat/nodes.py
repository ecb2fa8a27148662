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

    from kedro_aat.compression.scheduled import ScheduledController
    from kedro_aat.datasets.handles import TensorBoardLog
    from kedro_aat.export.exported import NotExported
    from kedro_aat.training.checkpoints import CheckpointStore
    from kedro_aat.training.epoch import Data
else:
    # Kedro reads a node's type hints to find the settings class that it validates parameters with. One
    # hint that it cannot resolve switches that check off, and importing these takes seconds.
    ModelProto = DataFrame = ExportedProgram = Module = ScheduledController = Any
    TensorBoardLog = NotExported = CheckpointStore = Data = Tensor = Any

logger = logging.getLogger(__name__)


def evaluate_baseline(
    model: Module, train_data: Data, validation_data: Data, settings: AatSettings
) -> tuple[dict[str, Any], DataFrame]:
    """Judges the uncompressed model, and works out its budget.

    All that can be checked without training is checked here: import paths, splits, metric and budget.

    Returns:
        `metric` (name, higher_is_better), `validation` (the metric), `budget` (kind, drop, lowest_tolerated)
        and `examples` of both splits; and a table with one `score` a validation example, empty for a metric that is
        no mean over examples.
    """
    import copy

    import pandas as pd

    from kedro_aat.compression.controller import Uncompressed
    from kedro_aat.training.epoch import DefaultTraining, as_dataset, seed_everything
    from kedro_aat.training.runner import TrainingRunner

    settings.training.check()
    seed_everything(settings.seed)
    # A copy, since the model may be moved to another device and memory format.
    model = copy.deepcopy(model)
    training = DefaultTraining(model, settings.training, train_data, validation_data, seed=settings.seed)
    evaluation = TrainingRunner(model, Uncompressed(model), training.callables()).validate()
    metric = evaluation.metric
    higher_is_better = settings.training.direction()
    assert higher_is_better is not None  # check() saw to it
    budget = settings.budget.budget(metric, higher_is_better=higher_is_better)
    name = settings.training.metric_name
    logger.info("The baseline's metric is %.4f; tolerated is %.4f", metric, budget.lowest_tolerated)
    scores = pd.DataFrame({"score": [] if evaluation.scores is None else evaluation.scores.tolist()}, dtype="float64")
    result = {
        "metric": {"name": name, "higher_is_better": higher_is_better},
        "validation": metric,
        "budget": {"kind": budget.kind, "drop": budget.drop, "lowest_tolerated": budget.lowest_tolerated},
        "examples": {
            split: len(as_dataset(data, split))
            for split, data in (("training", train_data), ("validation", validation_data))
        },
    }
    return result, scores


def build_controller(model: Module, baseline_evaluation: dict[str, Any], settings: AatSettings) -> ScheduledController:
    """Puts a copy of the model under compression.

    Returns:
        The controller; it owns the model, so that the two pass between nodes as one.
    """
    import copy

    from kedro_aat.compression.build import build_controller as build

    return build(copy.deepcopy(model), settings.compression)


def finetune_adaptively(
    controller: ScheduledController,
    train_data: Data,
    validation_data: Data,
    baseline_evaluation: dict[str, Any],
    baseline_scores: DataFrame,
    checkpoint_store: CheckpointStore,
    tensorboard_log: TensorBoardLog,
    settings: AatSettings,
) -> tuple[ScheduledController, dict[str, Any], DataFrame]:
    """The loop: raises and lowers the rate while it fine-tunes, on a GPU if there is one.

    Returns:
        The controller with its model at the best rate within budget (or as it was given, at rate 0), how the
        search ended, and the trajectory.

    Raises:
        InterruptedRunError: If it was stopped; the same command goes on.
    """
    import torch

    from kedro_aat.budget import Budget, Outcome
    from kedro_aat.errors import InterruptedRunError
    from kedro_aat.reporting.summary import trajectory
    from kedro_aat.training.epoch import DefaultTraining, data_fingerprint, seed_everything
    from kedro_aat.training.loop import adaptive_problem, fine_tune, fingerprint
    from kedro_aat.training.progress import LoopProgress
    from kedro_aat.training.runner import TrainingRunner

    seed_everything(settings.seed)
    training = DefaultTraining(controller.model, settings.training, train_data, validation_data, seed=settings.seed)
    callables = training.callables()
    identity = {
        "functions": callables.fingerprint,
        "settings": settings.model_dump(mode="json", exclude={"export"}),
        "model": fingerprint(controller.model),
        "train_data": data_fingerprint(train_data),
        "validation_data": data_fingerprint(validation_data),
    }
    controller.steps_per_epoch = training.steps_per_epoch
    budget = Budget(
        kind=baseline_evaluation["budget"]["kind"],
        baseline=baseline_evaluation["validation"],
        drop=baseline_evaluation["budget"]["drop"],
        higher_is_better=baseline_evaluation["metric"]["higher_is_better"],
    )
    runner = TrainingRunner(
        controller.model,
        controller,
        callables,
        uncompressed_model_accuracy=budget.baseline,
        minimal_tolerable_accuracy=budget.lowest_tolerated,
        higher_is_better=budget.higher_is_better,
    )
    scores = torch.tensor(baseline_scores["score"].to_numpy()) if len(baseline_scores) else None
    problem = adaptive_problem(
        controller, budget, minimal_rate=settings.minimal_rate, maximal_rate=settings.maximal_rate
    )
    allowed = settings.search.maximal_total_epochs
    with checkpoint_store.open(identity) as checkpoints:
        run = checkpoints.folder.name
        latest = checkpoints.latest()
        next_epoch = latest.state["cumulative_epoch_count"] + 1 if latest else 0
        writer = None if checkpoints.is_finished else tensorboard_log.writer(run, next_epoch=next_epoch)
        progress = LoopProgress(verbose=True, total=allowed, writer=writer)
        result = fine_tune(runner, settings.search, problem, budget, checkpoints, progress, baseline_scores=scores)
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
        "validation": result.metric,
        "rate": {
            "requested": result.best.requested_rate if result.best else 0.0,
            "achieved": result.achieved_rate,
        },
        "epochs": {"used": result.history[-1].epoch, "allowed": allowed},
        "best_checkpoint": result.best.checkpoint if result.best else None,
        "device": str(training.device),
        "run": run,
    }
    return controller, search_result, trajectory(result.history)


def export_model(
    controller: ScheduledController,
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
    from kedro_aat.compression.magnitude import MagnitudeSparsityController
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
    names = controller.weight_names if isinstance(controller, MagnitudeSparsityController) else None
    agreement["exported_rate"] = None if names is None else _exported_rate(onnx_model, names, rate)
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


def summarize_run(
    baseline_evaluation: dict[str, Any],
    search_result: dict[str, Any],
    export_report: dict[str, Any],
    settings: AatSettings,
) -> dict[str, Any]:
    """Puts the summary together, and prints the closing table."""
    from kedro_aat.reporting.summary import print_summary, summarize

    summary = summarize(baseline_evaluation, search_result, export_report, settings.seed)
    print_summary(summary)
    return summary


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
