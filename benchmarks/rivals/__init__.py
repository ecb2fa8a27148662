"""kedro-aat beside other maintained tools, on one small task, at the same budget and with the same number of epochs.

Each tool runs in an environment of its own, because their requirements exclude each other; `__main__` makes data and
baseline, runs every tool whose environment is there, and judges all files alike. `task.py` is all that the tools share,
and needs torch alone; each `with_...py` uses its tool as that tool's documentation does.
"""
