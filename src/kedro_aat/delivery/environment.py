"""How and where a run was made: the parts of its summary that are not about its models."""

from __future__ import annotations

import platform
import re
import subprocess
from functools import cache
from pathlib import Path

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
        processor_name: Name of the processor; None in files of versions before 0.2.0.
        threads: Threads that torch used.
        device: Device that the model was trained on.
    """

    python: str
    processor: str
    processor_name: str | None = None
    threads: int
    device: str


@cache
def processor_name() -> str:
    """Name of this machine's processor, such as `Intel(R) Xeon(R) Platinum 8481C`; its architecture if it has none."""
    return _own_name() or platform.processor() or platform.machine()


def _own_name() -> str | None:
    """What the system calls the processor: Python itself knows a name on Windows only."""
    system = platform.system()
    try:
        if system == "Linux":
            text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
            found = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", text, re.MULTILINE)
            return found[1].strip() if found else None
        if system == "Darwin":
            command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
            return done.stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        pass
    return None
