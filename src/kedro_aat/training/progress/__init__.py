"""What a user sees while a search runs: a bar in a terminal, the frontier in a notebook, lines in a log, TensorBoard.

Start reading in `loop_progress.py`. The looks of each can be changed safely; the search does not depend on them.
"""

from kedro_aat.training.progress.loop_progress import LoopProgress
from kedro_aat.training.progress.tensorboard import flatten, write_hyperparameters

__all__ = ["LoopProgress", "flatten", "write_hyperparameters"]
