"""What a plan depends on: sizes, settings, the machine, and what was measured. No torch is needed.

Bytes are bytes (1 GB is 10^9 of them), and times are seconds of one machine.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Algorithm = Literal["sparsity", "filters", "int8"]
Origin = Literal["measured", "computed", "empirical"]

# Memory of a process with torch, Kedro and what makes files, as measured with torch 2.13 for CPUs.
PROCESS_BYTES = 0.5e9
# An ONNX file has at most so many bytes; larger models are not exported as one.
LARGEST_FILE = 2e9
# Size of a file in int8, as a share of one in float32.
INT8_SHARE = 0.25


@dataclass(frozen=True)
class Model:
    """Sizes of a model.

    Attributes:
        parameters: Number of parameters, at least 1.
        trainable: Number of those that are trained.
        maskable: Number of weights that have a mask; 0 for int8.
        small: Number of those in tensors of at most 65,536, whose masks are kept as numbers, too.
        heap_bytes: Bytes of its tensors that are smaller than 32 MB, whose freed memory glibc keeps.
        buffer_bytes: Bytes of its buffers, such as BatchNorm statistics.
        value_bytes: Bytes of a parameter: 4 for float32.
    """

    parameters: float
    trainable: float
    maskable: float
    small: float = 0.0
    heap_bytes: float = 0.0
    buffer_bytes: float = 0.0
    value_bytes: float = 4.0

    @classmethod
    def of(cls, parameters: float) -> Model:
        """A model of which nothing but the number of parameters is known: large matrices, all of them compressed."""
        return cls(parameters, parameters, parameters)

    @property
    def weight_bytes(self) -> float:
        """Bytes of all parameters."""
        return self.parameters * self.value_bytes


@dataclass(frozen=True)
class Work:
    """What the steps and epochs of a stage need beside the state of the training.

    Attributes:
        fixed_bytes: Part of the peak of a step that does not depend on the batch: gradients and temporary copies. None
            computes the gradients, and the cut copy of filter pruning.
        example_bytes: Part of that peak for each example of a batch: activations.
        cost: What an epoch counts for the search, as a share of one of the whole model, in (0, 1]; that of a cut model
            at a rate of 0.8.
        refresh_bytes: What a change of the rate needs, while the gradients of the last step are still there.
        batch_size: Examples in a step, on all devices together.
        steps: Training steps in an epoch.
        step_seconds: Training step on one device, with the loading of its batch.
        load_seconds: The loading in it.
        begin_seconds: What an epoch takes before its first step, such as starting processes that load data.
        validation_seconds: One validation.
        refresh_seconds: A change of the rate, with new statistics of BatchNorms.
        teacher_seconds: Answers of the teacher for all training examples, once in a stage.
    """

    fixed_bytes: float | None = None
    example_bytes: float = 0.0
    refresh_bytes: float = 0.0
    cost: float = 1.0
    batch_size: float = 32.0
    steps: float = 0.0
    step_seconds: float = 0.0
    load_seconds: float = 0.0
    begin_seconds: float = 0.0
    validation_seconds: float = 0.0
    refresh_seconds: float = 0.0
    teacher_seconds: float = 0.0


@dataclass(frozen=True)
class Files:
    """Seconds that the files of one model take.

    Attributes:
        export: The ONNX file, and OpenVINO's, exported and compared with the model.
        program: The `.pt2` file.
        judging: A validation of both.
        judging_onnx: A validation of the ONNX file alone.
        measuring: Its latency, memory and compressed size, without the time that the settings give to the latency.
        latency: Time that the settings give to the latency of all files.
    """

    export: float = 0.0
    program: float = 0.0
    judging: float = 0.0
    judging_onnx: float = 0.0
    measuring: float = 0.0
    latency: float = 0.0


@dataclass(frozen=True)
class Stage:
    """One search stage.

    Attributes:
        algorithm: What is compressed.
        epochs: Epochs that the search may use, at least 1.
        shadow: Where weights wait that may come back; a search that chooses the ranking needs none.
        work: What its epochs need.
        model: Sizes of the model that it begins with; None for those of the job.
        file_share: Size of the files of its model, as a share of those of the uncompressed one.
    """

    algorithm: Algorithm = "sparsity"
    epochs: float = 60.0
    shadow: Literal["none", "device", "host"] = "none"
    work: Work = field(default_factory=Work)
    model: Model | None = None
    file_share: float = 1.0

    @property
    def num_epochs(self) -> float:
        """Epochs that are trained, if all count as one of them does."""
        return self.epochs / self.work.cost


@dataclass(frozen=True)
class Machine:
    """What the model is trained on.

    Attributes:
        kind: `cpu`, where host and device are one, or `gpu`.
        devices: Number of devices that train together, each with its part of every batch.
        sharded: Whether weights, gradients and optimizers are divided among them (FSDP2), too.
        memory_bytes: Memory of a device; None if unknown.
        host_bytes: Memory of the host; None if unknown.
        disk_bytes: Free space for checkpoints; None if unknown.
    """

    kind: Literal["cpu", "gpu"] = "cpu"
    devices: int = 1
    sharded: bool = False
    memory_bytes: float | None = None
    host_bytes: float | None = None
    disk_bytes: float | None = None


@dataclass(frozen=True)
class Job:
    """Everything that a plan depends on.

    Attributes:
        model: Sizes of the model.
        stages: Search stages in order, at least one.
        optimizer_values: Values that the optimizer keeps for each trained parameter: 1 (SGD with momentum), 2 (AdamW).
        distills: Whether the uncompressed model teaches.
        machine: What it runs on.
        files: What the files of a model take.
        written_bytes_per_second: Speed at which a checkpoint is copied, checked and written; None if unknown.
        measured: Whether `Work`, `Files` and the process were measured.
        process_bytes: Memory of Python and the libraries.
        data_bytes: Memory of the splits that are loaded.
        exports: Whether files are made; not for models beyond the 2 GB of an ONNX file.
        certifies: Whether the test split is read.
        not_sharded: Settings that do not allow to divide the weights among devices, each with what it must be.
        value_bytes: Bytes of a gradient, and of a value of the optimizer.
    """

    model: Model
    stages: tuple[Stage, ...] = (Stage(),)
    optimizer_values: float = 2.0
    distills: bool = True
    machine: Machine = field(default_factory=Machine)
    files: Files = field(default_factory=Files)
    written_bytes_per_second: float | None = None
    measured: bool = False
    process_bytes: float = 0.0
    data_bytes: float = 0.0
    exports: bool = True
    certifies: bool = True
    not_sharded: tuple[str, ...] = ()
    value_bytes: float = 4.0

    def model_of(self, stage: Stage) -> Model:
        """Sizes of the model in a stage."""
        return stage.model or self.model

    @property
    def knows_time(self) -> bool:
        """Whether times are known; sharded steps are not measured."""
        return self.measured and not self.machine.sharded

    @property
    def origin(self) -> Origin:
        """Origin of what depends on the model and its data alone."""
        return "measured" if self.measured else "computed"


def computed_job(parameters: float, *, devices: int = 1, sharded: bool = False, epochs: float = 60.0) -> Job:
    """A job of which nothing is measured: large matrices under sparsity, AdamW, distillation, float32, on GPUs.

    Without activations, which depend on the model, and without time.

    Args:
        parameters: Number of parameters, at least 1.
        devices: Number of GPUs.
        sharded: Whether weights, gradients and optimizers are divided among them.
        epochs: Epochs of the search.
    """
    return Job(
        Model.of(parameters),
        (Stage(epochs=epochs),),
        machine=Machine("gpu", devices, sharded),
        process_bytes=PROCESS_BYTES,
        exports=4 * parameters <= LARGEST_FILE,
    )
