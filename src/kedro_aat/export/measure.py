"""Measure the latency of exported models in their runtime, in milliseconds."""

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

from kedro_aat.export.session import bind_session, open_session
from kedro_aat.export.targets.registry import target_of
from kedro_aat.export.targets.target import TargetFile
from kedro_aat.model_inputs import ModelInputs, num_examples, take_examples, tensors_in

_WARM_UP_RUNS = 3  # the first runs of a session allocate its memory
_NUM_SESSIONS = 5  # per model and batch size; see the comment in measure_latency
_SECONDS_PER_TURN = 0.0003  # short enough to fall between two interruptions, long enough for the clock


@dataclass(frozen=True)
class Latency:
    """Time of one run in milliseconds, measured over many turns of a few runs each.

    Attributes:
        median: Median of the turns.
        quartiles: First and third quartile of the turns.
        fastest: Time of the fastest turn, which was disturbed least. It shows the cost of the model, while the other
            turns include what the machine added; so compare two models by this.
    """

    median: float
    quartiles: tuple[float, float]
    fastest: float


def measure_latency(
    models: Sequence[bytes | onnx.ModelProto | TargetFile],
    example_input: ModelInputs,
    *,
    batch_sizes: Sequence[int] = (1, 64),
    num_threads: int = 1,
    seconds: float = 5.0,
) -> list[dict[int, Latency]]:
    """Measure the time of one run of each model on the CPU, for each batch size.

    ONNX models run in onnxruntime, other files in the runtime of their target. The models take short turns
    (A B A B ...), so that other work on the machine slows all of them equally, and each finds quiet moments. Inputs and
    outputs are bound in advance where the runtime can, so that the time is the model's alone, without the 20
    microseconds that Python needs to pass an array to onnxruntime.
    On a busy machine, medians change by tens of percent from one second to the next, while the ratio of the fastest
    turns repeats within a few percent (`benchmarks/job.py --repeats`).

    Args:
        models: ONNX models, serialized or not, and files of other targets.
        example_input: What the models are called with, in the order of their files' inputs, with at least one example;
            the examples are repeated or cut to each batch size.
        batch_sizes: Each at least 1.
        num_threads: Number of threads within an operator.
        seconds: Time per batch size, without the time to open each model 5 times. Large models take longer: each
            gets at least 5 turns of at least one run.

    Returns:
        One dictionary per model, from batch size to latency; a file that takes one batch size has that one only.

    Raises:
        ExportError: A runtime cannot load a model.
    """
    files = [model.SerializeToString() if isinstance(model, onnx.ModelProto) else model for model in models]
    results: list[dict[int, Latency]] = [{} for _ in models]
    for batch_size in batch_sizes:
        batch = arrays_of(example_input, batch_size)
        timed = [(result, file) for result, file in zip(results, files, strict=True) if _takes(file, batch_size)]
        turns: list[list[float]] = [[] for _ in timed]
        for _ in range(_NUM_SESSIONS if timed else 0):
            # A session is several percent faster or slower depending on the addresses of its memory.
            runs = [_open_bound(file, batch, num_threads) for _, file in timed]
            for times, more_times in zip(turns, _time_in_turns(runs, seconds / _NUM_SESSIONS), strict=True):
                times.extend(more_times)
        for (result, _), times in zip(timed, turns, strict=True):
            first_quartile, median, third_quartile = statistics.quantiles(times, n=4, method="inclusive")
            result[batch_size] = Latency(median, (first_quartile, third_quartile), min(times))
    return results


def arrays_of(inputs: ModelInputs, batch_size: int) -> list[NDArray[Any]]:
    """The tensors of a batch as arrays, with the examples in order, repeated if there are too few."""
    batch = take_examples(inputs, torch.arange(batch_size) % num_examples(inputs))
    return [tensor.detach().cpu().contiguous().numpy() for tensor in tensors_in(batch)]


def _time_in_turns(runs: Sequence[Callable[[], object]], seconds: float) -> list[list[float]]:
    """Return milliseconds per run: for each of `runs`, a list of its turns."""
    timers = [timeit.Timer(run) for run in runs]
    runs_per_turn = [_choose_runs_per_turn(timer) for timer in timers]
    turns: list[list[float]] = [[] for _ in timers]
    deadline = time.perf_counter() + seconds
    while not turns[0] or time.perf_counter() < deadline:
        for timer, num_runs, times in zip(timers, runs_per_turn, turns, strict=True):
            times.append(1000 * timer.timeit(num_runs) / num_runs)
    return turns


def _takes(model: bytes | TargetFile, batch_size: int) -> bool:
    return not isinstance(model, TargetFile) or model.batch_size in (None, batch_size)


def _open_bound(model: bytes | TargetFile, batch: Sequence[NDArray[Any]], num_threads: int) -> Callable[[], object]:
    """Open a model in its runtime, and return a function that runs it on a batch."""
    if isinstance(model, TargetFile):
        return target_of(model.target).bind(model, batch, num_threads)
    return bind_session(open_session(model, num_threads), batch)


def _choose_runs_per_turn(timer: timeit.Timer) -> int:
    timer.timeit(_WARM_UP_RUNS)
    return max(1, int(_SECONDS_PER_TURN * _WARM_UP_RUNS / timer.timeit(_WARM_UP_RUNS)))
