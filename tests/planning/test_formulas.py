"""The formulas of a plan: against worked examples, and what they must do whatever the numbers."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kedro_aat.planning.advice import advice, in_bytes
from kedro_aat.planning.formulas import Plan, num_checkpoints, plan, total, traffic_bytes
from kedro_aat.planning.job import Files, Job, Machine, Model, Stage, Work, computed_job
from kedro_aat.planning.shown import as_json, shown

GB = 1e9
JOB = Job(
    Model.of(1e9),
    (Stage("sparsity", 10, work=Work(fixed_bytes=4e9, example_bytes=1e8, steps=100, step_seconds=2.0)),),
    machine=Machine("gpu", memory_bytes=24e9, host_bytes=64e9, disk_bytes=1e12),
    measured=True,
    process_bytes=5e8,
    exports=False,
)


def values(items: tuple[object, ...]) -> dict[str, float]:
    return {item.name: item.value for item in items}  # type: ignore[attr-defined]


def test_formulas_need_no_torch() -> None:
    code = "import sys, kedro_aat.planning.formulas, kedro_aat.planning.shown; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"


def test_a_billion_parameters_with_adamw() -> None:
    planned = plan(computed_job(1e9))
    device = {"weights": 4, "masks": 1, "optimizer": 8, "teacher": 4, "gradients": 4, "activations": 0}
    assert values(planned.device) == {name: value * GB for name, value in device.items()}
    # Masks are bytes in the copy, and bits on disk.
    assert values(planned.host)["checkpoint"] == 13 * GB
    assert planned.checkpoint == 12.125 * GB
    assert planned.older == 4.125 * GB


def test_sharding_divides_what_the_devices_hold() -> None:
    one, many = (plan(computed_job(70e9, devices=number, sharded=True)) for number in (1, 64))
    assert total(many.device) == pytest.approx(total(one.device) / 64)
    assert "checkpoint" not in values(many.host)  # each rank writes its part without a copy
    assert values(many.host)["whole teacher"] == values(many.host)["uncompressed model"] == 4 * 70e9
    assert many.checkpoint == one.checkpoint


def test_sharded_filters_have_no_cut_copy_and_no_known_time() -> None:
    work = replace(JOB.stages[0].work, refresh_bytes=16e9)
    sharded = replace(JOB, machine=replace(JOB.machine, devices=4, sharded=True))
    changing = plan(replace(sharded, stages=(replace(JOB.stages[0], work=work),)))
    assert values(changing.device)["gradients, and a change of the rate"] == (4 * GB + 16e9) / 4
    filters = plan(replace(sharded, stages=(replace(JOB.stages[0], algorithm="filters"),)))
    assert values(filters.device)["gradients"] == GB
    assert "cut copy" not in values(filters.device)
    assert (filters.epoch, filters.time) == ((), ())


def test_data_parallel_devices_divide_steps_and_activations_alone() -> None:
    one, two = plan(JOB), plan(replace(JOB, machine=replace(JOB.machine, devices=2)))
    assert values(one.device)["activations"] == 32e8
    assert values(two.device)["activations"] == 16e8
    assert values(two.device)["weights"] == values(one.device)["weights"]
    assert values(two.device)["buckets"] == 4 * GB
    assert values(one.epoch)["training"] == 200
    assert values(two.epoch)["training"] == 100


def test_traffic() -> None:
    assert traffic_bytes(computed_job(1e9)) == 0
    assert traffic_bytes(computed_job(1e9, devices=2)) == 4 * GB
    assert traffic_bytes(computed_job(1e9, devices=4, sharded=True)) == 9 * GB


def test_every_part_of_the_time() -> None:
    work = Work(steps=10, step_seconds=1, validation_seconds=3, refresh_seconds=2, begin_seconds=1, teacher_seconds=5)
    job = Job(
        Model.of(1e6),
        (Stage(epochs=4, work=work), Stage("int8", 2, work=work, model=replace(Model.of(1e6), maskable=0))),
        files=Files(export=1, program=2, judging=3, judging_onnx=1, measuring=4, latency=10),
        written_bytes_per_second=12.125e6,
    )
    planned = plan(job)
    assert values(planned.epoch) == {"training": 11, "validation": 3, "change of the rate": 2, "checkpoint": 1}
    assert values(planned.time) == pytest.approx(
        {
            "baseline": 3,
            "search, stage 1": 4 * 17 + 6 + 5,
            "search, stage 2": 2 * (16 + 12 / 12.125) + 6 + 5,
            "files": 3 * 5 + 10 + 2 * 7,
            "certificate": 3,
        }
    )


@given(st.floats(1, 1e5))
def test_checkpoints_that_stay(epochs: float) -> None:
    assert 2 <= num_checkpoints(epochs) <= min(epochs + 1, 17)
    assert num_checkpoints(epochs) <= num_checkpoints(epochs + 1)


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (
            replace(JOB, machine=replace(JOB.machine, memory_bytes=20e9)),
            "24.2 GB at the peak exceed the 20 GB of a device: set training.distillation: null",
        ),
        (
            replace(JOB, machine=Machine(host_bytes=20e9)),
            "37.7 GB at the peak exceed the 20 GB of this machine: take SGD as training.optimizer",
        ),
        (
            replace(JOB, stages=(replace(JOB.stages[0], work=replace(JOB.stages[0].work, example_bytes=1e9)),)),
            "53 GB at the peak exceed the 24 GB of a device: set training.batch_size: 16",
        ),
        (
            replace(JOB, stages=(replace(JOB.stages[0], shadow="device"),)),
            "28.2 GB at the peak exceed the 24 GB of a device: set shadow_on_host: true",
        ),
        (
            replace(JOB, machine=replace(JOB.machine, memory_bytes=None, disk_bytes=1e9)),
            "on disk exceed the 1 GB that are free: give checkpoint_store",
        ),
        (
            replace(JOB, machine=replace(JOB.machine, devices=2)),
            "or set training.sharding: fully_shard, or use a device with more memory",
        ),
    ],
    ids=["device", "host", "activations", "shadow", "disk", "several devices"],
)
def test_what_does_not_fit_is_said_with_what_to_do(job: Job, words: str) -> None:
    found = advice(plan(job))
    assert any(words in line for line in found), found


def test_sharding_is_not_offered_where_the_settings_refuse_it() -> None:
    two = replace(JOB, machine=replace(JOB.machine, devices=2))
    refused = plan(replace(two, not_sharded=("compression.algorithm: must be magnitude_sparsity",)))
    assert "sharded (computed)" in shown(plan(two))
    assert "shard" not in shown(refused)


def test_tables_and_json_have_the_same_numbers() -> None:
    fitting = plan(replace(JOB, machine=Machine("gpu", memory_bytes=80e9, host_bytes=64e9, disk_bytes=1e12)))
    text = shown(fitting)
    assert "1,000,000,000 parameters, sparsity (10 epochs), on a GPU" in text
    assert "It fits: 17.5 GB of 64 GB of memory on the host, 24.2 GB of 80 GB on the device" in text
    assert "devices: 2" in text
    totals = as_json(fitting)["totals"]
    assert totals["device while it trains"] == total(fitting.device)
    assert totals["the whole run"] == total(fitting.time)


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0 B"), (999, "999 B"), (999_999, "1 MB"), (41.26e9, "41.3 GB"), (5.69e12, "5.69 TB")]
)
def test_bytes_in_words(number: float, words: str) -> None:
    assert in_bytes(number) == words


@pytest.mark.parametrize("job", [Job(Model.of(0)), Job(Model.of(1), ()), computed_job(1, devices=0)])
def test_nothing_is_planned_for_no_model(job: Job) -> None:
    with pytest.raises(ValueError, match="needs a stage, parameters and at least one device"):
        plan(job)


def test_a_plan_is_a_value() -> None:
    assert isinstance(plan(JOB), Plan)
    assert plan(JOB) == plan(JOB)
