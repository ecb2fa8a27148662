"""Lets typed node functions read and write plain JSON, so that any JSON dataset can hold their results."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, get_type_hints

from pydantic import BaseModel, TypeAdapter

from kedro_aat.delivery.results import (
    BaselineEvaluation,
    CertificateResult,
    ExportResult,
    SearchResult,
    SecondSearchResult,
    Summary,
)

_RESULTS = (BaselineEvaluation, SearchResult, SecondSearchResult, ExportResult, CertificateResult, Summary)


def with_json(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a node function, so that it reads result models from JSON data and returns its results as JSON data.

    The catalog of a user's project declares these as `json.JSONDataset`, and in memory Kedro copies plain data
    as well as models.

    Args:
        function: Node function, with result models as types of some parameters and of its return value.
    """
    signature = inspect.signature(function)
    adapters = {name: TypeAdapter(hint) for name, hint in get_type_hints(function).items() if hint in _RESULTS}

    @functools.wraps(function)
    def node(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        for name in adapters.keys() & bound.arguments.keys():
            bound.arguments[name] = adapters[name].validate_python(bound.arguments[name])
        outputs = function(*bound.args, **bound.kwargs)
        return tuple(map(_as_json, outputs)) if isinstance(outputs, tuple) else _as_json(outputs)

    return node


def _as_json(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value
