"""Compiles the steps of the training: the model, the teacher, and losses of large outputs.

The optimizer is not compiled: it is fused (see `optimizing`), which is one kernel already.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kedro_aat.compression.controller import ModelController

# Numbers of an output from which a compiled loss is faster: on one CPU thread, cross-entropy with distillation took .80
# of the eager time for 688,128 numbers, but 1.48 for 32,000.
LARGE = 1 << 18
# Modes of `torch.compile` with CUDA graphs, whose next run overwrites the outputs of the last one.
_WITH_GRAPHS = ("reduce-overhead", "max-autotune")


def compiled(model: nn.Module, controller: ModelController | None, mode: str | None) -> Callable[..., Any]:
    """Returns a model as `torch.compile` makes it, which trains the same parameters.

    Args:
        model: The model.
        controller: Its controller, which knows how its model can be compiled; None if there is none.
        mode: Mode of `torch.compile`; None for its default.
    """
    # torch counts the graphs of all models of a class, and runs the ninth one uncompiled: each stage has new models.
    torch._dynamo.reset()
    if controller is not None:
        return controller.compiled(mode)
    return torch.compile(model, mode=mode)


def compiled_if_large(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss of torch or of ours, which is compiled for large outputs.

    Args:
        loss: Called with outputs and targets; it must not depend on anything but these.
    """
    for_large = torch.compile(loss)  # nothing is compiled before it is called

    def call(outputs: Tensor, targets: Tensor) -> Tensor:
        return (for_large if outputs.numel() >= LARGE else loss)(outputs, targets)

    return call


def lasting(outputs: Tensor, mode: str | None) -> Tensor:
    """Outputs of a compiled model that outlive its next run, for metrics that keep them."""
    return outputs.clone() if mode in _WITH_GRAPHS else outputs
