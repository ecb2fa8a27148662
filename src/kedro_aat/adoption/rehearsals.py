"""The rehearsal outside a whole run: by `kedro aat validate`, and what stands for it in a run of later nodes alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kedro.io import DataCatalog, MemoryDataset
from kedro.io.core import DatasetError
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from kedro_aat.adoption.checks import free_inputs, replace_dataset
from kedro_aat.adoption.makers import listed
from kedro_aat.errors import ConfigurationError, RehearsalError
from kedro_aat.reading import describe
from kedro_aat.validated import parse

if TYPE_CHECKING:
    from kedro_aat.config import AatSettings


@dataclass(frozen=True)
class Rehearsal:
    """A node that rehearses a model.

    Attributes:
        node: The node.
        settings: Settings of the model's pipeline.
        names: The node's arguments but for the settings, and the datasets that they are.
        later: Those datasets that the run will make and that are not there yet.
    """

    node: Node
    settings: AatSettings
    names: dict[str, str]
    later: list[str]

    def loaded(self, catalog: DataCatalog) -> dict[str, Any]:
        """Loads the arguments.

        Raises:
            ConfigurationError: If one cannot be loaded.
        """
        return {argument: _loaded(catalog, name) for argument, name in self.names.items()}


def rehearsals_of(
    pipeline: Pipeline, catalog: DataCatalog, value_of: Callable[[str], Any], made: Collection[str] = ()
) -> Iterator[Rehearsal]:
    """The rehearsals of a pipeline, one for each model.

    Args:
        pipeline: A pipeline with nodes that rehearse.
        catalog: Its datasets.
        value_of: Looks up a parameter by its dotted key, as plain data.
        made: Datasets that nodes outside the pipeline make.
    """
    known = pipeline.all_outputs().union(made)
    for node, settings, names in _settings_and_names(pipeline, value_of):
        later = sorted(name for name in names.values() if name in known and not catalog.exists(name))
        yield Rehearsal(node, settings, names, later)


def rehearsed_inputs(pipeline: Pipeline, value_of: Callable[[str], Any], *, if_off: bool = False) -> list[str]:
    """Names of the datasets that the rehearsals of a pipeline read: the model and two splits of each.

    Args:
        pipeline: A pipeline with nodes that rehearse.
        value_of: Looks up a parameter by its dotted key, as plain data.
        if_off: Whether to name those of rehearsals that the settings switch off, too.
    """
    found = _settings_and_names(pipeline, value_of)
    return [name for _, settings, names in found if settings.rehearsal or if_off for name in names.values()]


def rehearse(
    pipeline: Pipeline, catalog: DataCatalog, value_of: Callable[[str], Any], made: Collection[str] = ()
) -> Iterator[str]:
    """Rehearses each model of a pipeline whose datasets can be loaded, as the run will do.

    Args:
        pipeline: A pipeline with nodes that rehearse.
        catalog: Its datasets.
        value_of: Looks up a parameter by its dotted key, as plain data.
        made: Datasets that nodes outside the pipeline make.

    Yields:
        For each rehearsal, what came of it.

    Raises:
        RehearsalError: Lists everything that fails, for all models.
    """
    faults: list[str] = []
    num_parts = 0
    for each in rehearsals_of(pipeline, catalog, value_of, made):
        node, settings, later = each.node, each.settings, each.later
        if later or not settings.rehearsal:
            because = f"the run makes {listed(later)}, and then rehearses" if later else "rehearsal is off"
            yield f"{node.name}: not done, because {because}."
            continue
        inputs = each.loaded(catalog)
        try:
            result = node.func(settings=settings, **inputs)
        except RehearsalError as error:
            faults += error.faults
            num_parts += error.num_parts
        else:
            seconds = sum(part["seconds"] for part in result["parts"])
            if result["passed_before"]:
                yield f"{node.name}: passed before, in {seconds:.1f} s; not repeated, because nothing has changed."
            else:
                yield f"{node.name}: passed in {seconds:.1f} s."
    if faults:
        raise RehearsalError(faults, num_parts)


def stand_in(pipeline: Pipeline, catalog: DataCatalog) -> None:
    """Lets a run begin after the rehearsal although none was saved.

    Args:
        pipeline: The nodes of a run.
        catalog: Its datasets; changed in place.
    """
    missing = free_inputs(pipeline)
    for _, names in _nodes_of(pipeline, "evaluate_baseline"):
        name = names.get("rehearsal")
        if name in missing and not catalog.exists(name):
            replace_dataset(catalog, name, MemoryDataset({"outcome": "off", "parts": []}))


def _loaded(catalog: DataCatalog, name: str) -> Any:
    try:
        return catalog.load(name)
    except DatasetError as error:
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise ConfigurationError("Data", [f"{name}: {describe(cause)}"]) from error


def _settings_and_names(
    pipeline: Pipeline, value_of: Callable[[str], Any]
) -> Iterator[tuple[Node, AatSettings, dict[str, str]]]:
    from kedro_aat.config import AatSettings

    for node, names in _nodes_of(pipeline, "rehearse"):
        key = names.pop("settings").removeprefix("params:")
        yield node, parse(AatSettings, value_of(key), where=key), names


def _nodes_of(pipeline: Pipeline, function: str) -> Iterator[tuple[Node, dict[str, str]]]:
    """The nodes with a function of ours, and the datasets of their arguments."""
    for node in pipeline.nodes:
        if (node.func.__module__, node.func.__name__) == ("kedro_aat.pipelines.aat.baseline", function):
            yield node, dict(inspect.signature(node.func).bind(*node.inputs).arguments)
