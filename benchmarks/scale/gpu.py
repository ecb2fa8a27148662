"""The whole training loop on one device against a loop written by hand, and what the device does meanwhile.

python -m benchmarks.scale gpu [--size 1]

On a CUDA GPU: ResNet-50 and ViT-B in bf16, channels-last, compiled, with fused AdamW. On a CPU the same loops run with
small networks, in float32 and not compiled; what needs a GPU is named, and left out.
"""

from __future__ import annotations

import copy
import gc
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.scale.bars import Row
from benchmarks.scale.meter import ratios_to_first
from benchmarks.scale.shapes import ViT, resnet50
from kedro_aat.compression.build import build_controller
from kedro_aat.compression.settings import CompressionSettings, FilterPruning, MagnitudeSparsity, Quantization
from kedro_aat.numerics import autocast, fast_training
from kedro_aat.training.checkpoints import Checkpoint, CheckpointStore
from kedro_aat.training.default import DefaultTraining
from kedro_aat.training.settings import TrainingSettings

HAS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if HAS_GPU else "cpu")
_NEED_A_GPU = "peak memory of the device, synchronizations, the share of the time in which it is idle"
# Settings, rate and the largest ratio to a bare step.
_ALGORITHMS: dict[str, tuple[CompressionSettings, float, float]] = {
    "sparsity": (MagnitudeSparsity(), 0.8, 1.02),
    "filters": (FilterPruning(), 0.5, 1.02),
    "int8": (Quantization(), 0.999, 1.3),
}


def rows(size: float) -> Iterator[Row]:
    """Measures ResNet-50 with batches of 128 and ViT-B with batches of 64; on a CPU small ones with batches of 8.

    Args:
        size: Factor on the number of steps and of rounds.
    """
    num_rounds = max(3, round((15 if HAS_GPU else 7) * size))
    num_steps = max(2, round((30 if HAS_GPU else 4) * size))
    for name, make, pixels, batch_size in _networks():
        data = _data(pixels, batch_size, num_steps)
        model = make()
        bare = _bare(copy.deepcopy(model), data, batch_size)
        bare()
        if HAS_GPU:
            yield Row(f"{name}, bare: the device is idle", _idle(bare), "of the time", None)
        for algorithm, (settings, rate, bar) in _ALGORITHMS.items():
            ours, watched = _ours(copy.deepcopy(model), data, batch_size, settings, rate)
            ours()
            ratio = ratios_to_first([bare, ours], num_rounds)[1]
            yield Row(f"{name}: epoch with {algorithm} against the bare one", ratio, "x", bar if HAS_GPU else None)
            if HAS_GPU:
                yield Row(f"{name}, {algorithm}: steps that wait for the device", watched(), "", 0)
                yield Row(f"{name}, {algorithm}: the device is idle", _idle(ours), "of the time", 0.05)
            del ours, watched
        del bare
        if HAS_GPU:
            yield from _memory(name, model, data, batch_size)
    yield from _stall(size)
    if not HAS_GPU:
        print(f"Not measured, because there is no CUDA GPU: {_NEED_A_GPU}.", file=sys.stderr)


def _networks() -> Iterator[tuple[str, Callable[[], nn.Module], int, int]]:
    if HAS_GPU:
        yield "ResNet-50", resnet50, 224, 128
        yield "ViT-B", ViT, 224, 64
    else:
        yield "ResNet-50, a quarter as wide", lambda: resnet50(16, 10), 64, 8
        yield "ViT of 4 blocks", lambda: ViT(64, 192, 4, 10), 64, 8


def _data(pixels: int, batch_size: int, num_steps: int) -> dict[str, Tensor]:
    number = batch_size * num_steps
    return {"inputs": torch.randn(number, 3, pixels, pixels), "targets": torch.arange(number) % 10}


def _bare(model: nn.Module, data: dict[str, Tensor], batch_size: int) -> Callable[[], object]:
    """An epoch as written by hand: data on the device, one read of the loss."""
    model = model.to(DEVICE, memory_format=torch.channels_last).train()  # type: ignore[call-overload]  # as in `Placement`
    forward: Any = torch.compile(model) if HAS_GPU else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    inputs = data["inputs"].to(DEVICE, memory_format=torch.channels_last)
    targets = data["targets"].to(DEVICE)

    def epoch() -> float:
        total = torch.zeros((), device=DEVICE)
        with fast_training(DEVICE, tf32=True, cudnn_benchmark=True):
            for indices in torch.randperm(len(targets)).to(DEVICE).split(batch_size):
                optimizer.zero_grad(set_to_none=True)
                with autocast(DEVICE, "bf16" if HAS_GPU else "fp32"):
                    loss = F.cross_entropy(forward(inputs[indices]), targets[indices])
                loss.backward()
                optimizer.step()
                total += loss.detach()
        return float(total)

    return epoch


class _Watching:
    """A controller's scheduler, which lets torch refuse whatever waits for the device, from the second step on."""

    def __init__(self, controller: Any, num_steps: int) -> None:
        self.scheduler, self._controller, self._num_steps, self._number = self, controller, num_steps, 0

    def step(self) -> None:
        self._number += 1
        torch.cuda.set_sync_debug_mode("error" if 1 < self._number < self._num_steps else "default")
        self._controller.scheduler.step()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._controller, name)


def _ours(
    model: nn.Module, data: dict[str, Tensor], batch_size: int, settings: CompressionSettings, rate: float
) -> tuple[Callable[[], object], Callable[[], float]]:
    """An epoch of the default training, and one in which nothing may wait: 0 if nothing did, else 1."""
    values: dict[str, Any] = {
        "batch_size": batch_size,
        "metric": {"class_path": "torchmetrics.MeanMetric"},
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-4}},
        "device": str(DEVICE),
        "precision": "bf16" if HAS_GPU else "fp32",
        "channels_last": True,
        "compile": HAS_GPU,
        "distillation": None,
    }
    model = model.to(DEVICE)
    example = data["inputs"][:2].to(DEVICE)
    controller: Any = build_controller(model, settings, example_input=example)
    if isinstance(settings, Quantization):
        controller.calibrate([example])
    controller.disable_scheduler()
    controller.compression_rate = rate
    # Without the controller, filters are masked as they are where the model is compiled, and not cut.
    training = DefaultTraining(
        model, TrainingSettings.model_validate(values), data, None, controller=controller if HAS_GPU else None
    )
    optimizer, _ = training.configure_optimizers()

    def epoch(controller: Any = controller) -> object:
        return training.train_epoch(controller, model, epoch=0, optimizer=optimizer, lr_scheduler=None)

    def watched() -> float:
        try:
            epoch(_Watching(controller, training.steps_per_epoch))
        except RuntimeError as error:
            print(f"A step waits for the device: {error}", file=sys.stderr)
            return 1.0
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return 0.0

    return epoch, watched


def _memory(name: str, model: nn.Module, data: dict[str, Tensor], batch_size: int) -> Iterator[Row]:
    bare = _peak(lambda: _bare(copy.deepcopy(model), data, batch_size))
    for where, on_host, bar in (("on the host", True, 1.10), ("on the device", False, 1.35)):
        settings = MagnitudeSparsity(shadow_on_host=on_host)
        ours = _peak(lambda each=settings: _ours(copy.deepcopy(model), data, batch_size, each, 0.8)[0])  # type: ignore[misc]  # a lambda with a default
        yield Row(f"{name}, sparsity, original weights {where}: peak memory", ours / bare, "x", bar)


def _peak(make: Callable[[], Callable[[], object]]) -> float:
    """Bytes that an epoch needs on the device at its peak, with model, optimizer and data."""
    gc.collect()
    before = torch.cuda.memory_allocated()
    epoch = make()
    epoch()
    torch.cuda.reset_peak_memory_stats()
    epoch()
    return float(torch.cuda.max_memory_allocated() - before)


def _idle(epoch: Callable[[], object]) -> float:
    """Share of an epoch in which no kernel runs; of the second one that is watched: the first starts the watch."""
    seconds = busy = 0.0
    for _ in range(2):
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            started = time.perf_counter()
            epoch()
            torch.cuda.synchronize()
            seconds = time.perf_counter() - started
        busy = sum(event.self_device_time_total for event in profile.key_averages()) / 1e6
    return max(0.0, 1 - busy / seconds)


def _stall(size: float) -> Iterator[Row]:
    """How long a checkpoint keeps the training from going on, per GB: the second one, when memory is pinned already."""
    gigabytes = size * (4.0 if HAS_GPU else 0.4)
    state = {str(number): torch.ones(round(gigabytes * 1e9 / 40), device=DEVICE) for number in range(10)}
    folder = Path(tempfile.mkdtemp())
    try:
        with CheckpointStore(folder).open({}) as run:
            for number in range(3):
                run.wait()
                if HAS_GPU:
                    torch.cuda.synchronize()
                started = time.perf_counter()
                run.save(Checkpoint(number, state, {}, {}), keep=set(), wait=False)
                state["0"].add_(1.0)  # the next step of the training
                if HAS_GPU:
                    torch.cuda.current_stream().synchronize()
                seconds = time.perf_counter() - started
                if number != 1:
                    what = "the first checkpoint" if number == 0 else "a checkpoint"
                    bar = 0.1 if number and HAS_GPU else None
                    yield Row(f"{what} keeps the training waiting", seconds / gigabytes, "s per GB", bar)
    finally:
        shutil.rmtree(folder)
