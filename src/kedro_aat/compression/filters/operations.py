"""What a model costs on any device: parameters and multiplications."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kedro_aat.modes import evaluating, quiet


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
