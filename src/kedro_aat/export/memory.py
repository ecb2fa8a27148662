"""How much memory a process needs for an ONNX model: each is run in a process of its own, which measures itself."""

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

_STATUS = Path("/proc/self/status")
_MODEL, _BATCH = "model.onnx", "batch.npy"


def peak_memory(model: bytes, examples: NDArray[np.generic], batch_sizes: Sequence[int]) -> dict[int, int] | None:
    """By how much a process that has onnxruntime grows at most when it loads a model and runs it on one thread.

    About 10 MB of it are the runtime's own code, whatever the model.

    Args:
        model: Serialised, with one input.
        examples: (B, ...), B at least 1; repeated or cut to each batch size.
        batch_sizes: At least 1 each.

    Returns:
        Batch size -> bytes, with all smaller batches run before; None where the system does not tell (it is read from
        Linux's `/proc`), or where the process failed, with a warning.
    """
    if not _STATUS.exists():
        return None
    ascending = sorted(set(batch_sizes))
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, _MODEL).write_bytes(model)
        np.save(Path(folder, _BATCH), examples)
        command = [sys.executable, "-m", __name__, folder, *map(str, ascending)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        logger.warning("Peak memory could not be measured: %s", done.stderr.strip().rpartition("\n")[2])
        return None
    return dict(zip(ascending, map(int, done.stdout.split()), strict=True))


def _measure(folder: Path, batch_sizes: Sequence[int]) -> None:
    """Runs in the process of its own, and prints a number for each batch size."""
    examples = np.load(folder / _BATCH)
    before = _bytes("VmRSS")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / _MODEL, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    for batch_size in batch_sizes:
        session.run(None, {name: examples[np.arange(batch_size) % len(examples)]})
        print(_bytes("VmHWM") - before)


def _bytes(key: str) -> int:
    """Of resident memory now (VmRSS), or at most so far (VmHWM)."""
    (line,) = (line for line in _STATUS.read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    _measure(Path(sys.argv[1]), [int(each) for each in sys.argv[2:]])
