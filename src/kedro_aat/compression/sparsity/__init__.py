"""Unstructured and N:M sparsity: single weights are set to zero and stay zero while the others train.

Start reading in `controller.py`. A new importance score is one branch in `importance.py`, and N:M patterns are in
`patterns.py`; both can be changed freely. How masks act on a model is in `compression/masks.py`, which filter pruning
shares.
"""
