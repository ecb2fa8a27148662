"""Exports models, compares their files with them, evaluates and measures the files; each step is done once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import nn
from torch.export import ExportedProgram

from kedro_aat.budget import Budget, GuardSettings
from kedro_aat.compression.quantization.layers import quantized_spec
from kedro_aat.delivery.candidates import Candidate
from kedro_aat.delivery.costs import not_measured
from kedro_aat.delivery.files import Files, evaluate_file, files_of, measure
from kedro_aat.delivery.finished import FinishedSteps
from kedro_aat.delivery.measurements import FileAgreements, Measurements, Result
from kedro_aat.delivery.on_device import Device
from kedro_aat.errors import ExportError
from kedro_aat.export.measure import measure_latency
from kedro_aat.export.session import OnnxModel
from kedro_aat.export.settings import ExportSettings
from kedro_aat.export.targets.registry import TARGETS, TargetName, target_of
from kedro_aat.export.verify import Agreement, count_zeros, read_back, verify_file, verify_onnx, verify_program
from kedro_aat.model_inputs import ModelInputs
from kedro_aat.training.data import Data
from kedro_aat.training.scoring.guard_metrics import guarded
from kedro_aat.training.settings import TrainingSettings

logger = logging.getLogger(__name__)

NUM_COMPARED = 64  # examples on which the outputs of a file and its model are compared


class Judgment(Result):
    """What is known of a candidate's files before they are measured.

    Attributes:
        agreement: How closely the files agree with the model.
        metrics: Name of a target -> metric of its file on the validation split.
        guards: Name of a target -> values of the guards.
        program_bytes: Size of the `.pt2` file; None if there is none.
    """

    agreement: FileAgreements
    metrics: dict[TargetName, float]
    guards: dict[TargetName, dict[str, float]]
    program_bytes: int | None = None


@dataclass(frozen=True)
class Steps:
    """The steps that take long; each is done once for the same models, as far as its results are kept."""

    finished: FinishedSteps
    inputs: ModelInputs
    validation_data: Data
    training: TrainingSettings
    settings: ExportSettings
    budget: Budget
    guards: Sequence[GuardSettings]

    @cached_property
    def device(self) -> Device | None:
        """The device that measures files; None if the settings name none."""
        return Device.of(self.settings, self.finished)

    def files(self, model: nn.Module, *, only_shipped: bool = False) -> Files:
        """The files of a model for all targets, or for ONNX and the one whose file decides."""
        settings = self.settings
        targets = [settings.shipped] if only_shipped else settings.more_targets
        return self.finished.result(
            "files", Files, lambda: files_of(model, self.inputs, settings, targets), model, targets=list(targets)
        )

    def judgment(self, candidate: Candidate, files: Files, trace: Callable[[], ExportedProgram] | None) -> Judgment:
        """Whether the files compute what the model computes, and how well they do on the validation split.

        Args:
            candidate: The model.
            files: Its files for all targets but `.pt2`.
            trace: Makes the program of its `.pt2` file; None if there is none.
        """
        return self.finished.result(
            "judgment",
            Judgment,
            lambda: self._judge(candidate, files, trace and trace()),
            candidate.model,
            rate=candidate.rate,
            weight_names=list(candidate.weight_names),
            guards=[guard.name for guard in self.budget.also],
            targets=list(files.others),
        )

    def latencies(self, models: Sequence[nn.Module], files: Sequence[Files], settings: ExportSettings) -> list[float]:
        """Time of each model's file by the objective, in milliseconds: of the fastest turn here, or on the device.

        Args:
            models: The models.
            files: Their files.
            settings: Have the objective.

        Raises:
            DeviceError: If the device does not measure one of them.
            ExportError: If a file does not take the batch size at which latency decides.
        """
        if settings.objective_kind == "device_latency":
            assert self.device is not None  # the settings made sure of it
            answers = [self.device.measured(each).latency_ms for each in files]
            return [time for time in answers if time is not None]
        size = settings.objective_batch_size

        def compute() -> list[float]:
            latencies = measure_latency(
                [each.of(settings.shipped) for each in files],
                self.inputs,
                batch_sizes=[size],
                num_threads=settings.num_threads,
                seconds=settings.latency_seconds,
            )
            if not all(size in by_size for by_size in latencies):
                raise not_measured(settings)
            return [by_size[size].fastest for by_size in latencies]

        return self.finished.result("latencies", list[float], compute, *models, target=settings.shipped, size=size)

    def measurements(self, models: Sequence[nn.Module], files: Sequence[Files]) -> list[Measurements]:
        """What models and their files cost, here and on the device."""
        found = self.finished.result(
            "measurements",
            list[Measurements],
            lambda: measure(models, files, self.inputs, self.settings),
            *models,
            targets=[list(each.others) for each in files],
        )
        if self.device is None:
            return found
        answers = [self.device.costs(each) for each in files]
        return [each.model_copy(update={"device": answer}) for each, answer in zip(found, answers, strict=True)]

    def _judge(self, candidate: Candidate, files: Files, program: ExportedProgram | None) -> Judgment:
        model, inputs, settings = candidate.model, self.inputs, self.settings
        # Where a number is rounded up in one runtime and down in another, the outputs differ by one step of 8 bits.
        tolerance = settings.tolerance if quantized_spec(model) is None else settings.quantized_tolerance
        runnable: dict[TargetName, nn.Module] = {"onnx": OnnxModel(files.onnx)}
        agreements: dict[TargetName, Agreement] = {"onnx": verify_onnx(files.onnx, model, inputs, tolerance=tolerance)}
        exported_rate, program_bytes = _exported_rate(files, candidate), None
        if program is not None:
            agreements["pt2"] = verify_program(program, model, inputs, tolerance=tolerance)
            runnable["pt2"] = read = read_back(program)
            program_bytes = read.num_bytes
        for name, file in files.others.items():
            runnable[name] = module = target_of(name).read_back(file)
            title = f"{TARGETS[name].title} file"
            agreements[name] = verify_file(title, module, model, inputs, tolerance=tolerance)
        evaluations = {
            name: guarded(
                evaluate_file(file, self.validation_data, self.training, self.guards),
                self.budget,
                f"its {TARGETS[name].title} file",
            )
            for name, file in runnable.items()
        }
        return Judgment(
            agreement=FileAgreements.model_validate(
                {
                    "onnx": agreements.pop("onnx"),
                    "program": agreements.pop("pt2", None),
                    "openvino": agreements.get("openvino"),
                    "targets": agreements,
                    "exported_rate": exported_rate,
                }
            ),
            metrics={name: evaluation.metric for name, evaluation in evaluations.items()},
            guards={name: dict(evaluation.also) for name, evaluation in evaluations.items()},
            program_bytes=program_bytes,
        )


def _exported_rate(files: Files, candidate: Candidate) -> float | None:
    """The rate counted on the ONNX file; None if it cannot be counted there.

    It equals the candidate's rate, unless the exporter folded a BatchNorm of scale 0, which adds zeros.
    """
    if not candidate.weight_names:
        return None
    try:
        zeros, total = count_zeros(files.onnx, candidate.weight_names)
    except ExportError as error:  # the outputs were compared, so a renamed weight is no reason to fail
        logger.warning("%s", error)
        return None
    if zeros / total < candidate.rate:
        raise ExportError(
            f"the file has a rate of {zeros / total:.6f}, but the model has {candidate.rate:.6f}: the exporter "
            "changed weights. Please report this with the model."
        )
    return zeros / total
