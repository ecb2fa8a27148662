"""What a user sees while a search runs: a bar in a terminal, the frontier in a notebook, lines in a log, trackers.

Start reading in `loop_progress.py`, and for trackers in `tracker.py`. The looks of each can be changed safely; the
search does not depend on them.
"""

from kedro_aat.training.progress.loop_progress import LoopProgress
from kedro_aat.training.progress.tensorboard import TensorBoardTracker, flatten, write_hyperparameters
from kedro_aat.training.progress.tracker import CallbackTracker, Delivered, Parameter, TrackedSearch, Tracker
from kedro_aat.training.progress.tracking import Following, Tracking, tell_delivered

__all__ = [
    "CallbackTracker",
    "Delivered",
    "Following",
    "LoopProgress",
    "Parameter",
    "TensorBoardTracker",
    "TrackedSearch",
    "Tracker",
    "Tracking",
    "flatten",
    "tell_delivered",
    "write_hyperparameters",
]
