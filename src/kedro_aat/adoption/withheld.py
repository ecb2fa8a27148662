"""Stands before a test split that a run must leave unread."""

from __future__ import annotations

from typing import Any

from kedro.io import AbstractDataset

UNREAD = "withheld"  # what a node gets in place of a test split that it must leave unread


class WithheldDataset(AbstractDataset[Any, str]):
    """Saves as the dataset behind it does, and loads nothing of it.

    Kedro loads all inputs of a node before it calls the node, so a node cannot leave its input unread by itself.

    Args:
        dataset: The dataset behind it.
    """

    def __init__(self, dataset: AbstractDataset[Any, Any]) -> None:
        self._dataset = dataset

    def load(self) -> str:
        """Words in place of the data."""
        return UNREAD

    def save(self, data: Any) -> None:
        """Saves the data in the dataset behind it."""
        self._dataset.save(data)

    def _exists(self) -> bool:
        return True

    def _release(self) -> None:
        self._dataset.release()

    def _describe(self) -> dict[str, Any]:
        return self._dataset._describe()
