"""A step of DistributedDataParallel with two gloo ranks against the same step of a bare model."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.scale.bars import Row
from benchmarks.scale.meter import ratios_to_first
from kedro_aat.compression.build import build_controller
from kedro_aat.compression.settings import CompressionSettings, FilterPruning, MagnitudeSparsity

_ROUNDS = 31
_ALGORITHMS: dict[str, CompressionSettings] = {"sparsity 0.8": MagnitudeSparsity(), "filters 0.5": FilterPruning()}


def rows(size: float) -> Iterator[Row]:
    """Measures a perceptron with five layers and a batch of 8, so that nearly all of the step is about weights.

    Args:
        size: In 10 million weights.
    """
    with tempfile.TemporaryDirectory() as folder:
        ranks = [multiprocessing.Process(target=_rank, args=(rank, size, folder)) for rank in range(2)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        ratios = torch.load(Path(folder) / "ratios.pt")
    for name, ratio in zip(_ALGORITHMS, ratios[1:], strict=True):
        yield Row(f"step of DDP with {name} against bare DDP", ratio, "x", 1.05)


def _rank(rank: int, size: float, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    steps = [_step(size, settings) for settings in (None, *_ALGORITHMS.values())]
    for step in steps:
        step()
        step()
    ratios = ratios_to_first(steps, _ROUNDS)
    if rank == 0:
        torch.save(ratios, Path(folder) / "ratios.pt")
    dist.destroy_process_group()


def _step(size: float, settings: CompressionSettings | None) -> Callable[[], None]:
    torch.manual_seed(0)
    width = round((size * 1e7 / 5) ** 0.5)
    hidden = [layer for _ in range(4) for layer in (nn.Linear(width, width), nn.ReLU())]
    model = nn.Sequential(*hidden, nn.Linear(width, width))
    inputs, targets = torch.randn(8, width), torch.randint(width, (8,))
    if settings is not None:
        controller = build_controller(model, settings, example_input=inputs)
        controller.disable_scheduler()
        controller.compression_rate = 0.8 if settings.algorithm == "magnitude_sparsity" else 0.5
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        dist.barrier()
        optimizer.zero_grad()
        nn.functional.cross_entropy(parallel(inputs), targets).backward()
        optimizer.step()
        dist.barrier()

    return step
