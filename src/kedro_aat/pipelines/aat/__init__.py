"""The main pipeline: baseline, controller, fine-tuning, export, summary."""

from kedro_aat.pipelines.aat.pipeline import create_pipeline

__all__ = ["create_pipeline"]
