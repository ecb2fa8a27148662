"""Seconds until the rehearsal tells a fault, and its words, for models that a run could not deliver.

Run it as `python -m benchmarks.rehearsal`, with names of cases as arguments or without any for all of them.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

from kedro_aat.config import AatSettings
from kedro_aat.errors import AatError
from kedro_aat.rehearsal.rehearse import rehearse
from kedro_aat.training.checkpoints import CheckpointStore
from kedro_aat.validated import parse
from tests.rehearsal.faulty import CASES, Case, settings_of


def told(case: Case) -> str:
    """What the rehearsal of a case says."""
    data = case.data()
    torch.manual_seed(0)
    settings = parse(AatSettings, settings_of(case))
    with tempfile.TemporaryDirectory() as folder:
        try:
            result = rehearse(case.model(), data, data, settings, CheckpointStore(Path(folder)))
        except AatError as error:
            return f"{type(error).__name__}: {error}"
    return "passed: " + ", ".join(f"{part.name} {part.seconds:.1f} s" for part in result.parts)


def main(names: list[str]) -> None:
    """Prints the table."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    told(CASES["no fault"])  # so that no case pays for imports
    for name in names or CASES:
        wall, cpu = time.perf_counter(), time.process_time()
        words = told(CASES[name])
        print(f"{name}: {time.perf_counter() - wall:.1f} s ({time.process_time() - cpu:.1f} s of one processor)")
        print("  " + words.replace("\n", "\n  "), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
