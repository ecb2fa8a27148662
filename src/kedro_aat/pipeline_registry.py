"""The pipelines of this project."""

from __future__ import annotations

from kedro.pipeline import Pipeline

from kedro_aat.pipelines import aat, digits


def register_pipelines() -> dict[str, Pipeline]:
    """`aat` does the whole job on the digits; it is also what a plain `kedro run` does."""
    whole = digits.create_pipeline() + aat.create_pipeline()
    return {"__default__": whole, "aat": whole, "digits": digits.create_pipeline()}
