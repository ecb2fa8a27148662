"""How long a model takes in a runtime, in milliseconds."""

from __future__ import annotations

import statistics
import time
import timeit
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from kedro_aat.export.openvino_file import OpenvinoFiles, bound_openvino_run, compile_openvino
from kedro_aat.export.session import bound_run, open_session

_WARM_UPS = 3  # the first runs of a session allocate its memory
_OPENINGS = 5
_SECONDS_A_TURN = 0.0003  # short enough to fall between two interruptions, long enough for the clock


@dataclass(frozen=True)
class Latency:
    """Time of one run in milliseconds, over many turns of a few runs.

    Attributes:
        median: Half of the turns took less.
        quartiles: A quarter took less than the first, and a quarter more than the second.
        fastest: The turn that was disturbed least. It says what the model takes, the others what the machine added;
            so this is what to compare two models by.
    """

    median: float
    quartiles: tuple[float, float]
    fastest: float


def measure_latency(
    models: Sequence[bytes | onnx.ModelProto | OpenvinoFiles],
    example_input: Tensor,
    *,
    batch_sizes: Sequence[int] = (1, 64),
    num_threads: int = 1,
    seconds: float = 5.0,
) -> list[dict[int, Latency]]:
    """Time of one run of each model on the CPU, for each batch size.

    ONNX models run in onnxruntime, OpenVINO's files in OpenVINO.
    The models take short turns (A B A B ...), so that whatever else the machine does meets them all alike, and each
    finds its quiet moments. Inputs and outputs are bound beforehand: what is timed is the model, and not the 20
    microseconds in which Python hands over an array. On a machine with other work, medians move by tens of percent
    from one second to the next; the ratio of the fastest turns repeats within a few (`benchmarks/job.py --repeats`).

    Args:
        models: ONNX models, serialised or not, and OpenVINO's files.
        example_input: (B, ...), B at least 1; repeated or cut to each batch size.
        batch_sizes: At least 1 each.
        num_threads: Threads within an operator.
        seconds: Time for each batch size, beside that of opening each model 5 times. Large models take longer: each
            has at least 5 turns, of one run or more.

    Returns:
        For each model, batch size -> time.

    Raises:
        ExportError: A runtime cannot load a model.
    """
    files = [model.SerializeToString() if isinstance(model, onnx.ModelProto) else model for model in models]
    results: list[dict[int, Latency]] = [{} for _ in models]
    for batch_size in batch_sizes:
        batch = _batch_of(example_input, batch_size).numpy()
        turns: list[list[float]] = [[] for _ in models]
        for _ in range(_OPENINGS):
            # Where a session's memory happens to lie makes it several percent faster or slower.
            runs = [_opened(file, batch, num_threads) for file in files]
            for taken, more in zip(turns, _in_turns(runs, seconds / _OPENINGS), strict=True):
                taken.extend(more)
        for result, taken in zip(results, turns, strict=True):
            low, middle, high = statistics.quantiles(taken, n=4, method="inclusive")
            result[batch_size] = Latency(middle, (low, high), min(taken))
    return results


def _in_turns(runs: Sequence[Callable[[], object]], seconds: float) -> list[list[float]]:
    """Milliseconds of a run in each of the turns of each of `runs`."""
    timers = [timeit.Timer(run) for run in runs]
    numbers = [_runs_a_turn(timer) for timer in timers]
    turns: list[list[float]] = [[] for _ in timers]
    deadline = time.perf_counter() + seconds
    while not turns[0] or time.perf_counter() < deadline:
        for timer, number, taken in zip(timers, numbers, turns, strict=True):
            taken.append(1000 * timer.timeit(number) / number)
    return turns


def _opened(model: bytes | OpenvinoFiles, batch: NDArray[Any], num_threads: int) -> Callable[[], object]:
    """What runs the model on a batch."""
    if isinstance(model, OpenvinoFiles):
        return bound_openvino_run(compile_openvino(model, num_threads), batch)
    return bound_run(open_session(model, num_threads), batch)


def _runs_a_turn(timer: timeit.Timer) -> int:
    timer.timeit(_WARM_UPS)
    return max(1, int(_SECONDS_A_TURN * _WARM_UPS / timer.timeit(_WARM_UPS)))


def _batch_of(examples: Tensor, batch_size: int) -> Tensor:
    """(B, ...) -> (batch_size, ...), the examples repeated in order."""
    return examples.detach().cpu()[torch.arange(batch_size) % len(examples)]
