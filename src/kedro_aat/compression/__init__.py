"""Compression controllers: each one owns a model and compresses it to the rate that is set.

Start reading in `controller.py`, the protocol and the base class, and `scheduled.py`, what the controllers of single
algorithms share; the algorithms are in `sparsity/`, `filters/` and `quantization/`. A new algorithm needs settings in
`settings.py`, a controller that passes the contract suite, and an entry in `composite.CONTROLLERS`. Names of buffers
and keys of `get_state` are stored in saved files, so they must not change.
"""
