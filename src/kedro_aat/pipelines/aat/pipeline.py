"""How the data go through the nodes. All that passes between two of them is in the catalog."""

from __future__ import annotations

import warnings
from typing import Any

from kedro.pipeline import Node, Pipeline
from kedro.utils import KedroExperimentalWarning

from kedro_aat.pipelines.aat.diagram import loop_diagram
from kedro_aat.pipelines.aat.nodes import (
    build_controller,
    certify_model,
    collect_metrics,
    evaluate_baseline,
    export_model,
    finetune_adaptively,
    finetune_second_stage,
    require_feasible,
    summarize_run,
)
from kedro_aat.pipelines.aat.reporting import describe_layers, report_run


def create_pipeline(namespace: str | None = None, **_: Any) -> Pipeline:
    """The accuracy-aware training of `baseline_model`, certified on `test_data`.

    Args:
        namespace: Prefix of all names, for a project that compresses several models: `small` reads
            `small.baseline_model` and `params:small.aat`, and has nodes such as `small.finetune_adaptively`.
    """
    return Pipeline(
        [
            Node(
                evaluate_baseline,
                ["baseline_model", "train_data", "validation_data", "params:aat"],
                ["baseline_evaluation", "baseline_scores"],
                name="evaluate_baseline",
            ),
            Node(
                build_controller,
                # The evaluation is asked for so that a bad baseline or budget is found first.
                ["baseline_model", "baseline_evaluation", "params:aat", "train_data"],
                "compression_controller",
                name="build_controller",
            ),
            _drawn_node(
                finetune_adaptively,
                [
                    "compression_controller",
                    "baseline_model",
                    "train_data",
                    "validation_data",
                    "baseline_evaluation",
                    "baseline_scores",
                    "checkpoint_store",
                    "tensorboard_log",
                    "params:aat",
                ],
                ["fine_tuned_controller", "search_result", "search_trajectory"],
                name="finetune_adaptively",
                preview_fn=loop_diagram,
            ),
            Node(
                finetune_second_stage,
                [
                    "fine_tuned_controller",
                    "baseline_model",
                    "train_data",
                    "validation_data",
                    "baseline_evaluation",
                    "baseline_scores",
                    "search_result",
                    "search_trajectory",
                    "checkpoint_store",
                    "tensorboard_log",
                    "params:aat",
                ],
                ["second_stage_controller", "second_stage_result", "trajectory"],
                name="finetune_second_stage",
            ),
            Node(
                export_model,
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
                ],
                [
                    "compressed_model",
                    "compressed_onnx",
                    "compressed_program",
                    "compressed_openvino",
                    "export_report",
                ],
                name="export_model",
            ),
            Node(
                certify_model,
                # The test split is read here alone, and after the file is chosen that is delivered.
                [
                    "compressed_onnx",
                    "baseline_model",
                    "test_data",
                    "baseline_evaluation",
                    "search_result",
                    "certificate_ledger",
                    "params:aat",
                ],
                "certificate",
                name="certify_model",
            ),
            Node(
                summarize_run,
                [
                    "baseline_evaluation",
                    "search_result",
                    "second_stage_result",
                    "export_report",
                    "certificate",
                    "params:aat",
                ],
                "aat_summary",
                name="summarize_run",
            ),
            Node(
                describe_layers,
                [
                    "fine_tuned_controller",
                    "second_stage_controller",
                    "search_result",
                    "second_stage_result",
                    "export_report",
                    "checkpoint_store",
                ],
                "layer_statistics",
                name="describe_layers",
            ),
            Node(
                report_run,
                ["aat_summary", "trajectory", "layer_statistics", "compressed_onnx", "params:aat"],
                ["aat_report", "model_card", "frontier_figure", "trajectory_figure"],
                name="report_run",
            ),
            Node(
                collect_metrics,
                ["aat_summary", "trajectory"],
                ["aat_metrics", "aat_metrics_history"],
                name="collect_metrics",
            ),
            # The card is asked for so that the report is written before the run may end as an error.
            Node(require_feasible, ["aat_summary", "params:aat", "model_card"], None, name="require_feasible"),
        ],
        namespace=namespace,
    )


def _drawn_node(*arguments: Any, **named: Any) -> Node:
    """A node with a diagram. Kedro warns that these are experimental, also where nobody looks at one."""
    with warnings.catch_warnings(action="ignore", category=KedroExperimentalWarning):
        return Node(*arguments, **named)
