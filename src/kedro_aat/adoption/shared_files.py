"""Finds files that our nodes read or write as one dataset, while a node of the same run writes them as another.

Kedro orders nodes by the names of datasets. Two names of one file are no dependency: what is read may be old or new.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from kedro.io import AbstractDataset, AbstractVersionedDataset, CachedDataset, DataCatalog, DatasetError
from kedro.io.core import get_protocol_and_path
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

_SAME_PROTOCOL = {"local": "file", "s3a": "s3", "s3n": "s3", "gcs": "gs"}


class Place(NamedTuple):
    """A file or a folder.

    Attributes:
        protocol: Such as `file` or `s3`.
        path: Without links and protocol.
        ending: The end of the names of all files below the path; empty if they can have any name.
    """

    protocol: str
    path: PurePosixPath
    ending: str

    @property
    def address(self) -> str:
        """The path for messages, with the protocol of another storage."""
        return str(self.path) if self.protocol == "file" else f"{self.protocol}://{str(self.path).lstrip('/')}"

    def overlaps(self, other: Place) -> bool:
        """Whether one is the other, or is inside it."""
        return self.protocol == other.protocol and (self._may_hold(other) or other._may_hold(self))

    def _may_hold(self, other: Place) -> bool:
        return self.path == other.path or (
            other.path.is_relative_to(self.path) and other.path.name.endswith(self.ending)
        )


def our_nodes(pipeline: Pipeline, package: str = "kedro_aat.") -> list[Node]:
    """The nodes of a pipeline whose functions are ours, or those of one package of ours."""
    return [node for node in pipeline.nodes if node.func.__module__.startswith(package)]


def shared_file_mistakes(pipeline: Pipeline, catalog: DataCatalog) -> list[str]:
    """Lists the files that our nodes share with an entry of another name that a node of the pipeline writes.

    Two names are right if the order is certain: all our nodes read the file after it is written, or all of them
    before. Transcoding, such as `train_data@pandas` and `train_data@aat`, is one name.

    Args:
        pipeline: The nodes of one run.
        catalog: Its datasets; those that cannot be created are left out.
    """
    ours = our_nodes(pipeline)
    writers = {name: node for node in pipeline.nodes for name in node.outputs}
    makers = {stem(name): node for name, node in writers.items()}
    written = _places(writers, catalog, writes=True)
    read = _places({name for node in ours for name in node.inputs} - writers.keys(), catalog, writes=False)
    own = read | {name: written[name] for node in ours for name in (*node.inputs, *node.outputs) if name in written}
    before = _ancestors(pipeline)
    mistakes: dict[frozenset[str], str] = {}
    for name, place in sorted(own.items()):
        readers, maker = [node for node in ours if name in node.inputs], makers.get(stem(name))
        for other, taken in sorted(written.items()):
            pair, writer = frozenset((name, other)), writers[other]
            if stem(name) == stem(other) or pair in mistakes or not place.overlaps(taken):
                continue
            if maker is not None:
                if writer not in before[maker]:
                    mistakes[pair] = _written_twice(name, maker, other, writer, place)
            elif not _has_order(writer, readers, before):
                mistakes[pair] = _unordered(name, readers, other, writer, place)
    return list(mistakes.values())


def notes_on_other_runs(name: str, registered: Mapping[str, Pipeline], catalog: DataCatalog) -> list[str]:
    """Lists the mistakes that runs of other pipelines with nodes of ours would end with, such as a plain `kedro run`.

    Args:
        name: The pipeline whose own mistakes are left out.
        registered: The project's pipelines.
        catalog: The project's datasets.
    """
    known = set(shared_file_mistakes(registered[name], catalog))
    notes = []
    for other, pipeline in registered.items():
        command = "kedro run" if other == "__default__" else f"kedro run --pipelines {other}"
        new = [mistake for mistake in shared_file_mistakes(pipeline, catalog) if mistake not in known]
        notes += [f"`{command}` would not start. {mistake}" for mistake in new]
        known.update(new)
    return notes


def _has_order(writer: Node, readers: list[Node], before: dict[Node, set[Node]]) -> bool:
    """Whether all readers come after the writer, or all of them before it."""
    return all(writer in before[node] for node in readers) or all(node in before[writer] | {writer} for node in readers)


def _ancestors(pipeline: Pipeline) -> dict[Node, set[Node]]:
    """All nodes that must have run before a node."""
    before: dict[Node, set[Node]] = {}
    dependencies = pipeline.node_dependencies
    for node in pipeline.nodes:  # in topological order
        parents = dependencies[node]
        before[node] = parents.union(*(before[parent] for parent in parents))
    return before


def _places(names: Iterable[str], catalog: DataCatalog, *, writes: bool) -> dict[str, Place]:
    places = {}
    for name in names:
        try:
            dataset = catalog.get(name)
        except DatasetError:  # its entry is a mistake of its own
            continue
        if dataset is not None and (place := place_of(dataset, writes=writes)) is not None:
            places[name] = place
    return places


def place_of(dataset: AbstractDataset[Any, Any], *, writes: bool) -> Place | None:
    """Where a dataset is; None if it is no file."""
    while isinstance(dataset, CachedDataset):
        dataset = dataset._dataset
    described = dataset._describe() or {}
    candidates = [getattr(dataset, "_filepath", None), getattr(dataset, "_path", None)]
    candidates += [described.get("filepath"), described.get("path")]
    path = next((path for path in candidates if isinstance(path, str | os.PathLike) and os.fspath(path)), None)
    if path is None:
        return None
    if isinstance(dataset, AbstractVersionedDataset) and dataset._version is not None:
        version = dataset._version.save if writes else dataset._version.load
        path = path if version is None else dataset._get_versioned_path(version)
    protocol, text = get_protocol_and_path(os.fspath(path))
    if protocol == "file":  # or the class has removed it from the path
        protocol = getattr(dataset, "_protocol", None) or described.get("protocol") or protocol
    protocol = _SAME_PROTOCOL.get(protocol, protocol)
    ending = getattr(dataset, "_filename_suffix", "")  # of a PartitionedDataset
    text = os.path.realpath(text) if protocol == "file" else f"/{text.lstrip('/')}"
    return Place(protocol, PurePosixPath(text), ending)


def stem(name: str) -> str:
    """The name without its transcoding."""
    return name.partition("@")[0]


def _unordered(name: str, readers: list[Node], other: str, writer: Node, place: Place) -> str:
    nodes = ", ".join(node.name for node in readers)
    return (
        f"{name}: {place.address} is also {other}, which the node {writer.name} writes in the same run. Nothing orders "
        f"that and {nodes}, so old data could be read, or old and new. Let {writer.name} write {name} itself, or run "
        "the pipelines one after another; see the how-to 'Bring your own model and data'"
    )


def _written_twice(name: str, maker: Node, other: str, writer: Node, place: Place) -> str:
    return (
        f"{name}: {place.address} is written twice in a run, by the node {maker.name} as {name} and by {writer.name} "
        f"as {other}, so one replaces the other. Give one of the two entries another path"
    )
