"""The main pipeline: baseline, controller, fine-tuning, export, certificate, report.

Start reading in `pipeline.py`, which shows how data flows; the nodes are in `search.py`, `deliver.py` and
`reporting.py`, and `nodes.py` makes them return JSON. Nodes can be added freely; names of nodes and datasets stand in
users' catalogs and must stay.
"""

from kedro_aat.pipelines.aat.pipeline import create_pipeline

__all__ = ["create_pipeline"]
