"""The loop that fine-tunes a model while a search policy moves its compression rate, and the default training.

Start reading in `loop.py`; `runner.py` calls the user's functions, `default.py` is what runs without them, and
`stage.py` puts a whole search together from data and settings. Settings, progress and scores can be changed safely;
the order of events in `loop.py` and the files in `checkpoints.py` decide whether a killed run continues bit for bit.
"""
