"""The pipelines of this repository's project."""

from __future__ import annotations

from kedro.pipeline import Pipeline

from kedro_aat.pipelines import aat, digits


def register_pipelines() -> dict[str, Pipeline]:
    """Registers `aat`, the whole job on the digits and the default of `kedro run`, and `digits`, the baseline alone."""
    whole = digits.create_pipeline() + aat.create_pipeline()
    return {"__default__": whole, "aat": whole, "digits": digits.create_pipeline()}
