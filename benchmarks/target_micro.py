"""Runs a `.tflite` file in LiteRT for Microcontrollers: python -m benchmarks.target_micro FILE INPUTS OUTPUTS

Needs the package `tflite-micro`, in a process of its own, since it and LiteRT have functions of the same names. It
writes the outputs of all examples, and what the runtime says of its memory to the standard error stream.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

ARENA_BYTES = 8 * 1024 * 1024


class MicroModel(nn.Module):
    """A `.tflite` file for one example, whose inputs and outputs are float32.

    Args:
        content: The file.
        inputs: (B, ...) - examples; the arena is measured with them.

    Raises:
        RuntimeError: If it cannot be run.
    """

    def __init__(self, content: bytes, inputs: Tensor) -> None:
        super().__init__()
        self._content = content
        _, told = self._run(inputs)
        (self.arena_bytes,) = map(int, re.findall(r"Arena allocation total (\d+) bytes", told))

    def forward(self, batch: Tensor) -> Tensor:
        """(B, ...) -> (B, ...), one example after the other."""
        return self._run(batch)[0]

    def _run(self, batch: Tensor) -> tuple[Tensor, str]:
        with tempfile.TemporaryDirectory() as folder:
            file, inputs, outputs = (Path(folder) / name for name in ("model.tflite", "inputs.npy", "outputs.npy"))
            file.write_bytes(self._content)
            np.save(inputs, batch.numpy())
            command = [sys.executable, "-m", "benchmarks.target_micro", *map(str, (file, inputs, outputs))]
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError((done.stderr.strip() or f"it ended with {done.returncode}").splitlines()[-1])
            return torch.from_numpy(np.load(outputs)), done.stderr


def main(file: str, inputs: str, outputs: str) -> None:
    runtime = import_module("tflite_micro").runtime
    interpreter = runtime.Interpreter.from_bytes(Path(file).read_bytes(), arena_size=ARENA_BYTES)
    results = []
    for example in np.load(inputs):
        interpreter.set_input(example[None], 0)
        interpreter.invoke()
        results.append(np.array(interpreter.get_output(0)))
    np.save(outputs, np.concatenate(results))
    interpreter.print_allocations()


if __name__ == "__main__":
    main(*sys.argv[1:])
