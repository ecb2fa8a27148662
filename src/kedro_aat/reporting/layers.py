"""What became of each layer, in one table for all algorithms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from kedro_aat.compression.controller import ModelController
    from kedro_aat.compression.layer_table import LayerTable

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


def layer_table(controllers: Mapping[int, ModelController]) -> pd.DataFrame:
    """One row a layer, stage and algorithm.

    Args:
        controllers: Number of a stage -> its controller, with its model at the rate that the stage returned.

    Returns:
        The columns of `COLUMNS`; `note` tells why a layer could not be compressed, or not wholly.
    """
    import pandas as pd

    frames = [
        _with_notes(table).assign(stage=stage, algorithm=table.algorithm)
        for stage, controller in controllers.items()
        for table in controller.statistics().tables
    ]
    frames = frames or [pd.DataFrame(columns=list(COLUMNS))]
    return pd.concat(frames, ignore_index=True).reindex(columns=list(COLUMNS)).astype(COLUMNS)


def _with_notes(table: LayerTable) -> pd.DataFrame:
    """The table with a column `note`, and a row for each layer that has a note but no weights."""
    frame = table.as_frame().set_index("layer")
    frame = frame.reindex([*frame.index, *(layer for layer in table.notes if layer not in frame.index)])
    return frame.assign(note=[table.notes.get(layer, "") for layer in frame.index]).reset_index()
