"""What of a plan does not fit, and what to do: the number first."""

from __future__ import annotations

from collections.abc import Sequence

from kedro_aat.planning.formulas import Plan, total


def advice(plan: Plan) -> Sequence[str]:
    """What does not fit, with the number first and then what to do; empty if all fits, or if no limit is known."""
    machine, found = plan.job.machine, []
    device, host, end = total(plan.device), plan.peak_bytes, total(plan.disk) + plan.checkpoint
    if machine.kind == "gpu" and machine.memory_bytes is not None and device > machine.memory_bytes:
        found.append(
            f"{in_bytes(device)} at the peak exceed the {in_bytes(machine.memory_bytes)} of a device: "
            + " or ".join(_mends(plan))
        )
    if machine.host_bytes is not None and host > machine.host_bytes:
        mends = _mends(plan) if machine.kind == "cpu" and host > total(plan.delivery) else ["use a machine with more"]
        found.append(
            f"{in_bytes(host)} at the peak exceed the {in_bytes(machine.host_bytes)} of this machine: "
            + " or ".join(mends)
        )
    if machine.disk_bytes is not None and end > machine.disk_bytes:
        found.append(
            f"{in_bytes(end)} on disk exceed the {in_bytes(machine.disk_bytes)} that are free: give checkpoint_store "
            "and the models another disk, or search.maximal_total_epochs fewer epochs"
        )
    return found


def _mends(plan: Plan) -> list[str]:
    job, items = plan.job, {item.name: item.value for item in plan.device}
    stage, mends = job.stages[plan.stage], []
    if items.get("activations", 0.0) > 0.2 * total(plan.device):
        half = max(1, int(stage.work.batch_size // 2))
        mends.append(f"set training.batch_size: {half}, or training.on_out_of_memory: halve_batch,")
    if "shadows" in items and stage.shadow == "device":
        mends.append("set shadow_on_host: true of the compression,")
    if "teacher" in items:
        mends.append("set training.distillation: null,")
    if job.optimizer_values > 1:
        mends.append("take SGD as training.optimizer,")
    if job.machine.devices > 1 and not job.machine.sharded and not job.not_sharded:
        mends.append("set training.sharding: fully_shard,")
    mends.append("use a device with more memory")
    return mends


def in_bytes(number: float) -> str:
    """A number of bytes for people, with three digits: `41.3 GB`."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= 0.9995 * size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f} B"
