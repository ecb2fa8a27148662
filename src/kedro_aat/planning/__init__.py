"""Says what memory, disk and time a run will take. Start reading in `formulas.py`.

`formulas.py` computes, without torch; `measuring.py` measures with a model and its data what the formulas need;
`shown.py` says it in words. New terms belong in `formulas.py`, with their source in the docstring.
"""
