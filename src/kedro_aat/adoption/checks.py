"""Checks a configuration without a run: parameters, import paths, datasets."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from typing import Any

from kedro.io import AbstractDataset, CatalogProtocol, DataCatalog, MemoryDataset
from kedro.io.core import DatasetError
from kedro.pipeline import Node, Pipeline
from kedro.validation import TypeExtractor

from kedro_aat.adoption.object_stores import unreachable_stores
from kedro_aat.adoption.outputs import is_handle, is_written, unwritable
from kedro_aat.adoption.shared_files import our_nodes, shared_file_mistakes
from kedro_aat.errors import AatError, ConfigurationError
from kedro_aat.validated import Settings, parse

# Arguments of our nodes that may be None.
_DISPENSABLE = ("tensorboard_log", "compressed_openvino", "compressed_executorch", "compressed_litert")
_OF_THIRD_STAGE = ("third_controller", "third_result")
_IN_MEMORY = f"{MemoryDataset.__module__}.{MemoryDataset.__qualname__}"


def free_inputs(pipeline: Pipeline) -> list[str]:
    """Names of the datasets and parameters that our nodes read and that no node of the pipeline creates."""
    return sorted(pipeline.inputs() & {name for node in our_nodes(pipeline) for name in node.inputs})


def settings_of(pipeline: Pipeline) -> dict[str, type[Settings]]:
    """Dotted key of the parameters that a pipeline's nodes read as settings -> the settings class."""
    expected = TypeExtractor({"": pipeline}).extract_types_from_pipelines()
    return {key: kind for key, kind in expected.items() if isinstance(kind, type) and issubclass(kind, Settings)}


def parameter_mistakes(pipeline: Pipeline, parameters: Mapping[str, Any]) -> list[str]:
    """Lists the mistakes in the parameters that a pipeline's nodes read as settings.

    Args:
        pipeline: A pipeline whose nodes' type hints name the settings classes.
        parameters: The project's parameters as plain data.
    """
    mistakes: list[str] = []
    for key, kind in settings_of(pipeline).items():
        data = look_up(parameters, key)
        if data is None:
            mistakes.append(f"{key}: these parameters are missing; `kedro aat init` writes them")
            continue
        try:
            settings = parse(kind, data, where=key)
        except ConfigurationError as error:
            mistakes += [f"{key}.{mistake}" for mistake in error.mistakes]
        else:
            mistakes += settings.lookup_mistakes(key)
    return mistakes


def data_mistakes(
    pipeline: Pipeline,
    catalog: DataCatalog,
    made: Collection[str] = (),
    maker_of: Callable[[str], str | None] = lambda name: None,
) -> list[str]:
    """Lists datasets of a pipeline that are invalid, missing, cannot be saved or reached, or share a file with another.

    Args:
        pipeline: A pipeline.
        catalog: The project's datasets.
        made: Datasets that need not exist, since nodes outside the pipeline make them.
        maker_of: Says in words what makes a dataset, and how it is run; None if nothing does.
    """
    mistakes: list[str] = []
    inputs, outputs = free_inputs(pipeline), pipeline.all_outputs()
    datasets: dict[str, AbstractDataset[Any, Any]] = {}
    created: list[str] = []
    for name in sorted(pipeline.datasets()):
        if name.startswith("params:"):
            continue
        try:
            dataset = catalog.get(name)
        except DatasetError as error:  # an unknown type or a wrong argument
            mistakes.append(_wrong_entry(name, error))
            continue
        created.append(name)
        if dataset is not None:
            datasets[name] = dataset
    unreachable = unreachable_stores(datasets)  # first, since other questions would wait for each of its datasets
    mistakes += dict.fromkeys(unreachable.values())
    for name in created:
        if name in unreachable:
            continue
        dataset = datasets.get(name)
        try:
            is_missing = name in inputs and name not in made and not exists(catalog, name)
        except DatasetError as error:
            mistakes.append(_wrong_entry(name, error))
            continue
        if is_missing:
            mistakes.append(f"{name}: {_explain_absence(catalog, name, maker_of(name))}")
            continue
        for names, method in ((inputs, "lookup_mistakes"), (outputs, "save_mistakes")):
            if name in names and (find := getattr(dataset, method, None)):
                mistakes += find(name)
        if is_written(name, pipeline, catalog) and (reason := unwritable(name, catalog)) is not None:
            mistakes.append(f"{name}: {reason}")
    return mistakes + shared_file_mistakes(pipeline, catalog)


def _wrong_entry(name: str, error: DatasetError) -> str:
    cause = error.__cause__ if isinstance(error.__cause__, AatError) else error
    return f"{name}: its catalog entry is wrong: {cause}"


def withhold_test_data(pipeline: Pipeline, catalog: DataCatalog, value_of: Callable[[str], Any]) -> None:
    """Puts a `WithheldDataset` before each test split that the settings leave unread and no other node reads.

    Args:
        pipeline: A pipeline with nodes that certify models.
        catalog: Its datasets; changed in place.
        value_of: Looks up a parameter by its dotted key: as settings or as plain data, None if there is none.
    """
    from kedro_aat.adoption.withheld import WithheldDataset

    for node in pipeline.nodes:
        if (node.func.__module__, node.func.__name__) != ("kedro_aat.pipelines.aat.deliver", "certify_model"):
            continue
        arguments = inspect.signature(node.func).bind(*node.inputs).arguments
        settings, name = value_of(arguments["settings"].removeprefix("params:")), arguments["test_data"]
        plain = vars(settings) if isinstance(settings, Settings) else settings or {}
        is_withheld = ("certificate" in plain and plain["certificate"] is None) or bool(plain.get("best_so_far"))
        is_read = any(name in other.inputs for other in pipeline.nodes if other is not node)
        if is_withheld and not is_read and (dataset := catalog.get(name)) is not None:
            replace_dataset(catalog, name, WithheldDataset(dataset))


def dispensable_inputs(nodes: Iterable[Node], catalog: CatalogProtocol[Any, Any]) -> set[str]:
    """Names of the datasets that our nodes read and do without.

    They are the log, files for further targets, and what a third stage made, if the settings have none.

    Args:
        nodes: Nodes, of which those of the user's are passed over.
        catalog: A catalog with the settings.
    """
    names = set()
    for node in nodes:
        if node.func.__module__.startswith("kedro_aat.pipelines.aat."):
            given = inspect.signature(node.func).bind(*node.inputs).arguments
            names |= {given[key] for key in _DISPENSABLE if key in given}
            third = {given[key] for key in _OF_THIRD_STAGE if key in given}
            if third and "settings" in given and not _has_third_stage(catalog.get(given["settings"])):
                names |= third
    return names


def _has_third_stage(dataset: AbstractDataset[Any, Any] | None) -> bool:
    from kedro_aat.config import AatSettings

    settings = None if dataset is None else dataset.load()
    if isinstance(settings, AatSettings):
        return settings.third_stage is not None
    try:
        return parse(AatSettings, settings).third_stage is not None
    except ConfigurationError:  # which is said elsewhere
        return True


def allow_absent(pipeline: Pipeline, catalog: DataCatalog) -> None:
    """Gives nodes None for what they do without, where the catalog has no entry for it, or one in memory.

    So a search writes nothing for TensorBoard, and a catalog that is older than a target or the third stage needs no
    entry for it.

    Args:
        pipeline: The nodes of a run.
        catalog: Its datasets; changed in place.
    """
    for name in sorted(dispensable_inputs(pipeline.nodes, catalog) - pipeline.all_outputs()):
        # An entry with a mistake is left alone: a catalog that fails to create a dataset forgets it, and says nothing.
        with suppress(DatasetError):
            if name not in catalog or (catalog.get_type(name) == _IN_MEMORY and not catalog.exists(name)):
                replace_dataset(catalog, name, MemoryDataset(None))


def replace_dataset(catalog: DataCatalog, name: str, dataset: AbstractDataset[Any, Any]) -> None:
    """Puts a dataset into a catalog without Kedro's warning, since the user has replaced nothing.

    Args:
        catalog: The catalog; changed in place.
        name: Name of the dataset.
        dataset: The new dataset.
    """
    kedros = logging.getLogger("kedro.io.data_catalog")
    level = kedros.level
    kedros.setLevel(logging.ERROR)
    try:
        catalog[name] = dataset
    finally:
        kedros.setLevel(level)


def look_up(parameters: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key, None if there is none."""
    value: Any = parameters
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def exists(catalog: CatalogProtocol[Any, Any], name: str) -> bool:
    """Whether a dataset can be loaded; true if its class does not implement `_exists`, which Kedro allows."""
    dataset = catalog.get(name)
    if dataset is not None and type(dataset)._exists is AbstractDataset._exists:
        return True
    if is_handle(dataset) or getattr(dataset, "loads_without_file", False):
        return True
    return catalog.exists(name)


def _explain_absence(catalog: DataCatalog, name: str, maker: str | None) -> str:
    """Why a dataset cannot be loaded, and what to do.

    Args:
        catalog: The project's datasets.
        name: The dataset.
        maker: What makes it; None if nothing does.
    """
    dataset = catalog.get(name)
    path = None if dataset is None else dataset._describe().get("filepath")
    if dataset is None:
        words = "is not in the catalog"
    else:
        words = f"its {type(dataset).__name__} is empty" if path is None else f"{path} is missing"
    if maker is not None:
        return f"{words}; {maker}"
    if dataset is None:
        return f"{words}; add an entry, or run the nodes that create it in the same run"
    if path is None:
        return f"{words}; run the nodes that create it in the same run"
    return f"{words}; put the file there, correct its catalog entry, or run the nodes that create it"
