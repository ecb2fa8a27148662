"""Runs the nodes that make what a pipeline reads and no file has, in a temporary folder, for `kedro aat validate`.

What a node of the project makes may be in another pipeline, and may stay in memory. Without it, nothing can be tried.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kedro.io import AbstractDataset, DataCatalog, MemoryDataset
from kedro.io.core import DatasetError, get_protocol_and_path
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from kedro_aat.adoption.checks import exists, free_inputs, replace_dataset
from kedro_aat.adoption.shared_files import stem
from kedro_aat.errors import UserFunctionError
from kedro_aat.reading import describe

_DEFAULT = "__default__"
_PATHS = ("filepath", "path")  # keys of a catalog entry


@dataclass(frozen=True)
class Makers:
    """Nodes of the project that make what a pipeline reads.

    Attributes:
        names: Datasets that exist nowhere yet, and that nodes make.
        nodes: These nodes, with those before them whose outputs do not exist either.
        missing: What they need, and neither exists nor is made by a node: names of datasets.
        others: Names of the other pipelines that have these nodes, in the order of the registry.
    """

    names: tuple[str, ...]
    nodes: Pipeline
    missing: tuple[str, ...]
    others: tuple[str, ...]

    @property
    def in_words(self) -> str:
        """The nodes by name, with their other pipelines: `the node split of the pipeline prepare`."""
        names = listed([node.name for node in self.nodes.nodes])
        of = f" of the pipeline{'s' * (len(self.others) > 1)} {listed(self.others)}" if self.others else ""
        return f"the node{'s' * self._are_several} {names}{of}"

    @property
    def what_they_do(self) -> str:
        """A sentence without an end: `the node split makes train_data`."""
        return f"{self.in_words} make{'s' * (not self._are_several)} {listed(self.names)}"

    @property
    def _are_several(self) -> bool:
        return len(self.nodes.nodes) > 1

    def command(self, pipeline: str) -> str:
        """The command that runs them together with a pipeline."""
        return f"kedro run --pipelines {','.join((*self.others, pipeline))}"


def makers_of(names: Iterable[str], pipeline: str, registered: Mapping[str, Pipeline], catalog: DataCatalog) -> Makers:
    """Finds the nodes that make datasets which do not exist.

    Args:
        names: Datasets; those that exist or that no node makes are left out.
        pipeline: Name of the pipeline that reads them, whose own nodes come first.
        registered: The project's pipelines.
        catalog: The project's datasets.
    """
    producers = producers_in(registered, pipeline)
    wanted = sorted(name for name in names if stem(name) in producers and not _exists(catalog, name))
    nodes: dict[Node, str] = {}
    missing: list[str] = []
    todo = list(wanted)
    while todo:
        name = todo.pop()
        if stem(name) not in producers:
            missing.append(name)
            continue
        node, owner = producers[stem(name)]
        if node not in nodes:
            nodes[node] = owner
            todo += [each for each in node.inputs if not _is_parameter(each) and not _exists(catalog, each)]
    used = [name for name in registered if name != pipeline and name in nodes.values()]
    return Makers(tuple(wanted), Pipeline(list(nodes)), tuple(dict.fromkeys(missing)), tuple(used))


def producers_in(registered: Mapping[str, Pipeline], first: str) -> dict[str, tuple[Node, str]]:
    """Dataset without its transcoding -> the node that makes it, and the name of the node's pipeline.

    Args:
        registered: The project's pipelines.
        first: Name of the pipeline whose own nodes count first.
    """
    others = [name for name in registered if name not in (first, _DEFAULT)]
    producers: dict[str, tuple[Node, str]] = {}
    for name in (first, *others, *({_DEFAULT} & registered.keys())):  # the sum of all pipelines says least
        for node in registered[name].nodes:
            for output in node.outputs:
                producers.setdefault(stem(output), (node, name))
    return producers


def makers_elsewhere(pipeline: str, registered: Mapping[str, Pipeline], catalog: DataCatalog) -> Makers:
    """The nodes of other pipelines that make what a pipeline cannot start without.

    Args:
        pipeline: Name of the pipeline.
        registered: The project's pipelines.
        catalog: The project's datasets.
    """
    free = [name for name in free_inputs(registered[pipeline]) if not _is_parameter(name)]
    return makers_of(free, pipeline, registered, catalog)


def make(makers: Makers, catalog: DataCatalog, parameter: Callable[[str], Any], folder: Path) -> None:
    """Runs nodes, and puts what they have made into a catalog in place of what it has.

    Files of the project are read, but none is written: each file that a node writes goes to a folder, and is read from
    there, so that the data are what a run would read.

    Args:
        makers: The nodes.
        catalog: The project's datasets; those that are made are replaced.
        parameter: Gives a parameter by the name that a node has for it, such as `params:seed`.
        folder: A temporary folder, to be kept as long as the catalog is used.

    Raises:
        UserFunctionError: A node fails, or what it returns cannot be saved.
    """
    inside = DataCatalog()
    for name in makers.nodes.inputs():
        inside[name] = MemoryDataset(parameter(name)) if _is_parameter(name) else catalog[name]
    for name in makers.nodes.datasets() - makers.nodes.inputs():
        inside[name] = _relocated(catalog, name, folder)
    with _quiet_kedro():
        _run(makers.nodes, inside)
    for name in makers.nodes.all_outputs():
        replace_dataset(catalog, name, inside[name])
    for name in makers.names:  # a file that was written under another transcoding
        if name not in inside:
            replace_dataset(catalog, name, _relocated(catalog, name, folder))


def listed(names: Sequence[str]) -> str:
    """Names in a sentence: `a, b and c`."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


@contextmanager
def _quiet_kedro() -> Iterator[None]:
    """Leaves of what Kedro logs the nodes that it runs, and not each dataset."""
    kedros = [logging.getLogger(name) for name in ("kedro.io", "kedro.runner")]
    levels = [each.level for each in kedros]
    for each in kedros:
        each.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for each, level in zip(kedros, levels, strict=True):
            each.setLevel(level)


def _run(nodes: Pipeline, inside: DataCatalog) -> None:
    from kedro.runner import SequentialRunner

    for node in nodes.nodes:  # one by one, so that the error can name it and nothing is released
        try:
            SequentialRunner().run(Pipeline([node]), inside)
        except Exception as error:  # whatever the user's node raises
            cause = error.__cause__ if isinstance(error, DatasetError) else None
            raise UserFunctionError(
                f"The node {node.name}, which makes {listed(node.outputs)}, fails: "
                f"{describe(cause if isinstance(cause, Exception) else error)}. Mend it, or leave it out with "
                "--no-run-nodes"
            ) from error


def _relocated(catalog: DataCatalog, name: str, folder: Path) -> AbstractDataset[Any, Any]:
    """The dataset of a catalog entry with its file in another folder; one in memory if it has no file."""
    config = catalog.config_resolver.resolve_pattern(name)
    for key in _PATHS:
        if not isinstance(path := config.get(key), str | os.PathLike):
            continue
        protocol, local = get_protocol_and_path(os.fspath(path))
        absolute = Path(local if protocol == "file" else f"/{protocol}/{local}").absolute()
        new = folder / absolute.relative_to(absolute.anchor)
        new.parent.mkdir(parents=True, exist_ok=True)
        unneeded = ("versioned", "credentials", "fs_args")
        rest = {each: value for each, value in config.items() if each not in unneeded or protocol == "file"}
        rest.pop("versioned", None)
        return AbstractDataset.from_config(name, {**rest, key: str(new)})
    return MemoryDataset(copy_mode=config.get("copy_mode"))


def _exists(catalog: DataCatalog, name: str) -> bool:
    try:
        return exists(catalog, name)
    except DatasetError:  # its entry is a mistake of its own
        return True


def _is_parameter(name: str) -> bool:
    return name == "parameters" or name.startswith("params:")
