"""Sizes and rows of datasets for the side pane of Kedro-Viz, which itself measures tables of pandas alone."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kedro.io import DataCatalog
from kedro.pipeline import Pipeline

from kedro_aat.datasets.files import FileDataset
from kedro_aat.datasets.previews import read_tensor_info
from kedro_aat.datasets.tensors import TensorsDataset
from kedro_aat.storage import replacing

logger = logging.getLogger(__name__)

STATISTICS = Path(".viz/stats.json")  # below a project, where Kedro-Viz writes it at the end of a run


def statistics_of(dataset: Any) -> dict[str, int]:
    """What Kedro-Viz shows of a dataset that is on this machine, by its own names; empty if there is nothing.

    Args:
        dataset: A dataset of ours, or any other with a file.

    Returns:
        `file_size` in bytes, of a folder that of all files in it. For tensors also `rows`, if all have as many, and
        `columns`, which is the number of tensors.
    """
    files = list(_files_of(dataset))
    if not files:
        return {}
    found = {"file_size": sum(file.stat().st_size for file in files)}
    if isinstance(dataset, TensorsDataset):
        tensors = read_tensor_info(files[0])
        rows = {shape[0] if shape else 0 for shape, _ in tensors.values()}
        found = {**({"rows": rows.pop()} if len(rows) == 1 else {}), "columns": len(tensors), **found}
    return found


def add_statistics(project: Path, pipeline: Pipeline, catalog: DataCatalog) -> None:
    """Adds the datasets of a pipeline to the statistics of Kedro-Viz, if it has written any; never fails.

    Args:
        project: The project's folder.
        pipeline: The pipeline that has run.
        catalog: Its datasets.
    """
    file = project / STATISTICS
    if not file.exists():
        return
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
        for name in sorted(pipeline.datasets()):
            shown = name.partition("@")[0]  # without transcoding, as Kedro-Viz writes it
            if not name.startswith("param") and name in catalog and (found := statistics_of(catalog[name])):
                known[shown] = known.get(shown, {}) | found
        with replacing(file) as new:
            new.write_text(json.dumps(known), encoding="utf-8")
    except Exception as error:  # what was run does not depend on it
        logger.warning("Kedro-Viz does not show the sizes of datasets: %s", error)


def _files_of(dataset: Any) -> Iterator[Path]:
    """The files of a dataset that are on this machine; hidden ones are none."""
    if isinstance(dataset, FileDataset):
        path = dataset.local_path
    elif getattr(dataset, "_protocol", None) == "file" and hasattr(dataset, "_get_load_path"):
        path = Path(dataset._get_load_path())
    else:
        return
    if path is None:
        return
    if path.is_file():
        yield path
    elif path.is_dir():
        for file in path.rglob("*"):
            if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts):
                yield file
