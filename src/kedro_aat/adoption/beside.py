"""Lets a run write beside the files of the one before, so that both can be compared before one replaces the other."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from kedro.io import AbstractDataset, CatalogProtocol, DataCatalog, MemoryDataset
from kedro.pipeline import Pipeline

from kedro_aat.adoption.checks import replace_dataset
from kedro_aat.datasets.remote import Place, place_of
from kedro_aat.errors import StorageError
from kedro_aat.storage import is_ours

FOLDER = "chosen"  # beside the files of the run

_is_beside: ContextVar[bool] = ContextVar("_is_beside", default=False)


@contextmanager
def written_beside() -> Iterator[None]:
    """Runs that begin in this block write their files into folders named `chosen`."""
    token = _is_beside.set(True)
    try:
        yield
    finally:
        _is_beside.reset(token)


def redirect_outputs(pipeline: Pipeline, catalog: DataCatalog) -> None:
    """Lets a run write beside the files of the one before, if it begins in `written_beside`.

    Args:
        pipeline: The nodes of the run.
        catalog: Its datasets; changed in place.
    """
    if not _is_beside.get():
        return
    for name in sorted(pipeline.all_outputs()):
        if (dataset := catalog.get(name)) is not None:
            replace_dataset(catalog, name, beside(name, dataset))


def beside(name: str, dataset: AbstractDataset[Any, Any]) -> AbstractDataset[Any, Any]:
    """A dataset like another one, with a path in a folder named `chosen`; in memory, if that has no path.

    Args:
        name: Name of the dataset.
        dataset: The other dataset.
    """
    catalog, credentials, *_ = DataCatalog({name: dataset}).to_config()
    place = _place_of(dataset)
    if place is None:
        return MemoryDataset()
    catalog[name] |= {"filepath": place.address(place.path.parent / FOLDER / place.path.name)}
    catalog[name].pop("versioned", None)
    found = DataCatalog.from_config(catalog, credentials).get(name)
    assert found is not None  # it was just given
    return found


def _place_of(dataset: AbstractDataset[Any, Any] | None) -> Place | None:
    """Where a dataset's file or folder is; None if it has none, or one whose address cannot be used."""
    if dataset is None or isinstance(dataset, MemoryDataset):
        return None
    config, credentials, *_ = DataCatalog({"it": dataset}).to_config()
    entry = config["it"]
    if (path := entry.get("filepath")) is None:
        return None
    try:
        return place_of(path, credentials.get(entry.get("credentials", "")), entry.get("fs_args"))
    except StorageError:
        return None


def loaded_beside(catalog: CatalogProtocol[Any, Any], name: str) -> Any:
    """What the last run that wrote beside the files has saved under a name; None if there is nothing.

    Args:
        catalog: The project's catalog.
        name: Name of the dataset.
    """
    dataset = catalog.get(name)
    if dataset is None or not (other := beside(name, dataset)).exists():
        return None
    return other.load()


def remove_beside(catalog: CatalogProtocol[Any, Any], names: list[str]) -> None:
    """Removes what was written beside files.

    Args:
        catalog: The project's catalog.
        names: Names of the datasets.
    """
    for name in names:
        if (place := _place_of(catalog.get(name))) is None:
            continue
        folder, own = place.path.parent / FOLDER, place.path.name
        # OpenVINO's weights are beside its graph, and so is the reason why there is no file.
        written = {own, place.path.with_suffix(".bin").name}
        left = place.listed(folder)
        for each in sorted(left):
            if each in written or each.startswith(f"{own}."):
                left.remove(each)
                with suppress(OSError, StorageError), place.writing(folder / each):
                    place.system.rm(place.text(folder / each), recursive=True)
        with suppress(OSError):
            if place.is_here and all(is_ours(Path(each)) for each in left):
                shutil.rmtree(folder)
