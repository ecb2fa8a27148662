"""Trackers of runs, such as MLflow: told of each epoch while a search trains, and at the end of what was delivered.

`aat.trackers` in the parameters names those that follow a run. Write your own as a subclass of `Tracker`.
"""

from kedro_aat.trackers.mlflow import MlflowTracker
from kedro_aat.training.progress.tracker import Delivered, TrackedSearch, Tracker
from kedro_aat.training.records import EpochRecord, FineTuned

__all__ = ["Delivered", "EpochRecord", "FineTuned", "MlflowTracker", "TrackedSearch", "Tracker"]
