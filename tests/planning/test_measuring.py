"""What a plan measures, against what a run has in memory and on disk."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.scale.bars import Row
from benchmarks.scale.plan import FACTOR, rows
from kedro_aat.compression.build import build_controller
from kedro_aat.compression.settings import MagnitudeSparsity
from kedro_aat.config import AatSettings
from kedro_aat.planning.formulas import device_memory, plan
from kedro_aat.planning.job import Job
from kedro_aat.planning.live_tensors import LiveTensors
from kedro_aat.planning.measuring import measure
from kedro_aat.training.checkpoints import Checkpoint, CheckpointStore

SPARSITY = {"algorithm": "magnitude_sparsity"}
SGD = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.01}}
ADAMW = {"class_path": "torch.optim.AdamW"}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 200), nn.Linear(200, 4))


DATA = {"inputs": torch.linspace(-1, 1, 70 * 16).view(70, 16), "targets": torch.arange(70) % 4}


def job_of(model: nn.Module, *, with_files: bool = False, **training: Any) -> Job:
    metric = {
        "class_path": "torchmetrics.classification.MulticlassAccuracy",
        "init_args": {"num_classes": 4, "average": "micro"},
    }
    compression = training.pop("compression", SPARSITY)
    values: dict[str, Any] = {
        "budget": {"max_drop": 0.1},
        "compression": compression,
        "training": {"device": "cpu", "metric": metric, "batch_size": 32, **training},
        "export": {"latency_seconds": 0.01, "batch_sizes": [1]},
    }
    settings = AatSettings.model_validate(values)
    return measure(model, DATA, DATA, settings, with_files=with_files)


def test_sizes_are_those_of_the_training_and_its_checkpoint(tmp_path: Path) -> None:
    model = network()
    job = job_of(model, optimizer=ADAMW)
    parameters = sum(weight.numel() for weight in model.parameters())
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    controller = build_controller(network(), MagnitudeSparsity())
    controller.disable_scheduler()
    controller.rank_by(controller.rankings[0])
    controller.compression_rate = 0.5
    optimizer = torch.optim.AdamW(controller.model.parameters())
    controller.model(DATA["inputs"]).sum().backward()
    optimizer.step()
    masks = [buffer for buffer in controller.model.buffers() if buffer.dtype is torch.bool]
    kept = [value for state in optimizer.state.values() for value in state.values() if value.dim()]
    found = {item.name: item.value for item in device_memory(job)}
    assert found["weights"] == 4 * parameters + buffers
    assert found["optimizer"] == sum(tensor.nbytes for tensor in kept)
    assert found["masks"] == sum(m.numel() * (5 if m.numel() <= 1 << 16 else 1) for m in masks)
    with CheckpointStore(tmp_path).open({}) as run:
        for number in range(3):
            saved = Checkpoint(number, controller.model.state_dict(), {"optimizers": [optimizer.state_dict()]}, {})
            run.save(saved, keep_optimizers={number - 1})
        on_disk = [
            sum(path.stat().st_size for path in folder.iterdir()) for folder in sorted(run.folder.glob("checkpoint-*"))
        ]
    planned = plan(job)
    overhead = 20_000  # headers, and what is no tensor
    assert 0 <= on_disk[2] - planned.checkpoint < overhead
    assert -4 * 70_000 < on_disk[0] - planned.older < 8 * 70_000  # small tensors of the optimizer stay


def test_the_peak_of_a_step_is_that_of_its_gradients_and_activations() -> None:
    job = job_of(network(), optimizer=SGD, distillation=None)
    assert job.optimizer_values == 0
    assert not job.distills
    (stage,) = job.stages
    gradients = 4 * job.model.trainable
    assert stage.work.fixed_bytes is not None
    assert gradients == pytest.approx(stage.work.fixed_bytes, rel=0.1)
    assert stage.work.refresh_bytes > job.model.maskable  # new masks
    kept = 4 * (16 + 512 * 3 + 200 + 4)  # inputs and outputs that the backward pass needs
    assert kept / 1.5 < stage.work.example_bytes < 1.5 * kept
    assert stage.work.steps == 2
    assert stage.work.step_seconds > 0


@pytest.mark.parametrize("compression", [{"algorithm": "filter_pruning"}, {"algorithm": "quantization"}])
def test_each_algorithm_is_measured_and_leaves_the_model_as_it_is(compression: dict[str, Any]) -> None:
    model = network().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    job = job_of(model, compression=compression, distillation=None)
    assert job.stages[0].algorithm == {"filter_pruning": "filters", "quantization": "int8"}[compression["algorithm"]]
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert torch.equal(state, torch.get_rng_state())
    assert not model.training


def test_a_model_that_cannot_be_exported_is_planned_without_files(caplog: pytest.LogCaptureFixture) -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.layer(x)
            return out if float(x.sum()) > 0 else -out

    job = job_of(Branches(), with_files=True)
    assert job.files.export == 0
    assert "kedro aat validate" in caplog.text
    assert plan(job).peak_bytes > 0


def test_live_tensors_counts_what_lives_at_the_same_time() -> None:
    held = torch.zeros(1000)
    live = LiveTensors()
    with live:
        held.add_(1)
        held.view(10, 100)
        made = held + 1
        del made
        other = torch.zeros(500)
        assert live.now == other.nbytes
    assert live.peak == held.nbytes


@pytest.mark.slow
def test_files_are_measured() -> None:
    files = job_of(network(), with_files=True).files
    assert min(files.export, files.program, files.judging_onnx, files.measuring) > 0
    assert files.judging > files.judging_onnx
    assert files.latency == 0.01


@pytest.mark.slow
def test_plans_are_right_within_a_factor() -> None:
    found: list[Row] = list(itertools.chain(rows(0.1)))
    assert not [row for row in found if row.value > FACTOR]


def test_devices_and_how_they_share_are_those_of_the_settings() -> None:
    training: dict[str, Any] = {"sharding": "fully_shard", "devices": 2, "on_out_of_memory": "error"}
    machine = job_of(network(), **training).machine
    assert (machine.devices, machine.sharded) == (2, True)
