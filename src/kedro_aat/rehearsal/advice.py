"""Finds what mends a stage that failed, by trying it: layers left out, or another algorithm."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from torch import nn

from kedro_aat.compression.settings import Composite, CompressionSettings, MagnitudeSparsity, algorithms_of
from kedro_aat.errors import ConfigurationError, DataError
from kedro_aat.rehearsal.common import Rehearsal
from kedro_aat.rehearsal.faults import Fault, PartFailedError, blamed, cause_of
from kedro_aat.rehearsal.stages import Stage, rehearse_stage

SECONDS = 30.0  # after which no other mend is tried; a failed rehearsal may take this much longer


def fault_of_stage(error: PartFailedError, stage: Stage, model: nn.Module, rehearsal: Rehearsal) -> Fault:
    """What failed in a stage, with what mends it and what works without it.

    Args:
        error: The error.
        stage: The stage.
        model: The model that it began with.
        rehearsal: What all parts share.
    """
    deadline = time.monotonic() + SECONDS
    layer = blamed(error).layer
    where = " ".join([error.part, *getattr(error, "__notes__", [])]) + (f", layer {layer}" if layer else "")

    def passes(compression: CompressionSettings) -> bool:
        if time.monotonic() > deadline:
            return False
        try:
            rehearse_stage(stage.with_compression(compression), model, rehearsal)
        except (PartFailedError, ConfigurationError, DataError):
            return False
        return True

    scope = next((scope for scope in _scopes(model, layer) if passes(_ignoring(stage.compression, scope))), None)
    mends = "" if scope is None else f'It passes with {stage.key}.ignored_scopes: ["{scope}"]'
    return Fault(f"{stage.title}, {where}", cause_of(error), mends, _works(stage, passes))


def _works(stage: Stage, passes: Callable[[CompressionSettings], bool]) -> str:
    """What goes on working without the stage's compression."""
    if stage.number > 1:
        key = stage.key.partition(".")[0]
        earlier = "first stage passes" if stage.number == 2 else "stages before it pass"
        return f"The {earlier}: set `{key}: null` to run without {' and '.join(algorithms_of(stage.compression))}"
    if isinstance(stage.compression, Composite):
        others: list[CompressionSettings] = list(stage.compression.compressing)
    else:
        others = [] if stage.compression.algorithm == "magnitude_sparsity" else [MagnitudeSparsity()]
    working = [other.algorithm for other in others if passes(other)]
    if not working:
        return ""
    verb = "passes" if len(working) == 1 else "pass"
    return f"With this model, {' and '.join(working)} {verb}: set {stage.key}.algorithm to that"


def _ignoring(compression: CompressionSettings, scope: str) -> CompressionSettings:
    if isinstance(compression, Composite):
        parts = [
            part.model_copy(update={"ignored_scopes": (*part.ignored_scopes, scope)})
            for part in compression.compressing
        ]
        kept = [part for part in compression.algorithms if part not in compression.compressing]
        return Composite(algorithms=(*parts, *kept))
    return compression.model_copy(update={"ignored_scopes": (*compression.ignored_scopes, scope)})


def _scopes(model: nn.Module, layer: str) -> Iterator[str]:
    """Layers that may be left out: the one that failed, what holds it, and the other parts of the model."""
    names = [name for name, module in model.named_modules() if name and any(True for _ in module.parameters())]
    around = [layer.rsplit(".", number)[0] for number in range(layer.count(".") + 1)] if layer else []
    children = [name for name, _ in model.named_children()]
    tried = dict.fromkeys([*around, *children, *(name for name in names if name.count(".") == 1)])
    yield from (name for name in tried if name in names)
