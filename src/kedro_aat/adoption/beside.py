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
from kedro_aat.errors import StorageError
from kedro_aat.storage import is_ours, local_path

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
    """A dataset like another one, with a path in a folder named `chosen`; in memory, if that has no local path.

    Args:
        name: Name of the dataset.
        dataset: The other dataset.
    """
    catalog, credentials, *_ = DataCatalog({name: dataset}).to_config()
    path = _path_of(dataset)
    if path is None:
        return MemoryDataset()
    catalog[name] |= {"filepath": str(path.parent / FOLDER / path.name)}
    catalog[name].pop("versioned", None)
    found = DataCatalog.from_config(catalog, credentials).get(name)
    assert found is not None  # it was just given
    return found


def _path_of(dataset: AbstractDataset[Any, Any] | None) -> Path | None:
    """Path of a dataset's file or folder; None if it has none, or one that is not on this machine."""
    if dataset is None or isinstance(dataset, MemoryDataset):
        return None
    config, *_ = DataCatalog({"it": dataset}).to_config()
    path = config["it"].get("filepath")
    try:
        return None if path is None else local_path(path)
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
        if (path := _path_of(catalog.get(name))) is None:
            continue
        folder = path.parent / FOLDER
        # OpenVINO's weights are beside its graph, and so is the reason why there is no file.
        written = [folder / path.name, (folder / path.name).with_suffix(".bin"), *folder.glob(f"{path.name}.*")]
        for each in written:
            with suppress(OSError):
                shutil.rmtree(each) if each.is_dir() else each.unlink()
        with suppress(OSError):
            if all(is_ours(each) for each in folder.iterdir()):
                shutil.rmtree(folder)
