"""The rehearsal by `kedro aat validate`, and runs that begin after it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Node, Pipeline

from kedro_aat.adoption.rehearsals import rehearse, stand_in
from kedro_aat.errors import ConfigurationError, RehearsalError
from kedro_aat.pipelines.aat import create_pipeline
from kedro_aat.training.checkpoints import CheckpointStore
from tests.rehearsal.faulty import CASES, Case, Plain, labeled, settings_of
from tests.rehearsal.test_faults import SPARSE

PIPELINE = create_pipeline()


def catalog_of(folder: Path, prefix: str = "", **changes: Any) -> DataCatalog:
    values = {
        "baseline_model": Plain(),
        "train_data": labeled(),
        "validation_data": labeled(),
        "checkpoint_store": CheckpointStore(folder / (prefix or "store")),
        **changes,
    }
    return DataCatalog({prefix + name: MemoryDataset(value, copy_mode="assign") for name, value in values.items()})


def two_models(folder: Path) -> tuple[Pipeline, DataCatalog]:
    """The pipeline with and without a namespace, and the datasets of both."""
    catalog = catalog_of(folder)
    for name, dataset in catalog_of(folder, "small.").items():
        catalog[name] = dataset
    return PIPELINE + create_pipeline(namespace="small"), catalog


def lines_of(pipeline: Pipeline, catalog: DataCatalog, case: Case | None = None) -> list[str]:
    settings = settings_of(case or Case(settings=SPARSE))
    return list(rehearse(pipeline, catalog, {"aat": settings, "small.aat": settings}.get))


@pytest.mark.slow
def test_each_model_of_a_pipeline_is_rehearsed(tmp_path: Path) -> None:
    both, catalog = two_models(tmp_path)
    first, second = sorted(lines_of(both, catalog))
    assert first.startswith("rehearse: passed in ")
    assert second.startswith("small.rehearse: passed in ")
    kept = [
        each for each in lines_of(PIPELINE, catalog) if not re.search(r"passed before, in \d+\.\d s; not rep", each)
    ]
    assert not kept


def test_what_fails_is_the_error_of_the_run(tmp_path: Path) -> None:
    case = Case(settings=SPARSE | CASES["training function that raises"].settings)
    with pytest.raises(RehearsalError, match="LookupError: no such schedule"):
        lines_of(PIPELINE, catalog_of(tmp_path), case)


def test_what_the_run_makes_is_rehearsed_by_the_run(tmp_path: Path) -> None:
    catalog = catalog_of(tmp_path)
    catalog["train_data"] = MemoryDataset()
    pipeline = PIPELINE + Pipeline([Node(labeled, None, "train_data", name="split")])
    assert lines_of(pipeline, catalog) == ["rehearse: not done, because the run makes train_data, and then rehearses."]
    off = Case(settings=SPARSE | {"rehearsal": False})
    assert lines_of(PIPELINE, catalog_of(tmp_path), off) == ["rehearse: not done, because rehearsal is off."]


def test_data_that_cannot_be_loaded_are_named(tmp_path: Path) -> None:
    catalog = catalog_of(tmp_path)
    catalog["train_data"] = MemoryDataset()
    with pytest.raises(ConfigurationError, match="train_data: "):
        lines_of(PIPELINE, catalog)


@pytest.mark.parametrize("prefix", ["", "small."])
def test_a_run_may_begin_after_the_rehearsal(prefix: str) -> None:
    pipeline = create_pipeline(namespace=prefix.rstrip(".") or None)
    catalog = DataCatalog()
    stand_in(pipeline, catalog)
    assert f"{prefix}rehearsal" not in catalog  # the run makes it
    later = pipeline.from_nodes(f"{prefix}evaluate_baseline")
    stand_in(later, catalog)
    assert catalog.load(f"{prefix}rehearsal") == {"outcome": "off", "parts": []}
    catalog.save(f"{prefix}rehearsal", {"outcome": "passed"})
    stand_in(later, catalog)
    assert catalog.load(f"{prefix}rehearsal") == {"outcome": "passed"}


def test_the_rehearsal_comes_first() -> None:
    assert [node.name for node in PIPELINE.nodes][:2] == ["rehearse", "evaluate_baseline"]
