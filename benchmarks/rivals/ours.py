"""kedro-aat: one call with its defaults for the target `cpu`, and with the objective `bytes`."""

from __future__ import annotations

import functools
import shutil
import sys
import time

import torch

import kedro_aat
from benchmarks.rivals.task import BATCH_SIZE, LR, Net, read_job, report

SECOND_STAGE = 0.2  # share of the epochs


def main() -> None:
    job = read_job()
    started = time.perf_counter()
    later = round(SECOND_STAGE * job.epochs)
    result = kedro_aat.compress(
        job.model,
        job.train,
        job.validation,
        budget=job.max_drop,
        optimizer=functools.partial(torch.optim.Adam, lr=LR),
        epochs=job.epochs - later,
        recipe=Net,
        folder=job.folder / "run",
        compression={"algorithm": "filter_pruning"},
        second_stage={
            "compression": {"algorithm": "quantization"},
            "search": {"kind": "frontier", "maximal_total_epochs": later},
        },
        training={"batch_size": BATCH_SIZE, "num_threads": 1},
        export={"objective": sys.argv[2] if len(sys.argv) > 2 else "bytes"},
    )
    if result.model is not None:
        shutil.copy(result.files["compressed_onnx"], job.folder / "model.onnx")
    report(job, started, f"{result.outcome}")


if __name__ == "__main__":
    main()
