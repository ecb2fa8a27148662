"""What the default search policy takes for an epoch, and what a run writes, after 1,000 and 10,000 epochs.

python -m benchmarks.scale policy_cost [--size 1]
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.scale.bars import Row
from kedro_aat.search.attempts import FrontierState
from kedro_aat.search.frontier import Frontier
from kedro_aat.search.policy import Epoch, EpochResult, Problem
from kedro_aat.training.checkpoints import Checkpoint, CheckpointStore

_DROP = 0.01
_TIMED = 50  # last epochs whose median is told


def rows(size: float) -> Iterator[Row]:
    """Measures a search on a simulated model, whose epochs are nearly all of the polish.

    Args:
        size: In 10,000 epochs.
    """
    for num_epochs, bar in ((round(1000 * size), 2), (round(10_000 * size), 5)):
        for standard_error in (0.2 * _DROP, None):
            milliseconds = _search(num_epochs, standard_error, [])
            known = "known" if standard_error else "unknown"
            yield Row(f"epoch {num_epochs}, {known} standard error", milliseconds, "ms CPU", bar)
    states: list[FrontierState] = []
    _search(round(1000 * size), 0.2 * _DROP, states, num_kept=round(1000 * size))
    for num_epochs in (len(states) // 2, len(states)):
        yield Row(f"written for each of {num_epochs} epochs", _written(states[:num_epochs]) / num_epochs, "kB")


def _search(num_epochs: int, standard_error: float | None, states: list[FrontierState], *, num_kept: int = 0) -> float:
    """Milliseconds of an epoch, as the median of the last ones; `states` gets the first states."""
    policy = Frontier(maximal_total_epochs=2 * num_epochs)
    state, rate = policy.initial(Problem(maximal_rate=0.998, tolerated_drop=_DROP, regrows=True)), 0.0
    times: list[float] = []
    for number in range(num_epochs):
        started = time.process_time()
        move = policy.ask(state)
        asked = time.process_time() - started
        assert isinstance(move, Epoch)
        rate = move.rate_path[-1] if move.rate_path else rate
        margin = _DROP * (1 - math.exp(2 * (-math.log1p(-rate) - 2)) + 0.3 * math.sin(5 * number))
        result = EpochResult(
            checkpoint=number,
            trained=move.train,
            requested_rate=rate,
            achieved_rate=rate,
            metric=margin,
            margin=margin,
            standard_error=standard_error,
        )
        started = time.process_time()
        state = policy.tell(state, result)
        _ = state.needed, state.needed_optimizers, state.best
        times.append(asked + time.process_time() - started)
        states += [state] if number < num_kept else []
    return 1e3 * statistics.median(times[-_TIMED:])


def _written(states: list[FrontierState]) -> float:
    """Kilobytes that a run writes without its tensors: journals and states of all checkpoints."""
    total, rows = 0, list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as folder, CheckpointStore(Path(folder)).open({}) as run:
        for number, state in enumerate(states):
            rows.append({"epoch": number, "metric": 0.9123456789, "margin": 0.0123456789, "tactic": None})
            run.save(
                Checkpoint(number, {"weight": torch.zeros(1)}, {}, {}, {"search": state, "history": rows}), keep=()
            )
            total += (run.folder / f"checkpoint-{number:06d}" / "state.json").stat().st_size
        total += sum(path.stat().st_size for path in run.folder.glob("*.jsonl"))
    return total / 1e3
