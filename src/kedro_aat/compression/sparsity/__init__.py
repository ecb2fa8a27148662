"""Unstructured and N:M sparsity: single weights become zero and stay zero while the others train.

Start reading in `controller.py`. A new importance score is one branch in `importance.py`; how masks act on a model is
decided in `compression/masks.py` and shared with the other algorithms.
"""
