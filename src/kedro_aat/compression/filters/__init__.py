"""Filter pruning: whole channels and attention heads are masked during training and cut out of the model at the end.

Start reading in `controller.py`, then follow a model through `trace.py` (which channels depend on each other),
`groups.py` (which are cut together), `probing.py` (whether masking them is the same as cutting them), `importance.py`
(which go first), `axes.py` (what channels a layer has) and `cutting.py`. Importance scores and their order can be
changed safely in `importance.py`. Cut plans are saved with models, so `cutting.py` must still read old ones.
"""
