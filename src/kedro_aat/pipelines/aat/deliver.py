"""Nodes that export the models, deliver one file, and certify it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from kedro_aat.config import AatSettings
from kedro_aat.delivery.certificate_result import CertificateResult
from kedro_aat.delivery.results import (
    BaselineEvaluation,
    ExportResult,
    LaterSearchResult,
    SearchResult,
)
from kedro_aat.pipelines.aat.stage_steps import require_runs

if TYPE_CHECKING:
    from onnx import ModelProto
    from pandas import DataFrame
    from torch.export import ExportedProgram
    from torch.nn import Module

    from kedro_aat.certificate.ledger import CertificateLedger
    from kedro_aat.compression.controller import ModelController
    from kedro_aat.export import NotExported
    from kedro_aat.export.openvino_file import OpenvinoFiles
    from kedro_aat.export.targets.target import TargetFile
    from kedro_aat.training.checkpoints import CheckpointStore
    from kedro_aat.training.data import Data
else:
    # Kedro resolves the type hints, and importing these takes seconds; see `search.py`.
    ModelProto = DataFrame = ExportedProgram = OpenvinoFiles = TargetFile = Module = ModelController = Any
    NotExported = CheckpointStore = CertificateLedger = Data = Any

logger = logging.getLogger(__name__)


def export_for_targets(
    controller: ModelController,
    second_controller: ModelController,
    baseline_model: Module,
    validation_data: Data,
    baseline_evaluation: BaselineEvaluation,
    search_result: SearchResult,
    second_result: LaterSearchResult,
    search_trajectory: DataFrame,
    checkpoint_store: CheckpointStore,
    settings: AatSettings,
    third_controller: ModelController | None = None,
    third_result: LaterSearchResult | None = None,
) -> tuple[
    Module | NotExported,
    ModelProto | NotExported,
    ExportedProgram | NotExported,
    OpenvinoFiles | NotExported,
    ExportResult,
    TargetFile | NotExported,
    TargetFile | NotExported,
]:
    """Exports the model of each stage for all targets, judges and measures the files, and delivers one model.

    With `settings.choose`, all models that the searches kept are candidates, of every stage.

    Args:
        controller: The first stage's controller.
        second_controller: The second stage's controller; the first one if that stage was skipped.
        baseline_model: The uncompressed model.
        validation_data: Validation split, which judges the files.
        baseline_evaluation: The baseline on it.
        search_result: Result of the first stage.
        second_result: Result of the second stage.
        search_trajectory: Trajectory of the first stage.
        checkpoint_store: Store with the checkpoints to fall back to. Exports and measurements are kept in the run's
            folder, so that the same call does not repeat them.
        settings: Settings of the pipeline.
        third_controller: The third stage's controller; that of the stage before if it was skipped.
        third_result: Result of the third stage.

    Returns:
        The delivered model, its files (ONNX, `.pt2`, OpenVINO's), the result of the export, and the files for
        ExecuTorch and LiteRT. Nothing is exported if no stage kept the budget, or if no file keeps the limits.

    Raises:
        ExportError: If no file keeps the budget that its model kept.
        MissingRunError: If the store does not have the runs of the searches.
    """
    from kedro_aat.budget import Outcome
    from kedro_aat.delivery.candidates import front_candidates, stage_candidates
    from kedro_aat.delivery.choosing import choose, options_of
    from kedro_aat.delivery.deliver import deliver
    from kedro_aat.delivery.finished import ESTIMATES, REHEARSALS, FinishedSteps, training_inputs
    from kedro_aat.export import NotExported
    from kedro_aat.export.targets.openvino import to_files
    from kedro_aat.export.targets.registry import TargetName, not_asked_for
    from kedro_aat.training.data import data_fingerprint
    from kedro_aat.training.scoring.groups import identity_of_groups

    require_runs(checkpoint_store, search_result, second_result, third_result)
    budget = baseline_evaluation.budget_of(search_result.budget)
    controllers = (controller, second_controller, third_controller)
    results = (search_result, second_result, third_result)
    searched = [
        (number, stage, result)
        for number, (stage, result) in enumerate(zip(controllers, results, strict=True), start=1)
        if stage is not None and isinstance(result, SearchResult)
    ]
    run = checkpoint_store.root / search_result.run
    # A choice uses what the run has measured, and leaves it there.
    folder, *others = ["finished_steps"] if settings.choose is None else ["chosen_steps", "finished_steps"]
    finished = FinishedSteps(
        run / folder,
        # What a device has measured before training is among the last two.
        [*(run / other for other in others), *(checkpoint_store.root / name for name in (REHEARSALS, ESTIMATES))],
        validation_data=data_fingerprint(validation_data, checkpoint_store.file_hashes, settings.training.batch),
        **identity_of_groups(validation_data, settings.training.group),
        training=training_inputs(settings.training, settings.budget.also),
        # The objective and the limits choose among results that do not depend on them.
        export=settings.export.model_dump(mode="json", exclude=settings.export.UNJUDGED),
    )
    if settings.choose is not None:
        exported, result = choose(
            options_of(searched, checkpoint_store),
            baseline_model,
            validation_data,
            budget,
            settings.training,
            settings.export,
            finished,
            settings.goal,
            settings.budget.also,
        )
    else:
        failed: dict[str, str] = {}
        exported, result = deliver(
            stage_candidates([stage for stage in searched if stage[2].outcome is Outcome.WITHIN_BUDGET], failed),
            front_candidates(
                controller, search_trajectory, search_result, checkpoint_store, budget, settings.minimal_rate
            ),
            baseline_model,
            validation_data,
            budget,
            settings.training,
            settings.export,
            search_result.reason,
            finished,
            settings.goal,
            settings.budget.also,
            failed,
        )
    finished.remove_others()
    asked = {*settings.export.targets, *settings.export.more_targets}

    def nothing(name: TargetName) -> NotExported:
        return NotExported(result.reason) if name in asked else not_asked_for(name)

    if exported is None:
        none = [nothing(name) for name in ("onnx", "pt2", "openvino", "executorch", "litert")]
        return NotExported(result.reason), none[0], none[1], none[2], result, none[3], none[4]
    written = exported.files.others
    return (
        exported.candidate.model,
        exported.files.onnx,
        exported.program or nothing("pt2"),
        to_files(written["openvino"]) if "openvino" in written else nothing("openvino"),
        result,
        written.get("executorch") or nothing("executorch"),
        written.get("litert") or nothing("litert"),
    )


def export_model(
    controller: ModelController,
    second_controller: ModelController,
    baseline_model: Module,
    validation_data: Data,
    baseline_evaluation: BaselineEvaluation,
    search_result: SearchResult,
    second_result: LaterSearchResult,
    search_trajectory: DataFrame,
    checkpoint_store: CheckpointStore,
    settings: AatSettings,
    third_controller: ModelController | None = None,
    third_result: LaterSearchResult | None = None,
) -> tuple[
    Module | NotExported,
    ModelProto | NotExported,
    ExportedProgram | NotExported,
    OpenvinoFiles | NotExported,
    ExportResult,
]:
    """Exports the model as `export_for_targets` does, for pipelines and notebooks that take its first five results.

    Args:
        controller: As there, and so all others.
        second_controller: As there.
        baseline_model: As there.
        validation_data: As there.
        baseline_evaluation: As there.
        search_result: As there.
        second_result: As there.
        search_trajectory: As there.
        checkpoint_store: As there.
        settings: As there.
        third_controller: As there.
        third_result: As there.

    Returns:
        The delivered model, its files (ONNX, `.pt2`, OpenVINO's), and the result of the export.
    """
    model, onnx_model, program, openvino, result, *_ = export_for_targets(
        controller,
        second_controller,
        baseline_model,
        validation_data,
        baseline_evaluation,
        search_result,
        second_result,
        search_trajectory,
        checkpoint_store,
        settings,
        third_controller,
        third_result,
    )
    return model, onnx_model, program, openvino, result


def certify_model(
    compressed_onnx: ModelProto | NotExported,
    baseline_model: Module,
    test_data: Data,
    baseline_evaluation: BaselineEvaluation,
    search_result: SearchResult,
    certificate_ledger: CertificateLedger,
    settings: AatSettings,
    compressed_openvino: OpenvinoFiles | NotExported | None = None,
    compressed_executorch: TargetFile | NotExported | None = None,
    compressed_litert: TargetFile | NotExported | None = None,
    export_result: ExportResult | None = None,
) -> CertificateResult:
    """Tests the delivered file on the test split: the only node that reads it, after everything was chosen.

    It is the file of the target that the objective names, by default ONNX.

    Args:
        compressed_onnx: The delivered ONNX file, or why there is none.
        baseline_model: The uncompressed model.
        test_data: Test split; not read if the settings withhold the certificate.
        baseline_evaluation: The baseline on the validation split.
        search_result: Result of the first stage, which states the budget.
        certificate_ledger: Remembers for which model each test split was read.
        settings: Settings of the pipeline.
        compressed_openvino: OpenVINO's files of the delivered model, or why there are none.
        compressed_executorch: Its file for ExecuTorch.
        compressed_litert: Its file for LiteRT.
        export_result: Result of the export, which knows the delivered ONNX file; without it, any is certified.

    Raises:
        DataError: If the ONNX file is another one, in which case the test split is not read.
        LostLedgerError: If the ledger does not know the baseline, in which case the test split is not read.
    """
    from kedro_aat.delivery.certify import WITHHELD, Verdict, certify_once
    from kedro_aat.delivery.files import require_delivered
    from kedro_aat.delivery.registration import require_registered
    from kedro_aat.errors import ends_run
    from kedro_aat.export import NotExported
    from kedro_aat.export.openvino_file import OpenvinoFiles
    from kedro_aat.export.targets.openvino import from_files

    if isinstance(compressed_onnx, NotExported):
        return Verdict(words="Nothing was exported, so there is nothing to certify.").result
    require_delivered(compressed_onnx, None if export_result is None else export_result.compressed)
    target = settings.export.shipped
    files = {"openvino": compressed_openvino, "executorch": compressed_executorch, "litert": compressed_litert}
    shipped = files.get(target, compressed_onnx)
    if isinstance(shipped, OpenvinoFiles):
        shipped = from_files(shipped, compressed_onnx)
    if shipped is None or isinstance(shipped, NotExported):
        words = (
            f"Not certified: export.objective names {target}, and compressed_{target} has no file. If the catalog has "
            "no such entry, `kedro aat init --upgrade` adds it; then `kedro run` writes the file, and trains nothing "
            "again."
        )
        return Verdict(words=words).result
    if settings.certificate is None or not settings.reads_test_split:
        return Verdict(words=WITHHELD).result
    require_registered(certificate_ledger, baseline_evaluation.registration)
    try:
        verdict = certify_once(
            shipped,
            baseline_model,
            test_data,
            baseline_evaluation.budget_of(search_result.budget),
            settings.training,
            certificate_ledger,
            alpha=settings.certificate.alpha,
            score_range=settings.certificate.score_range,
            guards=settings.budget.also,
            export=settings.export,
        )
    except Exception as error:  # the file is delivered nevertheless, and so is the report
        if ends_run(error):
            raise
        logger.warning("The certificate failed.", exc_info=error)
        again = "When that is mended, `kedro aat certify` certifies the delivered model."
        verdict = Verdict(words=f"Not certified: {type(error).__name__}: {error}. {again}")
    logger.info("%s", verdict.words, extra={"markup": False})
    return verdict.result


def add_preprocessing(compressed_onnx: ModelProto | NotExported, settings: AatSettings) -> ModelProto | NotExported:
    """The delivered ONNX file with the preprocessing in front of it, if `export.preprocessing.in_file` asks for it.

    Args:
        compressed_onnx: The delivered ONNX file, or why there is none.
        settings: Settings of the pipeline.

    Returns:
        The file; why there is none if it was not asked for, or if it failed: the delivered file does not depend on it.
    """
    from kedro_aat.errors import ends_run
    from kedro_aat.export import NotExported
    from kedro_aat.export.preprocessing import verified_with_preprocessing

    preprocessing = settings.export.preprocessing
    if preprocessing is None or not preprocessing.in_file:
        return NotExported("Set export.preprocessing.in_file to true to get a file for raw numbers.", is_asked=False)
    if isinstance(compressed_onnx, NotExported):
        return compressed_onnx
    try:
        return verified_with_preprocessing(compressed_onnx, preprocessing)
    except Exception as error:
        if ends_run(error):
            raise
        reason = f"No file for raw numbers: {error}"
        logger.warning("%s", reason, extra={"markup": False})
        return NotExported(reason)
