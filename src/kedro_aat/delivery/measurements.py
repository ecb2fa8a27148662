"""What is known of a model's files: their costs, how closely they agree with the model, and how well they do."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, computed_field

BatchSize = int


class Result(BaseModel):
    """Base of all results: they cannot change, and hold only finite numbers."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", allow_inf_nan=False, protected_namespaces=(), from_attributes=True
    )


class Latencies(Result):
    """What running a model's files takes; None for what was not measured.

    Attributes:
        processor: Name of the processor on which the rest was measured.
        oldest_onnxruntime: The oldest version of onnxruntime that loads the ONNX file, from its opset and IR version.
        openvino_bytes: Size of OpenVINO's files; None if there are none.
        latency_ms: Batch size -> median time of one run in onnxruntime, in milliseconds.
        latency_quartiles_ms: Batch size -> first and third quartile.
        latency_fastest_ms: Batch size -> the fastest turn; the ratio of two models' fastest turns repeats best.
        peak_memory_bytes: Batch size -> growth of a process that runs the file; None outside Linux.
        openvino_latency_ms: Batch size -> median time in OpenVINO; None if there are no such files.
        openvino_latency_quartiles_ms: Batch size -> first and third quartile in OpenVINO.
        openvino_latency_fastest_ms: Batch size -> the fastest turn in OpenVINO.
    """

    processor: str | None = None
    oldest_onnxruntime: str | None = None
    openvino_bytes: int | None = None
    latency_ms: dict[BatchSize, float] | None = None
    latency_quartiles_ms: dict[BatchSize, tuple[float, float]] | None = None
    latency_fastest_ms: dict[BatchSize, float] | None = None
    peak_memory_bytes: dict[BatchSize, int] | None = None
    openvino_latency_ms: dict[BatchSize, float] | None = None
    openvino_latency_quartiles_ms: dict[BatchSize, tuple[float, float]] | None = None
    openvino_latency_fastest_ms: dict[BatchSize, float] | None = None


class Measurements(Latencies):
    """What a model and its files cost.

    Attributes:
        parameters: Numbers in the parameters, zeros included.
        nonzero_parameters: Those that are not zero.
        macs: Multiply-accumulate operations per example.
        onnx_bytes: Size of the ONNX file.
        onnx_gzip_bytes: Size of the gzipped ONNX file.
    """

    parameters: int
    nonzero_parameters: int
    macs: int
    onnx_bytes: int
    onnx_gzip_bytes: int


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
        program: The `.pt2` file.
        openvino: OpenVINO's files; None if there are none.
        exported_rate: Rate counted on the ONNX file; None if it cannot be counted there.
    """

    onnx: FileAgreement
    program: FileAgreement
    openvino: FileAgreement | None = None
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
        validation_program: Metric of its `.pt2` file.
        validation_openvino: Metric of its OpenVINO files; None if there are none.
        guards: Value of each guard for its ONNX file, on the validation split.
        agreement: How closely its files agree with the model.
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
    guards: dict[str, float] = Field(default_factory=dict)
    agreement: FileAgreements | None = None

    @computed_field  # type: ignore[prop-decorator]  # mypy knows no decorated property
    @property
    def id(self) -> str:
        """Identity within a run: the stage and checkpoint of the model, for example `stage-1-checkpoint-50`."""
        return f"stage-{self.stage}" if self.checkpoint is None else f"stage-{self.stage}-checkpoint-{self.checkpoint}"
