"""The Kedro pipelines: `aat` compresses a model, and `digits` makes the data and the baseline model of this repository.

Start with `aat/pipeline.py`, then `aat/nodes.py`; a node reads its inputs, calls the packages below, and returns plain
results. How a node computes its results can be changed safely; names of nodes, inputs, outputs and parameters cannot,
because users' catalogs and registries depend on them.
"""
