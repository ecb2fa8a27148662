"""The nodes that tell people what came of a run; they change nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kedro_aat.config import AatSettings

if TYPE_CHECKING:
    from onnx import ModelProto
    from pandas import DataFrame
    from plotly.graph_objects import Figure

    from kedro_aat.compression.controller import ModelController
    from kedro_aat.export import NotExported
    from kedro_aat.training.checkpoints import CheckpointStore
else:
    # As in `nodes`: Kedro resolves the type hints, and importing these takes seconds.
    ModelProto = DataFrame = Figure = ModelController = NotExported = CheckpointStore = Any

ONNX_FILE = "compressed_model.onnx"  # as the model card's example names the file that lies beside it


def describe_layers(
    controller: ModelController,
    second_controller: ModelController,
    search_result: dict[str, Any],
    second_result: dict[str, Any],
    export_report: dict[str, Any],
    checkpoint_store: CheckpointStore,
) -> DataFrame:
    """What became of each layer in each stage: shapes, rates, parameters, MACs, bits, and what could not be done.

    Where another model of the first stage is delivered than its search returned, the table is of that one alone.
    """
    from kedro_aat.delivery.candidates import controller_at
    from kedro_aat.reporting.layers import layer_table

    delivered = export_report["compressed"]
    if delivered and delivered["stage"] == 1 and delivered["checkpoint"] != search_result["best_checkpoint"]:
        run = search_result["run"]
        return layer_table([controller_at(controller, checkpoint_store, run, delivered["checkpoint"])])
    was_skipped = second_result["outcome"] == "skipped"
    return layer_table([controller] if was_skipped else [controller, second_controller])


def report_run(
    summary: dict[str, Any],
    trajectory: DataFrame,
    layers: DataFrame,
    compressed_onnx: ModelProto | NotExported,
    settings: AatSettings,
) -> tuple[str, str, Figure, Figure]:
    """Writes the run up for people, also where nothing was delivered.

    Returns:
        The report as one HTML page, the model card in Markdown, and the figures of frontier and trajectory.
    """
    from kedro_aat.reporting.figures import frontier_figure, trajectory_figure
    from kedro_aat.reporting.model_card import model_card
    from kedro_aat.reporting.report import render_report

    frontier, course = frontier_figure(trajectory, summary), trajectory_figure(trajectory, summary)
    written = settings.model_dump(mode="json", by_alias=True)
    page = render_report(summary, trajectory, layers, frontier, course, written)
    return page, model_card(summary, compressed_onnx, ONNX_FILE), frontier, course
