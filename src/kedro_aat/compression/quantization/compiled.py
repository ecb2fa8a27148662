"""Runs training passes as compiled graphs: one graph for each kind of pass, and eagerly what cannot be a graph."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import Any

from torch import Tensor, nn

from kedro_aat.compression.quantization.fake_pass import FakePass, stacked
from kedro_aat.compression.quantization.traced import TracedPass, Tracer, kind_of

logger = logging.getLogger(__name__)

# Kinds of passes that are compiled: more mean that shapes change all the time.
MOST_GRAPHS = 8


class CompiledPasses:
    """The graphs of a model's training passes.

    Args:
        model: The model.
        mode: Mode of `torch.compile`; None for its default.
    """

    def __init__(self, model: nn.Module, mode: str | None) -> None:
        self._model = model
        self._mode = mode
        self._known: dict[Hashable, TracedPass] = {}
        self._refusal: str | None = None

    def run(
        self,
        begun: FakePass,
        scales: tuple[Tensor, Tensor],
        run_eagerly: Callable[[], Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Runs a pass of the whole model, and notes it as a graph if it is the first of its kind.

        Args:
            begun: The pass; receives what is observed.
            scales: Scales and zero points of all slots, (S,) each.
            run_eagerly: Runs the pass as it is, and returns what the model returns.
            args: Positional arguments of the model.
            kwargs: Its keyword arguments.
        """
        if self._refusal is not None:
            return run_eagerly()
        kind, tensors = kind_of(self._model, args, kwargs)
        kind = kind, begun.kind
        if (known := self._known.get(kind)) is not None:
            outputs = known.run(*tensors, *scales)
            if known.slots:
                *outputs, ranges = outputs  # type: ignore[assignment]  # a list instead of a tuple
                begun.observed = dict(zip(known.slots, ranges, strict=True))
            return known.result(outputs)
        if len(self._known) >= MOST_GRAPHS:
            self._refuse(f"its passes are of more than {MOST_GRAPHS} kinds, with inputs of other shapes")
            return run_eagerly()
        tracer = Tracer(self._model, [*tensors, *scales])
        with tracer:
            begun.noted_by(tracer, (scales[0].unbind(), scales[1].unbind()))
            result = run_eagerly()
            ranges = stacked(begun.observed.values())
        traced = tracer.finish(result, list(begun.observed), ranges, self._mode)
        if traced is None:
            self._refuse(tracer.refusal)
        else:
            self._known[kind] = traced
        return result

    def _refuse(self, reason: str | None) -> None:
        self._refusal = reason or ""
        logger.warning(
            "training.compile: %s trains in int8 without compilation, because %s.",
            type(self._model).__name__,
            reason,
        )
