"""Quick exports to ONNX."""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
import warnings
from typing import Any


def collect_once() -> None:
    """Keeps torch from collecting its translations to ONNX, and its operators, anew for each export."""
    # Another version of torch may have these elsewhere, and then only time is lost.
    with contextlib.suppress(ImportError, AttributeError):
        _collect_translations_once()
    with contextlib.suppress(ImportError, AttributeError):
        _load_operators_once()


def _collect_translations_once() -> None:
    """That takes 0.4 of the 0.6 seconds of a small export. The exporter may change what it gets, so it gets a copy."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    collect = functools.cache(ONNXRegistry.from_torchlib)

    def copied(*arguments: Any, **options: Any) -> ONNXRegistry:
        registry = copy.copy(collect(*arguments, **options))
        registry.functions = {name: [*found] for name, found in registry.functions.items()}
        return registry

    ONNXRegistry.from_torchlib = staticmethod(copied)  # type: ignore[method-assign]


def _load_operators_once() -> None:
    """An export loads all operators of torch a dozen times, a third of its time; only the first time finds any."""
    import torch
    from torch._export import utils

    load = utils._materialize_cpp_cia_ops
    loaded: list[str] = []

    def load_new() -> None:
        operators = torch._C._dispatch_get_registrations_for_dispatch_key("CompositeImplicitAutograd")
        if operators != loaded:
            load()
            loaded[:] = operators

    utils._materialize_cpp_cia_ops = load_new


def warm_up() -> None:
    """Exports a model: the first export of a process takes 2 seconds more than later ones."""
    import torch

    with warnings.catch_warnings(action="ignore"):
        logging.disable()
        torch.onnx.export(torch.nn.Linear(1, 1).eval(), (torch.zeros(1, 1),), dynamo=True, verbose=False)
        logging.disable(logging.NOTSET)
