"""Does once, in small, everything that a run will do, and says what fails in one error before hours are spent.

Start reading in `rehearse.py`; `batch.py`, `stages.py` and `files.py` are the parts, and `advice.py` finds what mends
a fault. Parts can be added freely; the words of the advice are free too.
"""
