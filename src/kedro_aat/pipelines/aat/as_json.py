"""Lets typed node functions read and write plain JSON, so that any JSON dataset can hold their results."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable
from typing import Any, get_type_hints

from pydantic import BaseModel, RootModel

from kedro_aat.delivery.certificate_result import CertificateResult
from kedro_aat.delivery.rehearsal_result import RehearsalResult
from kedro_aat.delivery.results import (
    BaselineEvaluation,
    ExportResult,
    LaterSearchResult,
    SearchResult,
    Summary,
)
from kedro_aat.messages import doing, show_progress
from kedro_aat.training.guards.interruption import stopped_with_one_sentence
from kedro_aat.validated import parse

_RESULTS = (
    RehearsalResult,
    BaselineEvaluation,
    SearchResult,
    LaterSearchResult,
    LaterSearchResult | None,
    ExportResult,
    ExportResult | None,
    CertificateResult,
    Summary,
)

# Nodes change what all threads of a process share: the random generators, torch's settings, warnings, levels of logs.
_TURN = threading.RLock()


class JsonNode:
    """A node function that reads result models from JSON data and returns its results as JSON data.

    Catalogs that users wrote for version 0.1.0 declare results as `json.JSONDataset`. Kedro still sees the name, the
    signature, the type hints and the source of the function itself. Ctrl-C and SIGTERM end it with one sentence. In
    threads, such as those of ThreadRunner, such nodes take turns.

    Args:
        function: Node function, with result models as types of some parameters and of its return value.
    """

    __name__: str

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._signature = inspect.signature(function)
        hints = get_type_hints(function).items()
        self._models = {name: _model(hint) for name, hint in hints if hint in _RESULTS and name != "return"}
        functools.update_wrapper(self, function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bound = self._signature.bind(*args, **kwargs)
        for name in self._models.keys() & bound.arguments.keys():
            result = parse(self._models[name], bound.arguments[name], where=name)
            bound.arguments[name] = result.root if isinstance(result, RootModel) else result
        # Here, because of the hooks that set the level, none runs in the processes of ParallelRunner.
        show_progress()
        with _TURN, stopped_with_one_sentence(), doing(self.__name__):
            outputs = self._function(*bound.args, **bound.kwargs)
            for value in bound.arguments.values():
                if callable(push := getattr(value, "push_shared", None)):  # a checkpoint store, without importing torch
                    push()
        return tuple(map(_as_json, outputs)) if isinstance(outputs, tuple) else _as_json(outputs)

    def __reduce__(self) -> tuple[type[JsonNode], tuple[Callable[..., Any]]]:
        return JsonNode, (self._function,)  # ParallelRunner pickles nodes, and a model of a union cannot be pickled


def _model(hint: Any) -> type[BaseModel]:
    return hint if isinstance(hint, type) else RootModel[hint]


def _as_json(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value
