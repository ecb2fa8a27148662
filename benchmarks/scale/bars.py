"""What a bar is, and which there are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from typing import NamedTuple

import torch


class Row(NamedTuple):
    """One measured number.

    Attributes:
        what: What was measured.
        value: The number.
        unit: Its unit, such as `s` or `x`.
        to_reach: The largest number that passes; None if there is no bar.
    """

    what: str
    value: float
    unit: str
    to_reach: float | None = None


# Measures something in a process of its own, with one thread. It gets the factor on the size of models, 1 for the bars.
Measure = Callable[[float], Iterable[Row]]


def measures() -> dict[str, Measure]:
    """The measurements by name; a new one is a module with a function, and a line here."""
    from benchmarks.scale import (
        checkpoints,
        ddp_step,
        divided,
        gpu,
        kept,
        plan,
        policy_cost,
        refresh,
        stage_memory,
        training_step,
    )

    return {
        "refresh": refresh.rows,
        "ddp_step": ddp_step.rows,
        "divided": divided.rows,
        "training_step": training_step.rows,
        "checkpoints": checkpoints.rows,
        "stage_memory": stage_memory.rows,
        "policy_cost": policy_cost.rows,
        "kept": kept.rows,
        "plan": plan.rows,
        "gpu": gpu.rows,
    }


def send(name: str, size: float, sender: Connection) -> None:
    """Measures and sends the rows to the process that started this one."""
    torch.set_num_threads(1)
    sender.send(list(measures()[name](size)))
