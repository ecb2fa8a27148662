"""Weights that are divided among gloo ranks: what a new rate and a step cost each of them.

python -m benchmarks.scale divided [--size 1]
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from benchmarks.scale.bars import Row
from benchmarks.scale.meter import cost_of
from kedro_aat.compression.build import build_controller
from kedro_aat.compression.controller import ModelController
from kedro_aat.compression.settings import Importance, MagnitudeSparsity
from kedro_aat.training.ranks.divided_model import divided_copy

_IMPORTANCES: tuple[Importance, ...] = ("abs", "lamp")
_SIZES = (1, 2, 4)


def rows(size: float) -> Iterator[Row]:
    """Measures a perceptron with five layers, AdamW and a batch of 8, on rank 0 of 1, 2 and 4 ranks.

    Args:
        size: In 20 million weights.
    """
    # Else glibc keeps what blocks of weights have left, in holes that the next ones do not fit into.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(1 << 20)
    for world_size, importance in itertools.product(_SIZES, _IMPORTANCES):
        with tempfile.TemporaryDirectory() as folder:
            ranks = [
                multiprocessing.Process(target=_rank, args=(rank, world_size, importance, size, folder))
                for rank in range(world_size)
            ]
            for process in ranks:
                process.start()
            for process in ranks:
                process.join()
            found: list[tuple[str, float, str]] = torch.load(Path(folder) / "found.pt")
        for what, value, unit in found:
            yield Row(f"{importance} on {world_size} ranks, {what}", value, unit)


def _rank(rank: int, world_size: int, importance: Importance, size: float, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size, timeout=timedelta(hours=1)
    )
    [*_measured(importance, 64)]  # what is imported and allocated only once
    found = [*_measured(importance, round((size * 2e7 / 5) ** 0.5))]
    if rank == 0:
        torch.save(found, Path(folder) / "found.pt")
    dist.destroy_process_group()


def _measured(importance: Importance, width: int) -> Iterator[tuple[str, float, str]]:
    """Yields what was measured, the number and its unit."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(5)))
    weights = sum(weight.nbytes for weight in model.parameters())
    inputs, targets = torch.randn(8, width), torch.randint(width, (8,))
    controller = build_controller(model, MagnitudeSparsity(importance=importance))
    controller.disable_scheduler()
    made: list[ModelController] = []

    def train() -> None:
        made.append(divided := divided_copy(controller, torch.device("cpu")))
        optimizer = torch.optim.AdamW(divided.model.parameters())
        for rate in (0.5, 0.6):
            divided.compression_rate = rate
            optimizer.zero_grad()
            nn.functional.cross_entropy(divided.model(inputs), targets).backward()
            optimizer.step()

    _, peak = cost_of(train)
    yield "training: peak beside the whole model", peak / weights, "x weights"
    with _Counted() as counted:
        seconds, peak = cost_of(partial(setattr, made[0], "compression_rate", 0.8))
    yield "new rate", seconds, "s CPU"
    yield "new rate: peak above the start", peak / weights, "x weights"
    yield "new rate: all-reduced", counted.num_bytes / 1024, "KiB"


class _Counted:
    """Counts the bytes that a rank gives to `all_reduce`; a single process gives none."""

    def __enter__(self) -> _Counted:
        self.num_bytes = 0

        def counting(tensor: torch.Tensor, op: Any = dist.ReduceOp.SUM, **others: Any) -> Any:
            self.num_bytes += tensor.nbytes
            return self._all_reduce(tensor, op, **others)

        self._all_reduce: Any = dist.all_reduce
        dist.all_reduce = counting  # type: ignore[assignment]  # its arguments are the same
        return self

    def __exit__(self, *_: object) -> None:
        dist.all_reduce = self._all_reduce
