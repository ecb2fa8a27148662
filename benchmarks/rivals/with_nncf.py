"""NNCF 3: int8 by `nncf.quantize`, then quantization-aware training; the best epoch within budget is exported."""

from __future__ import annotations

import copy
import os
import time

os.environ.setdefault("NNCF_EXTENSION_LOAD_TIMEOUT", "0")  # it compiles its extension when it is first used

import nncf
from torch import nn

from benchmarks.rivals.task import accuracy, fine_tune, finish, read_job


def main() -> None:
    job = read_job()
    started = time.perf_counter()
    calibration = nncf.Dataset(list(job.train[0].split(32))[:10])
    model = nncf.quantize(copy.deepcopy(job.model), calibration)
    best: list[tuple[float, nn.Module]] = []

    def keep() -> None:
        reached = accuracy(model, job.validation)
        if reached >= job.lowest and (not best or reached > best[0][0]):
            best[:] = [(reached, copy.deepcopy(model))]

    keep()
    fine_tune(model, job.train, job.epochs, lr=1e-4, after_epoch=keep)
    finish(job, started, nncf.strip(best[0][1]) if best else None, "int8; NNCF 3 cuts nothing")


if __name__ == "__main__":
    main()
