"""Filter pruning: whole channels and attention heads are masked during training and cut out of the model at the end.

Start reading in `controller.py`, then follow a model through `trace.py` (which channels depend on each other),
`groups.py`, `probing.py` (is masking a group the same as cutting it?) and `cutting.py`. Importance scores can be
changed safely in `importance.py`; cut plans are saved with models, so `cutting.py` must keep reading old ones.
"""
