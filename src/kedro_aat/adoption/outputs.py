"""Whether what a run writes can be written, and is kept: asked before the run, which may take hours."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kedro.io import AbstractDataset, DataCatalog, DatasetError
from kedro.pipeline import Pipeline

from kedro_aat.adoption.shared_files import our_nodes, place_of
from kedro_aat.errors import first_of

_MAX_LISTED = 5


def is_handle(dataset: AbstractDataset[Any, Any] | None) -> bool:
    """Whether a dataset is a handle, to which nodes write while they run; it loads before anything is written."""
    return getattr(dataset, "LOADS_EMPTY", False) is True


def is_written(name: str, pipeline: Pipeline, catalog: DataCatalog) -> bool:
    """Whether a run writes a dataset: as an output, or as a handle such as the checkpoint store.

    Args:
        name: Name of the dataset, whose entry has no mistake.
        pipeline: The nodes of the run.
        catalog: The project's datasets.
    """
    return name in pipeline.all_outputs() or is_handle(catalog.get(name))


def unwritable(name: str, catalog: DataCatalog) -> str | None:
    """Why a dataset's file on this machine cannot be written; None if it can, or is no such file.

    Args:
        name: Name of the dataset, whose entry has no mistake.
        catalog: The project's datasets.
    """
    dataset = catalog.get(name)
    place = None if dataset is None else place_of(dataset, writes=True)
    if place is None or place.protocol != "file":
        return None
    path = Path(place.path)
    folder = next(each for each in path.parents if os.path.lexists(each))
    if not folder.is_dir():
        return f"{path} cannot be written, because {folder} is a file; remove it, or correct the catalog entry"
    if not os.access(folder, os.W_OK | os.X_OK) and not os.access(path, os.W_OK):
        return (
            f"{path} cannot be written, because this user may not write to {folder}; change its permissions, or "
            "correct the catalog entry"
        )
    return None


def unreachable_outputs(pipeline: Pipeline, catalog: DataCatalog) -> list[str]:
    """Lists the outputs of which nobody can say whether they exist, for example because of wrong credentials.

    Args:
        pipeline: The nodes of a run.
        catalog: The project's datasets, whose entries have no mistakes.
    """
    mistakes = []
    for name in sorted(pipeline.all_outputs()):
        dataset = catalog.get(name)
        if dataset is None or type(dataset)._exists is AbstractDataset._exists:
            continue
        try:
            dataset.exists()
        except DatasetError as error:
            mistakes.append(f"{name}: its place cannot be reached: {error.__cause__ or error}")
    return mistakes


def notes_on_memory(pipeline: Pipeline, catalog: DataCatalog) -> Iterator[str]:
    """Says what our nodes write and no entry keeps, so that it is lost when a run ends.

    Args:
        pipeline: The nodes of a run.
        catalog: The project's datasets, whose entries have no mistakes.
    """
    names = sorted({name for node in our_nodes(pipeline) for name in node.outputs})
    if lost := [name for name in names if catalog.get(name) is None]:
        yield (
            f"{len(lost)} of {len(names)} outputs have no catalog entry, so they stay in memory and are lost when the "
            f"run ends: {first_of(lost, _MAX_LISTED)}. `kedro aat init --upgrade` adds entries."
        )
