"""Nodes that write down what a run did; they change nothing."""

from __future__ import annotations

import logging
from html import escape
from typing import TYPE_CHECKING, Any

from kedro_aat.config import AatSettings
from kedro_aat.delivery.certificate_result import CertificateResult
from kedro_aat.delivery.environment import DistillationSummary
from kedro_aat.delivery.findings import Findings
from kedro_aat.delivery.results import (
    BaselineEvaluation,
    ExportResult,
    LaterSearchResult,
    SearchResult,
    Summary,
)

if TYPE_CHECKING:
    from onnx import ModelProto
    from pandas import DataFrame
    from plotly.graph_objects import Figure

    from kedro_aat.compression.controller import ModelController
    from kedro_aat.export import NotExported
    from kedro_aat.export.openvino_file import OpenvinoFiles
    from kedro_aat.export.targets.target import TargetFile
    from kedro_aat.reporting.sbom import Bom
    from kedro_aat.training.checkpoints import CheckpointStore
else:
    # Kedro resolves the type hints, and importing these takes seconds; see `search.py`.
    ModelProto = DataFrame = Figure = ModelController = NotExported = Bom = CheckpointStore = Any
    OpenvinoFiles = TargetFile = Any

logger = logging.getLogger(__name__)

# Names of the files beside the model card.
ONNX_FILE = "compressed_model.onnx"
RAW_FILE = "compressed_model_raw.onnx"

# Instead of `AatSettings | None`: Kedro 1.3 reads the `__name__` of each parameter's type, which a union lacks. Of
# these settings, `trackers` alone is read, which has a default.
_NO_TRACKERS = AatSettings.model_construct()  # type: ignore[call-arg]


def summarize_run(
    baseline_evaluation: BaselineEvaluation,
    search_result: SearchResult,
    second_result: LaterSearchResult,
    export_result: ExportResult,
    certificate: CertificateResult,
    settings: AatSettings,
    third_result: LaterSearchResult | None = None,
    trajectory: DataFrame | None = None,
    layers: DataFrame | None = None,
) -> Summary:
    """Puts the summary together, and prints the closing table.

    Args:
        baseline_evaluation: The baseline on the validation split.
        search_result: Result of the first stage.
        second_result: Result of the second stage.
        export_result: Result of the export.
        certificate: What the test split says.
        settings: Settings of the pipeline.
        third_result: Result of the third stage.
        trajectory: Trajectory of all stages; without it, the summary does not say what was tried.
        layers: Layer table; as above.
    """
    from kedro_aat.reporting.summary import print_summary, summarize

    teaching, later = settings.teaching, [second_result, third_result]
    findings = None
    if trajectory is not None and layers is not None:
        findings = _findings(baseline_evaluation, [search_result, *later], export_result, trajectory, layers, settings)
    summary = summarize(
        baseline_evaluation,
        search_result,
        later,
        export_result,
        certificate,
        seed=settings.seed,
        goal=settings.goal,
        time_limit=settings.time_limit,
        distillation=None if teaching is None else DistillationSummary.model_validate(teaching),
        findings=findings,
    )
    print_summary(summary)
    return summary


def _findings(
    baseline_evaluation: BaselineEvaluation,
    results: list[LaterSearchResult | None],
    export_result: ExportResult,
    trajectory: DataFrame,
    layers: DataFrame,
    settings: AatSettings,
) -> Findings | None:
    """What was tried, and what to try next; None if that fails: the delivered model does not depend on it."""
    from kedro_aat.reporting.advice import Asked, find

    stages = {number: result for number, result in enumerate(results, start=1) if isinstance(result, SearchResult)}
    searches = {1: settings.search} | {number: later.search for number, later in settings.later_stages.items()}
    divides = settings.training.sharding != "none"
    asked = Asked(
        settings.export,
        searches,
        settings.teaching is not None,
        settings.trains,
        settings.goal,
        divides,
        settings.maximal_rate,
        settings.compression,
    )
    try:
        return find(trajectory, layers, baseline_evaluation, stages, export_result, asked)
    except Exception as error:
        logger.warning("What was tried is not summarized, because that failed.", exc_info=error)
        return None


def collect_metrics(
    summary: Summary,
    trajectory: DataFrame,
    compressed_onnx: ModelProto | NotExported | None = None,
    settings: AatSettings = _NO_TRACKERS,
) -> tuple[dict[str, float], dict[str, list[dict[str, float]]]]:
    """The numbers of summary and trajectory, for experiment trackers; those of the settings are told.

    Args:
        summary: Summary of the run.
        trajectory: Trajectory of all stages.
        compressed_onnx: The delivered ONNX file, for the trackers of the settings; without one, they get none.
        settings: Settings of the pipeline; without them, no tracker is told.

    Returns:
        The summary's numbers as `{name: number}`, and the trajectory's as
        `{name: [{"step": epoch, "value": number}]}`.

    Raises:
        DataError: If the ONNX file is not that of the summary.
    """
    from kedro_aat.delivery.files import require_delivered
    from kedro_aat.export import NotExported
    from kedro_aat.reporting.metrics import flat_metrics, flat_parameters, metrics_history, tags_of
    from kedro_aat.training.progress import Delivered, tell_delivered

    if compressed_onnx is not None:
        require_delivered(compressed_onnx, summary.delivered_candidate)
    metrics = flat_metrics(summary)
    if settings.trackers:
        onnx = None if isinstance(compressed_onnx, NotExported) else compressed_onnx
        delivered = Delivered(summary.run, flat_parameters(settings), metrics, tags_of(summary), onnx)
        tell_delivered(settings.make_trackers(), delivered)
    return metrics, metrics_history(trajectory)


def list_packages(summary: Summary) -> Bom:
    """Lists the packages that the delivered files need, with versions and licenses, as an SBOM in CycloneDX's format.

    Args:
        summary: Summary of the run.
    """
    from kedro_aat.reporting.sbom import bill_of_materials

    return bill_of_materials(summary)


def require_feasible(
    summary: Summary, settings: AatSettings, model_card: str = "", metrics: dict[str, float] | None = None
) -> None:
    """Ends the run as an error if nothing kept the budget and `on_infeasible` says so; everything is saved by then.

    Args:
        summary: Summary of the run.
        settings: Settings of the pipeline.
        model_card: Not read. As an input it puts this node after those that write the report.
        metrics: Not read. As an input it puts this node after the one that tells trackers.

    Raises:
        InfeasibleError: If nothing kept the budget and `on_infeasible` is `error`.
    """
    from kedro_aat.budget import Outcome
    from kedro_aat.errors import InfeasibleError

    if settings.on_infeasible == "error" and summary.outcome is Outcome.INFEASIBLE:
        raise InfeasibleError(
            f"{summary.reason} {summary.advice} The report shows what was tried; the baseline is unchanged, and "
            "nothing was exported. (Set on_infeasible to keep_baseline to end such a run without an error.)"
        )


def describe_layers(
    controller: ModelController,
    second_controller: ModelController,
    search_result: SearchResult,
    second_result: LaterSearchResult,
    export_result: ExportResult,
    checkpoint_store: CheckpointStore,
    third_controller: ModelController | None = None,
    third_result: LaterSearchResult | None = None,
) -> DataFrame:
    """Describes each layer after each stage: shapes, rates, parameters, MACs, bits, and what could not be compressed.

    If another model of a stage than the one that its search returned is delivered, the table describes that model, and
    no later stage.

    Args:
        controller: The first stage's controller.
        second_controller: The second stage's controller; the first one if that stage was skipped.
        search_result: Result of the first stage.
        second_result: Result of the second stage.
        export_result: Result of the export, which names the delivered model.
        checkpoint_store: Store with the checkpoints of all stages.
        third_controller: The third stage's controller; that of the stage before if it was skipped.
        third_result: Result of the third stage.

    Raises:
        CheckpointError: If the checkpoint of the delivered model is damaged since the export.
        MissingRunError: If the store does not have the run of that checkpoint.
    """
    from kedro_aat.delivery.candidates import controller_at
    from kedro_aat.errors import DamagedCheckpointError

    delivered = export_result.compressed
    stages = {
        1: (controller, search_result),
        2: (second_controller, second_result),
        3: (third_controller, third_result),
    }
    described: dict[int, ModelController] = {}
    for number, (stage, result) in stages.items():
        if stage is None or not isinstance(result, SearchResult):
            continue
        described[number] = stage
        if delivered and delivered.stage == number and delivered.checkpoint not in (None, result.best_checkpoint):
            checkpoint_store.require(result.run)
            try:
                other = controller_at(stage, checkpoint_store, result.run, delivered.checkpoint)
            except DamagedCheckpointError as error:
                raise DamagedCheckpointError(
                    f"{error}. It is the delivered model's checkpoint. Restore it from a backup, or run the pipeline "
                    "from the node export_model on, which then delivers another model."
                ) from error
            return _layer_table({**described, number: other})
    return _layer_table(described)


def _layer_table(controllers: dict[int, ModelController]) -> DataFrame:
    """The layer table, which is empty if it fails: the report and the delivered model do not depend on it."""
    from kedro_aat.reporting.layers import layer_table

    try:
        return layer_table(controllers)
    except Exception as error:
        logger.warning("The layer table is empty, because it failed.", exc_info=error)
        return layer_table({})


def report_run(
    summary: Summary,
    trajectory: DataFrame,
    layers: DataFrame,
    compressed_onnx: ModelProto | NotExported,
    settings: AatSettings,
    compressed_openvino: OpenvinoFiles | NotExported | None = None,
    compressed_executorch: TargetFile | NotExported | None = None,
    compressed_litert: TargetFile | NotExported | None = None,
) -> tuple[str, str, Figure | NotExported, Figure | NotExported]:
    """Writes the report and the model card, even if nothing was delivered.

    Args:
        summary: Summary of the run.
        trajectory: Trajectory of all stages.
        layers: Layer table.
        compressed_onnx: The delivered ONNX file, or why there is none.
        settings: Settings of the pipeline.
        compressed_openvino: OpenVINO's files of the delivered model, or why there are none.
        compressed_executorch: Its file for ExecuTorch.
        compressed_litert: Its file for LiteRT.

    Returns:
        The report as one HTML page, the model card in Markdown, and the figures of Pareto front and trajectory.

    Raises:
        DataError: If the ONNX file is not that of the summary.
    """
    from kedro_aat.delivery.files import require_delivered
    from kedro_aat.export import NotExported
    from kedro_aat.reporting.model_card import About, model_card

    require_delivered(compressed_onnx, summary.delivered_candidate)
    card = ""
    try:
        preprocessing, loss = settings.export.preprocessing, settings.training.loss
        is_raw = preprocessing is not None and preprocessing.in_file
        about = About(settings.export, loss.class_path, RAW_FILE if is_raw else None)
        others = _other_files(compressed_onnx, compressed_openvino, compressed_executorch, compressed_litert)
        card = model_card(summary, compressed_onnx, ONNX_FILE, about, others)
        return _page_and_figures(summary, trajectory, layers, settings, card)
    except Exception as error:  # what was delivered, and the summary, are there nevertheless
        what = "report" if card else "model card"
        reason = f"The {what} failed. {type(error).__name__}: {error}"
        logger.warning("%s", reason, exc_info=error, extra={"markup": False})
        missing = NotExported(reason)
        return f"<!doctype html><title>No report</title><p>{escape(reason)}</p>", card or reason, missing, missing


def _other_files(
    onnx_model: ModelProto | NotExported,
    openvino: OpenvinoFiles | NotExported | None,
    *others: TargetFile | NotExported | None,
) -> list[TargetFile]:
    """The files for other targets than ONNX that there are."""
    from kedro_aat.export import NotExported
    from kedro_aat.export.openvino_file import OpenvinoFiles
    from kedro_aat.export.session import paths_of
    from kedro_aat.export.targets.openvino import from_files
    from kedro_aat.export.targets.registry import missing
    from kedro_aat.export.targets.target import TargetFile

    if isinstance(onnx_model, NotExported):
        return []
    files = [file for file in others if isinstance(file, TargetFile)]
    if not isinstance(openvino, OpenvinoFiles):
        return files
    if missing("openvino", only_to_run=True) is None:
        return [from_files(openvino, onnx_model), *files]
    # The machine that writes the card need not have OpenVINO, which keeps the order of inputs and outputs.
    paths, graph = paths_of(onnx_model), onnx_model.graph
    inputs, outputs = (
        tuple(paths.get(each.name, each.name) for each in values) for values in (graph.input, graph.output)
    )
    return [TargetFile("openvino", {".xml": openvino.graph, ".bin": openvino.weights}, inputs, outputs), *files]


def _page_and_figures(
    summary: Summary, trajectory: DataFrame, layers: DataFrame, settings: AatSettings, card: str
) -> tuple[str, str, Figure | NotExported, Figure | NotExported]:
    from importlib.util import find_spec

    from kedro_aat.export import NotExported
    from kedro_aat.reporting.others import Choice, not_delivered
    from kedro_aat.reporting.report import render_report

    written = settings.model_dump(mode="json", by_alias=True)
    choice = Choice(settings.export.objective, settings.minimal_rate, settings.search.kind)
    others = not_delivered(trajectory, summary, choice)
    if find_spec("plotly") is None:
        # Without brackets, which Kedro's log handler would remove as markup.
        missing = "Plotly is not installed; `pip install plotly` adds them."
        logger.warning("The report has no figures: %s", missing)
        page = render_report(summary, trajectory, layers, {}, written, others)
        return page, card, NotExported(missing), NotExported(missing)
    from kedro_aat.reporting.figures import costs_figure, for_pane, frontier_figure, trajectory_figure
    from kedro_aat.reporting.target_figure import targets_figure
    from kedro_aat.reporting.targets import has_more_targets

    figures = {
        "frontier": frontier_figure(trajectory, summary, others),
        "trajectory": trajectory_figure(trajectory, summary),
    }
    shown = figures | ({"costs": costs_figure(summary)} if summary.candidates else {})
    if has_more_targets(summary):
        shown["targets"] = targets_figure(summary)
    page = render_report(summary, trajectory, layers, shown, written, others)
    # The pane is low: the panel of the first stage, and the two that say most.
    first = trajectory[trajectory["stage"] == trajectory["stage"].min()]
    frontier = for_pane(figures["frontier"], frontier_figure(first, summary, others))
    small = trajectory_figure(trajectory, summary, ("rate", "metric"))
    return page, card, frontier, for_pane(figures["trajectory"], small)
