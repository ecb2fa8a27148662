"""The real data and the baseline that this repository runs on."""

from kedro_aat.pipelines.digits.pipeline import create_pipeline

__all__ = ["create_pipeline"]
