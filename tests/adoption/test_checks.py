"""Messages about datasets that cannot be read."""

from __future__ import annotations

from typing import Any

import pytest
from kedro.io import AbstractDataset, DataCatalog, MemoryDataset
from kedro_datasets_experimental.safetensors import SafetensorsDataset

from kedro_aat.adoption.checks import data_mistakes
from kedro_aat.pipelines.aat.pipeline import create_pipeline

REQUIRED = ("baseline_model", "train_data", "validation_data", "test_data")


class WithoutExists(AbstractDataset[Any, Any]):
    """A dataset without `_exists`, which Kedro allows."""

    def load(self) -> Any:
        return {}

    def save(self, data: Any) -> None:
        raise NotImplementedError

    def _describe(self) -> dict[str, Any]:
        return {}


def mistakes(**changed: Any) -> list[str]:
    datasets = {name: WithoutExists() for name in REQUIRED} | changed
    catalog = DataCatalog({name: each for name, each in datasets.items() if each is not None})
    return [mistake for mistake in data_mistakes(create_pipeline(), catalog) if mistake.startswith(REQUIRED)]


def test_a_dataset_without_exists_is_assumed_to_exist() -> None:
    assert mistakes() == []


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        (None, "train_data: is not in the catalog; add an entry"),
        (MemoryDataset(), "train_data: its MemoryDataset is empty; run the nodes"),
        (SafetensorsDataset(filepath="no/such/file", backend="torch"), "no/such/file is missing; put the file there"),
    ],
)
def test_a_missing_dataset_is_reported_with_a_remedy(dataset: Any, words: str) -> None:
    (mistake,) = mistakes(train_data=dataset)
    assert words in mistake
