"""Formulas for the memory, the disk and the time of a run: numbers in, numbers out, without torch.

Bytes are bytes (1 GB is 10^9 of them), times are seconds of one machine, and P counts parameters. A value of `Item` has
one of three origins: `measured` was measured with the model and its data, `computed` follows from shapes and settings,
and `empirical` has a factor that was measured on other models; the constants below say on which.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from kedro_aat.planning.job import Job, Model, Origin, Stage

# Checkpoints at the end of a search of E epochs are LEAST_KEPT + KEPT_PER_DOUBLING * log2(E), at most E + 1 and at most
# MOST_KEPT: the medians of 60 simulated searches of 3, 6, 12, 24 and 60 epochs kept 4, 6, 6, 8 and 11
# (`python -m benchmarks.scale kept`).
LEAST_KEPT, KEPT_PER_DOUBLING, MOST_KEPT = 3.0, 1.35, 17
# Checkpoints that keep their optimizers: the newest two.
WITH_OPTIMIZER = 2
# Bytes of a finished step for each byte of the ONNX file in it, which is text in base64.
FILE_TEXT = 4 / 3
# Peak of the node that exports above the process and the models that it is given, in units of the weights: 12.2 for a
# perceptron with 41 million weights under sparsity, whose file is as large as its baseline's
# (`python -m benchmarks.scale plan`).
DELIVERY_FACTOR = 12.0
# Memory that glibc keeps of freed tensors below 32 MB, in units of these weights: 2.2 to 3.4 while networks of 3 to 12
# million parameters train, and 0.2 of one with 41 million, whose tensors are larger (the same benchmark).
HEAP_FACTOR = 2.5


@dataclass(frozen=True)
class Item:
    """One number of a plan.

    Attributes:
        name: What it is.
        value: Bytes or seconds.
        origin: Where it comes from.
        formula: How it is computed, in words.
    """

    name: str
    value: float
    origin: Origin
    formula: str


def total(items: Iterable[Item]) -> float:
    """The sum of some items."""
    return sum(item.value for item in items)


@dataclass(frozen=True)
class Plan:
    """What a run will take.

    Attributes:
        job: What it was computed from.
        stage: Position of the stage that needs most memory.
        device: Peak memory of one device while that stage trains, in bytes; on a CPU, that of one process.
        host: Peak memory of the process on the host that trains and writes, in bytes; empty on a CPU, where it is in
            `device`.
        delivery: Peak memory of the host while files are made and judged, in bytes.
        disk: Bytes at the end of the run.
        checkpoint: Bytes of the newest checkpoint.
        older: Bytes of one without optimizers.
        epoch: Seconds of an epoch of the first stage.
        time: Seconds of the run by part.
    """

    job: Job
    stage: int
    device: tuple[Item, ...]
    host: tuple[Item, ...]
    delivery: tuple[Item, ...]
    disk: tuple[Item, ...]
    checkpoint: float
    older: float
    epoch: tuple[Item, ...]
    time: tuple[Item, ...]

    @property
    def peak_bytes(self) -> float:
        """Highest memory of the host: in training, on a CPU of all processes, or while files are made."""
        processes = self.job.machine.devices if self.job.machine.kind == "cpu" else 1
        return max(processes * total(self.host or self.device), total(self.delivery))


def plan(job: Job) -> Plan:
    """Computes what a run will take.

    Args:
        job: What it depends on.

    Raises:
        ValueError: If there is no stage, or a number is not positive where it must be.
    """
    if not job.stages or job.model.parameters <= 0 or job.machine.devices < 1:
        raise ValueError("a plan needs a stage, parameters and at least one device")
    stages = range(len(job.stages))
    largest = max(stages, key=lambda stage: total(device_memory(job, stage)))
    return Plan(
        job,
        largest,
        device_memory(job, largest),
        host_memory(job, largest) if job.machine.kind == "gpu" else (),
        delivery_memory(job) if job.exports else (),
        disk(job),
        checkpoint_bytes(job, optimizers=True),
        checkpoint_bytes(job, optimizers=False),
        () if job.machine.sharded else epoch_seconds(job),
        () if job.machine.sharded else run_seconds(job),
    )


def mask_bytes(model: Model) -> float:
    """Masks on the device: a byte for each maskable weight; tensors of at most 65,536 have theirs as numbers, too."""
    return model.maskable + 4.0 * model.small


def optimizer_bytes(job: Job, model: Model) -> float:
    """The optimizer's state: its values for each trained parameter of the model of a stage."""
    return job.optimizer_values * job.value_bytes * model.trainable


def device_memory(job: Job, position: int = 0) -> tuple[Item, ...]:
    """Peak of one device while it trains: see the names and formulas of the items.

    With `sharded`, weights, masks, optimizers and gradients are divided by the number of devices, and the largest layer
    is gathered, which is left out: it is small beside the rest, unless there are few layers.

    Args:
        job: The job.
        position: Position of the stage.
    """
    machine, stage = job.machine, job.stages[position]
    model = job.model_of(stage)
    share = 1 / machine.devices if machine.sharded else 1.0
    each = f", divided by {machine.devices} devices" if machine.sharded and machine.devices > 1 else ""
    weights = model.weight_bytes + model.buffer_bytes
    items = [
        Item("weights", weights * share, "computed", f"{model.value_bytes:g} P, and buffers{each}"),
        Item("masks", mask_bytes(model) * share, "computed", f"a byte for each masked weight{each}"),
        Item(
            "optimizer",
            optimizer_bytes(job, model) * share,
            "computed",
            f"{job.optimizer_values:g} values of each{each}",
        ),
    ]
    if stage.shadow == "device":
        shadow = model.value_bytes * model.maskable * share
        items.append(Item("shadows", shadow, "computed", "the masked weights once more"))
    if machine.kind == "gpu" and job.distills:
        teacher = job.model.weight_bytes + job.model.buffer_bytes
        items.append(Item("teacher", teacher * share, "computed", f"the uncompressed model{each}"))
    items += _work(job, stage, share)
    if machine.devices > 1 and not machine.sharded:
        buckets = job.value_bytes * model.trainable
        items.append(Item("buckets", buckets, "computed", "gradients that DistributedDataParallel sends"))
    if machine.kind == "cpu":
        items += host_memory(job, position)
    return tuple(items)


def _work(job: Job, stage: Stage, share: float) -> Iterable[Item]:
    """Gradients, activations and temporary copies."""
    work, model = stage.work, job.model_of(stage)
    gradients = job.value_bytes * model.trainable * share
    in_step = work.example_bytes * work.batch_size / job.machine.devices
    # A divided model is masked, and never cut: what was measured of a step has the cut copy.
    has_no_copy = stage.algorithm == "filters" and job.machine.sharded
    fixed_bytes = None if has_no_copy else work.fixed_bytes
    if fixed_bytes is not None and gradients + work.refresh_bytes * share > fixed_bytes * share + in_step:
        changing = gradients + work.refresh_bytes * share
        yield Item("gradients, and a change of the rate", changing, job.origin, "more than a step needs")
        return
    if fixed_bytes is None:
        yield Item("gradients", gradients, "computed", "one value for each trained parameter")
        if stage.algorithm == "filters" and not has_no_copy:
            yield Item(
                "cut copy", cut_copy_bytes(job) * share, "computed", "a cut model at rate 0.5, see cut_copy_bytes"
            )
    else:
        fixed = fixed_bytes * share
        yield Item("gradients and temporary copies", fixed, job.origin, "peak of a step without its activations")
    yield Item("activations", in_step, job.origin, f"{work.example_bytes:,.0f} bytes for each example of a batch")


def cut_copy_bytes(job: Job, rate: float = 0.5) -> float:
    """The cut copy of a model that filter pruning trains, at a rate.

    The parameters that are left, their optimizer's state, and the place of each as an int64.
    """
    left = (1 - rate) * job.model.parameters
    return left * (job.model.value_bytes + job.optimizer_values * job.value_bytes + 8)


def host_memory(job: Job, position: int = 0) -> tuple[Item, ...]:
    """The process on the host: libraries, data, the uncompressed model, and the copy that a checkpoint is written from.

    The rank that writes has all of it. With `sharded`, the host has the whole model, the whole teacher beside it, and
    no copy, since each rank writes its part before it trains on.

    Args:
        job: The job.
        position: Position of the stage.
    """
    model, machine, stage = job.model, job.machine, job.stages[position]
    share = 1 / machine.devices if machine.sharded else 1.0
    weights = model.weight_bytes + model.buffer_bytes
    items = [
        Item("process", job.process_bytes, job.origin, "Python and libraries"),
        Item("data", job.data_bytes, "computed", "splits in memory"),
        Item("uncompressed model", weights, "computed", "also the teacher, on a CPU"),
    ]
    if not machine.sharded:
        copied = "a copy of all state, written while training goes on"
        items.append(Item("checkpoint", _state_bytes(job, stage), "computed", copied))
    elif job.distills:
        items.append(Item("whole teacher", weights, "computed", "from which each rank takes its part"))
    if job.model.heap_bytes:
        items.append(_kept_by_allocator(job))
    if stage.shadow == "host":
        shadow = model.value_bytes * job.model_of(stage).maskable * share
        items.append(Item("shadows", shadow, "computed", "the masked weights once more"))
    return tuple(items)


def _kept_by_allocator(job: Job) -> Item:
    formula = f"{HEAP_FACTOR:g} times the tensors below 32 MB, after they are freed"
    return Item("kept by the allocator", HEAP_FACTOR * job.model.heap_bytes, "empirical", formula)


def _state_bytes(job: Job, stage: Stage) -> float:
    """All state of the training: weights, buffers, masks, shadows, optimizer."""
    model = job.model_of(stage)
    shadow = 0.0 if stage.shadow == "none" else model.value_bytes * model.maskable
    return model.weight_bytes + model.buffer_bytes + model.maskable + shadow + optimizer_bytes(job, model)


def checkpoint_bytes(job: Job, *, optimizers: bool, stage: int = 0) -> float:
    """A checkpoint on disk: weights, buffers, masks as bits (1/8 byte), shadows, and the optimizers if they are kept.

    Args:
        job: The job.
        optimizers: Whether the state of the optimizers is in it, as in the newest two.
        stage: Position of the stage.
    """
    of = job.stages[stage]
    model = job.model_of(of)
    shadow = 0.0 if of.shadow == "none" else model.value_bytes * model.maskable
    without = model.weight_bytes + model.buffer_bytes + model.maskable / 8 + shadow
    return without + (optimizer_bytes(job, model) if optimizers else 0.0)


def num_checkpoints(epochs: float) -> float:
    """Checkpoints at the end of a search: the first, the newest two, and the best ones of each size.

    Args:
        epochs: Epochs of the search, at least 1.
    """
    return min(epochs + 1, LEAST_KEPT + KEPT_PER_DOUBLING * math.log2(max(epochs, 1.0)), MOST_KEPT)


def disk(job: Job) -> tuple[Item, ...]:
    """Bytes at the end of a run. While it runs, one more checkpoint with optimizers is there."""
    weights = job.model.weight_bytes + job.model.buffer_bytes
    items = []
    for number, stage in enumerate(job.stages):
        kept = num_checkpoints(stage.num_epochs)
        newest = min(WITH_OPTIMIZER, kept)
        size = newest * checkpoint_bytes(job, optimizers=True, stage=number)
        size += (kept - newest) * checkpoint_bytes(job, optimizers=False, stage=number)
        name = "checkpoints" if len(job.stages) == 1 else f"checkpoints, stage {number + 1}"
        formula = f"{newest:g} with optimizers, about {kept - newest:.0f} without"
        items.append(Item(name, size, "empirical", formula))
    controllers = _controller_bytes(job, job.stages[0]) + _controllers_bytes(job)
    items.append(Item("controllers", controllers, "computed", "before the search, and after each of three stages"))
    if job.exports:
        shares = [stage.file_share for stage in job.stages]
        formula = f"model, ONNX and .pt2, {min(shares):.3g} of the weights each"
        items.append(Item("delivered files", 3 * min(shares) * weights, "computed", formula))
        finished = FILE_TEXT * weights * (1 + sum(shares))
        items.append(Item("finished steps", finished, "computed", "4/3 of the ONNX file of each model, in base64"))
    return tuple(items)


def _controller_bytes(job: Job, stage: Stage) -> float:
    model = job.model_of(stage)
    return model.weight_bytes + model.buffer_bytes + model.maskable


def _controllers_bytes(job: Job) -> float:
    """Controllers after each of three stages: one that is left out passes on that of the stage before."""
    return sum(_controller_bytes(job, job.stages[min(number, len(job.stages) - 1)]) for number in range(3))


def delivery_memory(job: Job) -> tuple[Item, ...]:
    """Peak of the host while files are made, compared, judged and measured."""
    weights = job.model.weight_bytes + job.model.buffer_bytes
    loaded = weights + _controllers_bytes(job)
    return (
        Item("process", job.process_bytes, job.origin, "Python and libraries"),
        Item("data", job.data_bytes, "computed", "splits in memory"),
        _kept_by_allocator(job),
        Item("models", loaded, "computed", "the uncompressed one, and a controller of each of three stages"),
        Item("files", DELIVERY_FACTOR * weights, "empirical", f"{DELIVERY_FACTOR:g} times the weights, as measured"),
    )


def epoch_seconds(job: Job, position: int = 0) -> tuple[Item, ...]:
    """An epoch, of a cut model at a rate of 0.8: steps, validation, a change of the rate, and its checkpoint.

    Data parallel devices divide the computation of a step. What they send (`traffic_bytes`) takes no time here.

    Args:
        job: The job.
        position: Position of the stage.
    """
    work, machine, origin = job.stages[position].work, job.machine, job.origin
    compute = max(work.step_seconds - work.load_seconds, 0.0) / machine.devices + work.load_seconds
    training = work.begin_seconds + work.steps * compute
    items = [
        Item("training", training, origin, f"{work.steps:,.0f} steps of {compute:.3g} s"),
        Item("validation", work.validation_seconds / machine.devices, origin, "one pass over the validation split"),
        Item("change of the rate", work.refresh_seconds, origin, "ranking, and new statistics of BatchNorms"),
    ]
    if job.written_bytes_per_second:
        size = checkpoint_bytes(job, optimizers=True, stage=position)
        items.append(Item("checkpoint", size / job.written_bytes_per_second, origin, "copied, checked and written"))
    return tuple(items)


def traffic_bytes(job: Job) -> float:
    """Bytes that each device sends in a training step.

    A ring all-reduce of the gradients sends 2 (N - 1) / N of them; FSDP gathers the weights twice and scatters the
    gradients once, each (N - 1) / N.
    """
    devices = job.machine.devices
    gradients = job.value_bytes * job.model.trainable
    weights = job.model.weight_bytes
    part = (devices - 1) / devices
    return part * (2 * weights + gradients) if job.machine.sharded else 2 * part * gradients


def run_seconds(job: Job) -> tuple[Item, ...]:
    """Seconds of the run by part. Epochs of a cut model count less than 1, so that there are more of them."""
    origin, files = job.origin, job.files
    baseline = job.stages[0].work.validation_seconds
    items = [Item("baseline", baseline, origin, "one validation")]
    for position, stage in enumerate(job.stages):
        epoch = total(epoch_seconds(job, position))
        name = "search" if len(job.stages) == 1 else f"search, stage {position + 1}"
        # A validation before the first epoch, and one of the model that is returned.
        seconds = stage.num_epochs * epoch + 2 * stage.work.validation_seconds + stage.work.teacher_seconds
        items.append(Item(name, seconds, origin, f"at most {stage.num_epochs:.3g} epochs of {epoch:.3g} s"))
    if job.exports:
        number = len(job.stages)
        # The program is traced for the comparison, and once more for the file.
        seconds = (1 + number) * (files.export + files.measuring) + files.latency
        seconds += number * (2 * files.program + files.judging)
        formula = f"baseline and {number}: export, comparison, judgment, measurement"
        items.append(Item("files", seconds, origin, formula))
    if job.exports and job.certifies:
        seconds = files.export + 2 * files.judging_onnx
        items.append(Item("certificate", seconds, origin, "two files on as many examples as the validation's"))
    return tuple(items)
