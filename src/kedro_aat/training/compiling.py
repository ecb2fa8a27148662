"""Compiles what is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from kedro_aat.compression.controller import ModelController


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
