"""How data flows through the nodes. Everything that passes between two of them is in the catalog."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from kedro.pipeline import Node, Pipeline
from kedro.utils import KedroExperimentalWarning

from kedro_aat.pipelines.aat.diagram import loop_diagram
from kedro_aat.pipelines.aat.nodes import (
    add_preprocessing,
    build_controller,
    certify_model,
    collect_metrics,
    describe_layers,
    evaluate_baseline,
    export_for_targets,
    finetune_adaptively,
    finetune_later_stage,
    list_packages,
    rehearse,
    report_run,
    require_feasible,
    summarize_run,
)

# What all searches read.
_BASELINE_AND_DATA = ("baseline_model", "train_data", "validation_data", "baseline_evaluation", "baseline_scores")
_STORES_AND_SETTINGS = ("checkpoint_store", "tensorboard_log", "params:aat")

# Tags by which schedulers and `kedro run --tags` select nodes. Each node has one of the first three. Those with `gpu`
# compute on `training.device`; all others compute on the CPU, where files are compared and timed.
_TRAINING, _EXPORT, _REPORTING = ("training", "gpu"), "export", "reporting"


def create_pipeline(namespace: str | None = None, **_: Any) -> Pipeline:
    """Accuracy-aware training of `baseline_model`, certified on `test_data`.

    Each node has a tag: `training` up to the end of the last search, `export` for files and certificate, `reporting`
    for what is written up. Nodes that compute on `training.device` also have the tag `gpu`.

    Args:
        namespace: Prefix of all names, for a project that compresses several models: `small` reads
            `small.baseline_model` and `params:small.aat`, and has nodes such as `small.finetune_adaptively`.
    """
    return Pipeline(
        [
            _node(
                rehearse,
                ["baseline_model", "train_data", "validation_data", "params:aat", "checkpoint_store"],
                "rehearsal",
                tags=_TRAINING,
            ),
            _node(
                evaluate_baseline,
                # The rehearsal is an input so that what cannot work is found first.
                [
                    *("baseline_model", "train_data", "validation_data", "params:aat", "checkpoint_store"),
                    *("rehearsal", "certificate_ledger"),
                ],
                ["baseline_evaluation", "baseline_scores"],
                tags=_TRAINING,
            ),
            _node(
                build_controller,
                # The evaluation is an input so that a bad baseline or budget is found first.
                ["baseline_model", "baseline_evaluation", "params:aat", "train_data"],
                "compression_controller",
                tags=_TRAINING,
            ),
            _node(
                finetune_adaptively,
                ["compression_controller", *_BASELINE_AND_DATA, *_STORES_AND_SETTINGS],
                ["fine_tuned_controller", "search_result", "search_trajectory"],
                preview_fn=loop_diagram,
                tags=_TRAINING,
            ),
            _node(
                finetune_later_stage,
                [
                    "fine_tuned_controller",
                    *_BASELINE_AND_DATA,
                    *("search_result", "search_trajectory"),
                    *_STORES_AND_SETTINGS,
                ],
                ["second_stage_controller", "second_stage_result", "second_stage_trajectory"],
                name="finetune_second_stage",
                tags=_TRAINING,
            ),
            _node(
                finetune_later_stage,
                [
                    "second_stage_controller",
                    *_BASELINE_AND_DATA,
                    *("search_result", "second_stage_trajectory"),
                    *_STORES_AND_SETTINGS,
                    "second_stage_result",
                ],
                ["third_stage_controller", "third_stage_result", "trajectory"],
                name="finetune_third_stage",
                tags=_TRAINING,
            ),
            _node(
                export_for_targets,
                [
                    "fine_tuned_controller",
                    "second_stage_controller",
                    "baseline_model",
                    "validation_data",
                    "baseline_evaluation",
                    "search_result",
                    "second_stage_result",
                    "search_trajectory",
                    "checkpoint_store",
                    "params:aat",
                    "third_stage_controller",
                    "third_stage_result",
                ],
                [
                    "compressed_model",
                    "compressed_onnx",
                    "compressed_program",
                    "compressed_openvino",
                    "export_report",
                    "compressed_executorch",
                    "compressed_litert",
                ],
                name="export_model",
                tags=_EXPORT,
            ),
            _node(add_preprocessing, ["compressed_onnx", "params:aat"], "compressed_onnx_raw", tags=_EXPORT),
            _node(
                certify_model,
                # This node alone reads the test split, after the delivered file is chosen.
                [
                    "compressed_onnx",
                    "baseline_model",
                    "test_data",
                    "baseline_evaluation",
                    "search_result",
                    "certificate_ledger",
                    "params:aat",
                    *("compressed_openvino", "compressed_executorch", "compressed_litert"),
                    "export_report",
                ],
                "certificate",
                tags=_EXPORT,
            ),
            _node(
                describe_layers,
                [
                    "fine_tuned_controller",
                    "second_stage_controller",
                    "search_result",
                    "second_stage_result",
                    "export_report",
                    "checkpoint_store",
                    "third_stage_controller",
                    "third_stage_result",
                ],
                "layer_statistics",
                tags=_REPORTING,
            ),
            _node(
                summarize_run,
                [
                    "baseline_evaluation",
                    "search_result",
                    "second_stage_result",
                    "export_report",
                    "certificate",
                    "params:aat",
                    "third_stage_result",
                    "trajectory",
                    "layer_statistics",
                ],
                "aat_summary",
                tags=_REPORTING,
            ),
            _node(
                report_run,
                [
                    *("aat_summary", "trajectory", "layer_statistics", "compressed_onnx", "params:aat"),
                    *("compressed_openvino", "compressed_executorch", "compressed_litert"),
                ],
                ["aat_report", "model_card", "frontier_figure", "trajectory_figure"],
                tags=_REPORTING,
            ),
            _node(
                collect_metrics,
                ["aat_summary", "trajectory", "compressed_onnx", "params:aat"],
                ["aat_metrics", "aat_metrics_history"],
                tags=_REPORTING,
            ),
            _node(list_packages, ["aat_summary"], "model_sbom", tags=_REPORTING),
            # Card and metrics are inputs so that the report is written, and trackers are told, before the run may end
            # as an error.
            _node(require_feasible, ["aat_summary", "params:aat", "model_card", "aat_metrics"], None, tags=_REPORTING),
        ],
        namespace=namespace,
    )


def _node(function: Callable[..., Any], inputs: list[str], outputs: str | list[str] | None, **options: Any) -> Node:
    """A node named like its function, unless the options name it."""
    # Kedro warns that previews of nodes are experimental, even if nobody looks at one.
    with warnings.catch_warnings(action="ignore", category=KedroExperimentalWarning):
        return Node(function, inputs, outputs, **{"name": function.__name__, **options})
