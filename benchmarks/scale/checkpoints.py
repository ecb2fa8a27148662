"""A checkpoint of a model with 100 million weights in training with AdamW: its memory, its time, and its place on disk.

python -m benchmarks.scale checkpoints [--size 1]
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.scale.bars import Row
from benchmarks.scale.meter import cost_of
from kedro_aat.compression.build import build_controller
from kedro_aat.compression.settings import MagnitudeSparsity
from kedro_aat.training.checkpoints import Checkpoint, CheckpointStore, RunCheckpoints


def rows(size: float) -> Iterator[Row]:
    """Measures a perceptron with five layers under sparsity: all its state, and with masks alone beside the weights.

    Args:
        size: In 100 million weights.
    """
    width = round((size * 1e8 / 5) ** 0.5)
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(5)))
    names = [name for name, _ in model.named_parameters()]
    weights = sum(weight.nbytes for weight in model.parameters())
    controller = build_controller(model, MagnitudeSparsity())
    controller.disable_scheduler()
    controller.compression_rate = 0.5
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, width)).square().mean().backward()
    optimizer.step()
    everything = model.state_dict()
    masks = {name: everything[name] != 0 for name in names if everything[name].dim() > 1}
    alone = {name: everything[name] for name in names} | {f"{name} mask": mask for name, mask in masks.items()}
    for what, state, is_bar in (("weights and masks of bool", alone, True), ("all state", everything, False)):
        folder = Path(tempfile.mkdtemp())
        try:
            with CheckpointStore(folder).open({}) as run:
                for figure in _saved(run, state, optimizer, weights, is_bar=is_bar):
                    yield figure._replace(what=f"{what}: {figure.what}")
        finally:
            shutil.rmtree(folder)


def _saved(
    run: RunCheckpoints, state: dict[str, Tensor], optimizer: torch.optim.Optimizer, weights: int, *, is_bar: bool
) -> Iterator[Row]:
    stalls: list[float] = []

    def save(number: int) -> None:
        training = {"optimizers": [optimizer.state_dict()]}
        started = time.process_time()
        run.save(Checkpoint(number, state, training, {}), keep_optimizers={number - 1}, wait=False)
        stalls.append(time.process_time() - started)
        run.wait()

    seconds, peak = cost_of(lambda: save(0))
    yield Row("peak above the start", peak / weights, "x weights", 4 if is_bar else None)
    yield Row("training thread", stalls[0], "s CPU")
    yield Row("training thread and writer", seconds, "s CPU")
    save(1)
    save(2)
    for number, what, bar in ((2, "newest", 3.3), (0, "older", 1.1)):
        files = (run.folder / f"checkpoint-{number:06d}").iterdir()
        on_disk = sum(path.stat().st_size for path in files)
        yield Row(f"{what} on disk", on_disk / weights, "x weights", bar if is_bar else None)
    seconds, peak = cost_of(lambda: run.load(2))
    yield Row("reading the newest", seconds, "s CPU")
    yield Row("reading the newest, peak above the start", peak / weights, "x weights")
