"""Which channels depend on each other: labels of channels that follow every operation of a forward pass.

Start reading in `trace.py`, which runs the model; `labels.py` holds what it finds, and the rules say how operations and
layers carry labels along. An operation that is not followed yet gets a rule in `rules.py`; `probing` notices a wrong
one.
"""
