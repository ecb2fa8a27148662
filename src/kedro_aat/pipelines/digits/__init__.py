"""The pipeline that makes the data and the baseline model on which this repository runs.

Start with `pipeline.py`, then `nodes.py`. The network, its settings and the checks of the data can be changed safely,
but the splits and the trained baseline decide all numbers in the documentation.
"""

from kedro_aat.pipelines.digits.pipeline import create_pipeline

__all__ = ["create_pipeline"]
