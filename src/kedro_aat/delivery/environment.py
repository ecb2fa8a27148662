"""How and where a run was made: the parts of its summary that are not about its models."""

from __future__ import annotations

from kedro_aat.delivery.measurements import Result


class DistillationSummary(Result):
    """How the baseline taught the compressed model.

    Attributes:
        kind: Loss between teacher and student: `auto`, `softmax` or `mse`, or NNCF's name for it.
        temperature: Temperature of the softmax, above 0; None if the kind has none.
        weight: Weight of the teacher's part in the loss.
    """

    kind: str
    temperature: float | None = None
    weight: float


class Environment(Result):
    """The machine of the run.

    Attributes:
        python: Version of Python.
        processor: Processor architecture.
        threads: Threads that torch used.
        device: Device that the model was trained on.
    """

    python: str
    processor: str
    threads: int
    device: str
