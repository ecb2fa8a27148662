"""What became of each layer, in one table for all algorithms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from kedro_aat.compression.controller import ModelController

# What an algorithm does not tell stays empty.
COLUMNS = {
    "stage": "int64",
    "algorithm": "str",
    "layer": "str",
    "shape_before": "str",
    "shape": "str",
    "rate": "float64",
    "parameters_before": "Int64",
    "parameters": "Int64",
    "macs_before": "Int64",
    "macs": "Int64",
    "weights": "Int64",
    "zeros": "Int64",
    "bits": "Int64",
    "sensitivity": "float64",
    "note": "str",
}


def layer_table(controllers: list[ModelController]) -> pd.DataFrame:
    """One row a layer, stage and algorithm.

    Args:
        controllers: One a stage, with their models at the rate that the stage returned.

    Returns:
        The columns of `COLUMNS`; `note` tells why a layer could not be compressed, or not wholly.
    """
    import pandas as pd

    frames = [
        _with_notes(part).assign(stage=stage, algorithm=algorithm)
        for stage, controller in enumerate(controllers, start=1)
        for algorithm, part in _parts(controller)
    ]
    return pd.concat(frames, ignore_index=True).reindex(columns=list(COLUMNS)).astype(COLUMNS)


def _parts(controller: ModelController) -> list[tuple[str, Any]]:
    """Algorithm and statistics, one by one for a composite."""
    statistics = controller.statistics()
    return list(getattr(statistics, "algorithms", {controller.name: statistics}).items())


def _with_notes(statistics: Any) -> pd.DataFrame:
    import pandas as pd

    notes = dict(getattr(statistics, "not_cut", None) or getattr(statistics, "left_dense", None) or {})
    frame: pd.DataFrame = statistics.as_frame()
    frame["note"] = [notes.pop(layer, "") for layer in frame["layer"]]
    # Those without a row of their own have no weights to tell of.
    rest = pd.DataFrame({"layer": list(notes), "note": list(notes.values())})
    return pd.concat([frame, rest], ignore_index=True) if len(rest) else frame
