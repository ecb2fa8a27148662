"""What is known of a model's files: their costs, how closely they agree with the model, and how well they do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, computed_field, model_validator

from kedro_aat.export.targets.details import TargetDetails
from kedro_aat.export.targets.registry import TargetName

BatchSize = int


class Result(BaseModel):
    """Base of all results: they cannot change, and hold only finite numbers."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", allow_inf_nan=False, protected_namespaces=(), from_attributes=True
    )


class Timing(Result):
    """The time of one run of a file; None for what was not measured.

    Attributes:
        latency_ms: Batch size -> median time of one run, in milliseconds.
        latency_quartiles_ms: Batch size -> first and third quartile.
        latency_fastest_ms: Batch size -> the fastest turn; the ratio of two models' fastest turns repeats best.
    """

    latency_ms: dict[BatchSize, float] | None = None
    latency_quartiles_ms: dict[BatchSize, tuple[float, float]] | None = None
    latency_fastest_ms: dict[BatchSize, float] | None = None


class TargetCosts(Timing):
    """What the file of a target costs, in the runtime of that target.

    Attributes:
        bytes: Size of its files in bytes.
        details: What a device needs to run it.
    """

    bytes: int
    details: TargetDetails = TargetDetails()


class DeviceCosts(Result):
    """What the function of `export.measure_with` measured of a file; None for what it did not.

    Attributes:
        target: Target whose file it got.
        latency_ms: Time of one run in milliseconds.
        memory_bytes: Peak memory in bytes.
        failure: Why it measured nothing, in words; None if it did.
        is_unreachable: Whether it measured no file any more, so that it was not asked again.
    """

    target: TargetName
    latency_ms: float | None = None
    memory_bytes: int | None = None
    failure: str | None = None
    is_unreachable: bool = False


_OPENVINO = "openvino_"


class Latencies(Timing):
    """What running a model's files takes, the ONNX file in onnxruntime; None for what was not measured.

    Attributes:
        processor: Name of the processor on which the rest was measured.
        oldest_onnxruntime: The oldest version of onnxruntime that loads the ONNX file, from its opset and IR version.
        peak_memory_bytes: Batch size -> growth of a process that runs the file; None outside Linux.
        targets: Name of each other target -> what its file costs.
        device: What the user's device says of the file; None if there is no device.
        openvino_bytes: That of OpenVINO, as versions before 0.2.0 wrote it, and so the next three.
        openvino_latency_ms: As above.
        openvino_latency_quartiles_ms: As above.
        openvino_latency_fastest_ms: As above.
    """

    processor: str | None = None
    oldest_onnxruntime: str | None = None
    peak_memory_bytes: dict[BatchSize, int] | None = None
    targets: dict[TargetName, TargetCosts] = Field(default_factory=dict)
    device: DeviceCosts | None = None
    openvino_bytes: int | None = None
    openvino_latency_ms: dict[BatchSize, float] | None = None
    openvino_latency_quartiles_ms: dict[BatchSize, tuple[float, float]] | None = None
    openvino_latency_fastest_ms: dict[BatchSize, float] | None = None

    @model_validator(mode="before")
    @classmethod
    def _same_of_openvino(cls, data: Any) -> Any:
        """Has OpenVINO both among the targets and in its own fields, which users' tools read."""
        if not isinstance(data, Mapping):
            return data
        fields = [name for name in cls.model_fields if name.startswith(_OPENVINO)]
        targets = data.get("targets") or {}
        if (known := targets.get("openvino")) is not None:
            costs = known if isinstance(known, TargetCosts) else TargetCosts.model_validate(known)
            return {**data, **{name: getattr(costs, name.removeprefix(_OPENVINO)) for name in fields}}
        if data.get("openvino_bytes") is not None:
            costs = TargetCosts.model_validate({name.removeprefix(_OPENVINO): data.get(name) for name in fields})
            return {**data, "targets": {**targets, "openvino": costs}}
        return data


class Measurements(Latencies):
    """What a model and its files cost.

    Attributes:
        parameters: Numbers in the parameters, zeros included.
        nonzero_parameters: Those that are not zero.
        macs: Multiply-accumulate operations per example.
        onnx_bytes: Size of the ONNX file.
        onnx_gzip_bytes: Size of the gzipped ONNX file.
        onnx_sha256: SHA-256 of the ONNX file in hexadecimal digits; None in files of versions before 0.2.0.
    """

    parameters: int
    nonzero_parameters: int
    macs: int
    onnx_bytes: int
    onnx_gzip_bytes: int
    onnx_sha256: str | None = None


class FileAgreement(Result):
    """How closely an exported file computes what its model computes.

    Attributes:
        difference: Largest difference between two outputs, as a fraction of the model's largest output.
        same_labels: Fraction of equal labels in [0, 1]; None if the outputs have fewer than two classes.
        batch_sizes: Batch sizes that were compared.
    """

    difference: float
    same_labels: float | None
    batch_sizes: tuple[int, ...]


class FileAgreements(Result):
    """How closely each file of a candidate agrees with its model.

    Attributes:
        onnx: The ONNX file in onnxruntime.
        program: The `.pt2` file; None if there is none.
        openvino: OpenVINO's files; None if there are none.
        targets: Name of each target beside ONNX and `.pt2` -> its file.
        exported_rate: Rate counted on the ONNX file; None if it cannot be counted there.
    """

    onnx: FileAgreement
    program: FileAgreement | None = None
    openvino: FileAgreement | None = None
    targets: dict[TargetName, FileAgreement] = Field(default_factory=dict)
    exported_rate: float | None = None


class CandidateResult(Measurements):
    """A model whose files were judged: what they cost and how well they do.

    Attributes:
        name: Name that people read; unique within a run.
        stage: Search stage that made it: 1, 2 or 3.
        checkpoint: Number of the checkpoint in its stage's run; None if it has none.
        rate: Its compression rate, in [0, 1].
        requested_rate: Rate asked for when it was trained; None if unknown.
        standard_error: Standard error of its drop on the validation split; None if unknown.
        validation: Metric of its ONNX file on the validation split.
        validation_program: Metric of its `.pt2` file; None if there is none.
        validation_openvino: Metric of its OpenVINO files; None if there are none.
        validations: Name of each target beside ONNX and `.pt2` -> metric of its file.
        shipped: Target whose file decides and is certified: ONNX, or the one that the objective names.
        guards: Value of each guard on the validation split, for that file.
        agreement: How closely its files agree with the model.
        program_bytes: Size of its `.pt2` file in bytes; None if there is none, or in files of versions before 0.2.0.
    """

    name: str
    stage: int
    checkpoint: int | None = None
    rate: float
    requested_rate: float | None = None
    standard_error: float | None = None
    validation: float
    validation_program: float | None = None
    validation_openvino: float | None = None
    validations: dict[TargetName, float] = Field(default_factory=dict)
    shipped: TargetName = "onnx"
    guards: dict[str, float] = Field(default_factory=dict)
    agreement: FileAgreements | None = None
    program_bytes: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _validation_of_openvino(cls, data: Any) -> Any:
        """Has the metric that versions before 0.2.0 wrote for OpenVINO among the others."""
        known = data.get("validation_openvino") if isinstance(data, Mapping) else None
        if known is None:
            return data
        return {**data, "validations": {"openvino": known, **(data.get("validations") or {})}}

    @computed_field  # type: ignore[prop-decorator]  # mypy knows no decorated property
    @property
    def id(self) -> str:
        """Identity within a run: the stage and checkpoint of the model, for example `stage-1-checkpoint-50`."""
        return f"stage-{self.stage}" if self.checkpoint is None else f"stage-{self.stage}-checkpoint-{self.checkpoint}"

    @property
    def shipped_validation(self) -> float | None:
        """Metric of the file that decides, on the validation split; None as in `validation_of`."""
        return self.validation_of(self.shipped)

    def validation_of(self, target: TargetName) -> float | None:
        """Metric of one target's file on the validation split; None if that file was not judged.

        The file of another target says nothing of it.
        """
        known = {"onnx": self.validation, "pt2": self.validation_program}
        return known[target] if target in known else self.validations.get(target)
