"""Measure the peak memory of an ONNX model, in a process of its own that measures itself.

The process runs this module, so it imports little more than onnxruntime and NumPy.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

_STATUS_FILE = Path("/proc/self/status")  # Linux only
_MODEL_NAME = "model.onnx"
_EXAMPLES_NAME = "batch.npy"


def peak_memory(model: bytes, examples: NDArray[np.generic], batch_sizes: Sequence[int]) -> dict[int, int] | None:
    """Measure by how much the memory of a process grows while onnxruntime loads a model and runs it on one thread.

    About 10 MB of the growth are the code of onnxruntime itself, for any model.

    Args:
        model: Serialized model with one input.
        examples: (B, ...) with B at least 1; repeated or cut to each batch size.
        batch_sizes: Each at least 1.

    Returns:
        Batch size -> peak growth in bytes, after all smaller batches have run. None if the system does not report it
        (it is read from Linux's `/proc`), or if the process failed, which logs a warning.
    """
    if not _STATUS_FILE.exists():
        return None
    ascending = sorted(set(batch_sizes))
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, _MODEL_NAME).write_bytes(model)
        np.save(Path(folder, _EXAMPLES_NAME), examples)
        command = [sys.executable, "-m", __name__, folder, *map(str, ascending)]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        logger.warning("Peak memory could not be measured: %s", process.stderr.strip().rpartition("\n")[2])
        return None
    return dict(zip(ascending, map(int, process.stdout.split()), strict=True))


def _measure(folder: Path, batch_sizes: Sequence[int]) -> None:
    """Run in the separate process, and print one number per batch size."""
    examples = np.load(folder / _EXAMPLES_NAME)
    bytes_before = _memory_bytes("VmRSS")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / _MODEL_NAME, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    for batch_size in batch_sizes:
        session.run(None, {name: examples[np.arange(batch_size) % len(examples)]})
        print(_memory_bytes("VmHWM") - bytes_before)


def _memory_bytes(key: str) -> int:
    """Resident memory of this process in bytes: the current value (VmRSS) or the peak so far (VmHWM)."""
    (line,) = (line for line in _STATUS_FILE.read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    _measure(Path(sys.argv[1]), [int(size) for size in sys.argv[2:]])
