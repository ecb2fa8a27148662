"""What a model costs: parameters, multiplications, and milliseconds in onnxruntime."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median

import onnx
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kedro_aat.export.program import evaluating, quiet
from kedro_aat.export.session import open_session

_WARM_UPS = 3  # the first runs of a session allocate its memory
_LEAST_RUNS, _MOST_RUNS = 5, 1000


def num_parameters(model: nn.Module) -> int:
    """Numbers in the parameters of a model, zeros and frozen ones included; a shared one counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def num_macs(model: nn.Module, example_input: Tensor) -> int:
    """Multiply-accumulate operations for one example in evaluation mode, those with zeros included.

    Counts convolutions, matrix products and attention, as `torch.utils.flop_counter` does; elementwise
    operations, normalisation and pooling are left out.

    Args:
        model: Afterwards each of its modules is again in the mode that it was in.
        example_input: (B, ...), B at least 1, on the device of the model; the first example is run.
    """
    return _counted(model, example_input).get_total_flops() // 2  # a multiplication and an addition


def macs_of_modules(model: nn.Module, example_input: Tensor) -> dict[str, int]:
    """What each module adds itself, without its children, to `num_macs`; modules that add nothing are left out.

    Args:
        model: Likewise.
        example_input: Likewise.

    Returns:
        Name as in `named_modules()` -> operations for one example.
    """
    counts = _counted(model, example_input).get_flop_counts()
    root = type(model).__name__
    within = {
        name: sum(counts.get(f"{root}.{name}" if name else root, {}).values()) // 2 for name, _ in model.named_modules()
    }
    own = dict(within)
    for name, number in within.items():
        if name:
            own[name.rpartition(".")[0]] -= number
    return {name: number for name, number in own.items() if number}


def _counted(model: nn.Module, example_input: Tensor) -> FlopCounterMode:
    counter = FlopCounterMode(display=False)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    # Fused kernels (whole encoder layers, LSTMs, attention) hide their products from the counter.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            evaluating(model),
            quiet(),
            torch.no_grad(),
            torch.backends.mkldnn.flags(enabled=False),
            sdpa_kernel(SDPBackend.MATH),
            counter,
        ):
            model(example_input[:1])
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return counter


def latency_ms(
    models: Sequence[bytes | onnx.ModelProto],
    example_input: Tensor,
    *,
    batch_sizes: Sequence[int] = (1, 64),
    num_threads: int = 1,
    seconds: float = 2.0,
) -> list[dict[int, float]]:
    """Median time of one run of each ONNX model in onnxruntime on the CPU, for each batch size.

    The models take turns (A B A B ...), so that whatever else the machine does meets them all alike and their
    ratio can be trusted; the times themselves move with the machine.

    Args:
        models: Serialised or not.
        example_input: (B, ...), B at least 1; repeated or cut to each batch size.
        batch_sizes: At least 1 each.
        num_threads: Threads within an operator.
        seconds: Time in all, shared equally between the batch sizes. Large models take longer: each is run at
            least 5 times at every batch size, after 3 runs to warm up.

    Returns:
        For each model, batch size -> median in milliseconds.

    Raises:
        ExportError: onnxruntime cannot load a model.
    """
    files = [model if isinstance(model, bytes) else model.SerializeToString() for model in models]
    sessions = [open_session(file, num_threads) for file in files]
    results: list[dict[int, float]] = [{} for _ in sessions]
    for batch_size in batch_sizes:
        batch = _batch_of(example_input, batch_size).numpy()
        feeds = [{session.get_inputs()[0].name: batch} for session in sessions]
        times: list[list[float]] = [[] for _ in sessions]
        deadline = time.perf_counter() + seconds / len(batch_sizes)
        for turn in range(_WARM_UPS + _MOST_RUNS):
            if turn >= _WARM_UPS + _LEAST_RUNS and time.perf_counter() > deadline:
                break
            for session, feed, taken in zip(sessions, feeds, times, strict=True):
                start = time.perf_counter()
                session.run(None, feed)
                taken.append(time.perf_counter() - start)
        for result, taken in zip(results, times, strict=True):
            result[batch_size] = 1000 * median(taken[_WARM_UPS:])
    return results


def _batch_of(examples: Tensor, batch_size: int) -> Tensor:
    """(B, ...) -> (batch_size, ...), the examples repeated in order."""
    return examples.detach().cpu()[torch.arange(batch_size) % len(examples)]
