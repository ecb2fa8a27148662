"""Compression controllers: each one owns a model and compresses it to the rate that it is set to.

Start reading in `controller.py`, the protocol and the base class, and `scheduled.py`, what the controllers of single
algorithms share; the algorithms are in `sparsity/`, `filters/` and `quantization/`. A new algorithm needs settings in
`settings.py`, a controller that passes the contract suite, and a line in `composite.build_single`; the names of buffers
and the keys of `get_state` are in saved files, so they must not change.
"""
