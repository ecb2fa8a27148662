"""A function of the settings that stops a run, as Ctrl-C does."""

from __future__ import annotations

import os

from kedro_aat.training.records import EpochRecord


def after_two_epochs(record: EpochRecord) -> None:
    """Stops the run after its second epoch, if the environment says so."""
    if os.environ.get("STOPS") and record.epoch == 2:
        raise KeyboardInterrupt
