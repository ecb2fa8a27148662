"""A simulated problem whose accuracies can be computed by hand."""

from __future__ import annotations

from typing import Any

from benchmarks.simulator import SimulatedProblem


def problem(**changes: float) -> SimulatedProblem:
    """Returns a problem without noise of training, and without costs except those that a test sets."""
    plain: dict[str, Any] = {"A0": 0.9, "drop": 0.01, "uc": 1.0, "s": 1.0, "beta": 0.0, "c0": 0.1, "ustar": 1.3}
    damage = {"K": 0.1, "p": 2.0, "rho": 0.0, "phi": 0.2, "tau": 1.0}
    noise = {"lam": 0.0, "jit": 0.0, "breset": 0.0, "N": 10_000, "id": 7}
    return SimulatedProblem(**(plain | damage | noise | changes))
