"""Checks of a configuration without a run: parameters, import paths, data sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kedro.io import AbstractDataset, DataCatalog
from kedro.io.core import DatasetError
from kedro.pipeline import Node, Pipeline
from kedro.validation import TypeExtractor

from kedro_aat.errors import ConfigurationError
from kedro_aat.validated import Settings, parse

_PARAMETERS = "params:"


def is_ours(node: Node) -> bool:
    """Whether a node comes from this package."""
    return node.func.__module__.startswith("kedro_aat.")


def free_inputs(pipeline: Pipeline) -> list[str]:
    """The data sets and parameters that our nodes read and no node of the pipeline makes, by name."""
    names = set[str]().union(*(node.inputs for node in pipeline.nodes if is_ours(node)))
    return sorted(names & pipeline.inputs())


def parameter_mistakes(pipeline: Pipeline, parameters: Mapping[str, Any]) -> list[str]:
    """All that is wrong with the parameters of a pipeline's nodes that are read into settings.

    Args:
        pipeline: Its nodes' type hints name the settings.
        parameters: Plain data, as they stand in the configuration.
    """
    expected = TypeExtractor({"": pipeline}).extract_types_from_pipelines()
    mistakes: list[str] = []
    for key, kind in expected.items():
        if not (isinstance(kind, type) and issubclass(kind, Settings)):
            continue
        found = _at(parameters, key)
        if found is None:
            mistakes.append(f"{key}: there are no such parameters; `kedro aat init` writes them")
            continue
        try:
            settings = parse(kind, found, where=key)
        except ConfigurationError as error:
            mistakes += [f"{key}.{mistake}" for mistake in error.mistakes]
        else:
            mistakes += settings.lookup_mistakes(key)
    return mistakes


def data_mistakes(pipeline: Pipeline, catalog: DataCatalog) -> list[str]:
    """The data sets that our nodes read, and that are not there or cannot be."""
    mistakes: list[str] = []
    for name in free_inputs(pipeline):
        if name.startswith(_PARAMETERS):
            continue
        try:
            is_there = _is_there(catalog, name)
        except DatasetError as error:  # a type or an argument that leads nowhere
            mistakes.append(f"{name}: its catalog entry is wrong: {error}")
            continue
        if not is_there:
            mistakes.append(f"{name}: {_absence(catalog, name)}")
        elif look_up := getattr(catalog[name], "lookup_mistakes", None):
            mistakes += look_up(name)
    return mistakes


def _is_there(catalog: DataCatalog, name: str) -> bool:
    """Whether a data set can be loaded; one whose class cannot tell, which Kedro allows, is believed to be there."""
    dataset = catalog.get(name)
    if dataset is not None and type(dataset)._exists is AbstractDataset._exists:
        return True
    return catalog.exists(name)


def _absence(catalog: DataCatalog, name: str) -> str:
    """In what way it is not there, and how to mend that."""
    dataset = catalog.get(name)
    if dataset is None:
        return "is not in the catalog; add an entry, or run the nodes that make it in the same run"
    if (path := dataset._describe().get("filepath")) is None:
        return f"its {type(dataset).__name__} is empty; run the nodes that make it in the same run"
    return f"{path} is missing; put the file there, mend its catalog entry, or run the nodes that make it"


def _at(parameters: Mapping[str, Any], key: str) -> Any:
    found: Any = parameters
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found
