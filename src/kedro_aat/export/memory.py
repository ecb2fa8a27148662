"""Measure the peak memory of an ONNX model, in a process of its own that measures itself.

The process runs this module, so it imports little more than onnxruntime and NumPy.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

_STATUS_FILE = Path("/proc/self/status")  # Linux only
_MODEL_NAME = "model.onnx"
_EXAMPLES_NAME = "batches.npz"


def peak_memory(model: bytes, batches: Mapping[int, Sequence[NDArray[np.generic]]]) -> dict[int, int] | None:
    """Measure by how much the memory of a process grows while onnxruntime loads a model and runs it on one thread.

    About 10 MB of the growth are the code of onnxruntime itself, for any model.

    Args:
        model: Serialized model.
        batches: Batch size -> one array per input of the model.

    Returns:
        Batch size -> peak growth in bytes, after all smaller batches have run. None if the system does not report it
        (it is read from Linux's `/proc`), or if the process failed, which logs a warning.
    """
    if not _STATUS_FILE.exists():
        return None
    ascending = sorted(batches)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, _MODEL_NAME).write_bytes(model)
        named = {f"{size}_{index}": array for size, batch in batches.items() for index, array in enumerate(batch)}
        np.savez(Path(folder, _EXAMPLES_NAME), allow_pickle=False, **named)
        command = [sys.executable, "-m", __name__, folder, *map(str, ascending)]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        logger.warning("Peak memory could not be measured: %s", process.stderr.strip().rpartition("\n")[2])
        return None
    return dict(zip(ascending, map(int, process.stdout.split()), strict=True))


def _measure(folder: Path, batch_sizes: Sequence[int]) -> None:
    """Run in the separate process, and print one number per batch size."""
    arrays = dict(np.load(folder / _EXAMPLES_NAME))
    bytes_before = _memory_bytes("VmRSS")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / _MODEL_NAME, options, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    for batch_size in batch_sizes:
        session.run(None, {name: arrays[f"{batch_size}_{index}"] for index, name in enumerate(names)})
        print(_memory_bytes("VmHWM") - bytes_before)


def _memory_bytes(key: str) -> int:
    """Resident memory of this process in bytes: the current value (VmRSS) or the peak so far (VmHWM)."""
    (line,) = (line for line in _STATUS_FILE.read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    _measure(Path(sys.argv[1]), [int(size) for size in sys.argv[2:]])
