"""Runs the settings that a call wrote as the pipeline does, with Kedro's runner and catalog."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from kedro.io import DataCatalog, MemoryDataset
from kedro.runner import SequentialRunner
from kedro_datasets.pandas import ParquetDataset

from kedro_aat import CompressionResult
from kedro_aat.config import AatSettings
from kedro_aat.datasets.exported import OnnxDataset
from kedro_aat.datasets.handles import CertificateLedgerDataset, CheckpointStoreDataset, TensorBoardDataset
from kedro_aat.pipelines.aat import create_pipeline

COLUMNS = ["epoch", "achieved_rate", "metric", "loss"]


def require_same_as_the_pipeline(
    result: CompressionResult, given: Mapping[str, Any], folder: Path, *, is_timed: bool = False
) -> None:
    """Asserts that a pipeline with the same settings finds the same epochs and delivers the same file.

    Args:
        result: What the call returned.
        given: Model and splits by the names of the catalog.
        folder: Where the pipeline puts its files.
        is_timed: Whether measured latencies decide what is delivered and whether later stages are searched; then only
            the first stage must be the same.
    """
    settings = yaml.safe_load(result.files["settings"].read_text())["aat"]
    catalog = DataCatalog(
        {
            **{name: MemoryDataset(value, copy_mode="assign") for name, value in given.items()},
            "params:aat": MemoryDataset(AatSettings.model_validate(settings)),
            "checkpoint_store": CheckpointStoreDataset(filepath=str(folder / "checkpoints")),
            "tensorboard_log": TensorBoardDataset(filepath=str(folder / "tensorboard")),
            "certificate_ledger": CertificateLedgerDataset(filepath=str(folder / "ledger.json")),
            "compressed_onnx": OnnxDataset(filepath=str(folder / "model.onnx")),
            "trajectory": ParquetDataset(filepath=str(folder / "trajectory.parquet")),
        }
    )
    SequentialRunner().run(create_pipeline(), catalog)
    ours, theirs = result.trajectory, catalog.load("trajectory")
    if is_timed:
        ours, theirs = (rows[rows["stage"] == 1] for rows in (ours, theirs))
    pd.testing.assert_frame_equal(ours[COLUMNS], theirs[COLUMNS])
    if not is_timed:
        assert result.files["compressed_onnx"].read_bytes() == (folder / "model.onnx").read_bytes()
