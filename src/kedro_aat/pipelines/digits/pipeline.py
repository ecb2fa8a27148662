"""The digits pipeline: from the table of images to three splits and a trained baseline."""

from __future__ import annotations

from typing import Any

from kedro.pipeline import Node, Pipeline

from kedro_aat.pipelines.digits.nodes import split_digits, train_baseline


def create_pipeline(**_: Any) -> Pipeline:
    """Returns the pipeline that makes the data and the baseline for the `aat` pipeline of this repository."""
    return Pipeline(
        [
            Node(
                split_digits,
                ["digits", "params:digits.split"],
                ["train_data", "validation_data", "test_data"],
                name="split_digits",
            ),
            Node(
                train_baseline,
                ["train_data", "validation_data", "baseline_checkpoint_store", "params:digits.baseline"],
                "baseline_model",
                name="train_baseline",
            ),
        ]
    )
