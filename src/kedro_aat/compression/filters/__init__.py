"""Filter pruning: whole channels and attention heads are masked during training and cut out of the model at the end.

Start reading in `controller.py`, then follow a model: `axes.py` says what channels a layer has, and `tracing` follows
labels of these channels through every operation. `groups.py` says which channels are cut together, and `probing.py`
whether masking them is the same as cutting them. `importance.py` and `taylor.py` say which go first, `channel_masks.py`
and `normalization.py` mask them, `costs.py` counts what a cut saves, and `cutting.py` cuts. Importance scores and their
order can be changed safely in `importance.py`. Cut plans are saved with models, so `cutting.py` must still read old
ones.
"""
