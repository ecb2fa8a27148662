"""Measures processor time, peak memory, and pairs of alternating functions."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def cost_of(function: Callable[[], object]) -> tuple[float, int]:
    """Processor seconds of a call, and the bytes by which its peak lies above the memory before it; needs Linux."""
    gc.collect()
    clear_peak()
    before, started = resident("VmRSS:"), time.process_time()
    function()
    return time.process_time() - started, resident("VmHWM:") - before


def clear_peak() -> None:
    """Lets the peak of the resident memory begin anew; needs Linux."""
    _CLEAR.write_text("5")


def ratios_to_first(
    functions: Sequence[Callable[[], object]], num_rounds: int, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Median ratio of each function's time to that of the first one, from rounds in alternating order."""
    times: list[list[float]] = []
    for number in range(num_rounds):
        taken = [0.0] * len(functions)
        order = range(len(functions))
        for index in order if number % 2 else reversed(order):
            started = clock()
            functions[index]()
            taken[index] = clock() - started
        times.append(taken)
    return [statistics.median(taken[index] / taken[0] for taken in times) for index in range(len(functions))]


def resident(key: str) -> int:
    """Resident memory in bytes: `VmRSS:` now, `VmHWM:` its peak; needs Linux."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024
