"""Our settings as kedro-mlflow logs them: one parameter each.

Kedro makes an object of the parameter `aat` before a node runs, and kedro-mlflow logs an object as one text, with the
arguments of the trackers, whatever its `flatten` says. Kedro gives hooks a copy of the inputs, so what is changed here
does not reach the node.
"""

from __future__ import annotations

import sys
from typing import Any

from kedro_aat.validated import Settings


def flatten_for_kedro_mlflow(inputs: dict[str, Any]) -> None:
    """Replaces our settings by single parameters, which hooks that come later see; only if kedro-mlflow is installed.

    Nothing is left of them where our own tracker for MLflow logs them to the same run.

    Args:
        inputs: A copy of a node's inputs by name; changed in place.
    """
    if "kedro_mlflow" not in sys.modules:  # Kedro loads all plugins before a run
        return
    from kedro_aat.config import AatSettings
    from kedro_aat.reporting.metrics import flat_parameters
    from kedro_aat.trackers import MlflowTracker

    for name, settings in [*inputs.items()]:
        if not name.startswith("params:") or not isinstance(settings, Settings):
            continue
        del inputs[name]
        trackers = settings.make_trackers() if isinstance(settings, AatSettings) else []
        if not any(isinstance(tracker, MlflowTracker) for tracker in trackers):
            inputs.update({f"{name}.{key}": value for key, value in flat_parameters(settings).items()})
