"""From the user's data, in any form, to inputs and targets on their way to the model.

Start reading at `form.py`, which says which parts of a batch are inputs and which targets; `loaders.py` makes the
batches, and `datasets.py` gives each form of data one interface. A form of data can be added in `datasets.py` alone.
"""
