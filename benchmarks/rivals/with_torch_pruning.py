"""Torch-Pruning: one ratio for all groups by magnitude, cut at once, then trained; the ratio is found by bisection."""

from __future__ import annotations

import copy
import time

import torch_pruning
from torch import nn

from benchmarks.rivals.task import Job, bisect, fine_tune, finish, read_job

NUM_TRIALS = 3


def main() -> None:
    job = read_job()
    started = time.perf_counter()
    finish(job, started, bisect_ratio(job), f"{NUM_TRIALS} ratios, bisected by the benchmark")


def bisect_ratio(job: Job) -> nn.Module | None:
    def trial(ratio: float) -> nn.Module:
        model = copy.deepcopy(job.model)
        pruner = torch_pruning.pruner.MagnitudePruner(
            model,
            job.example,
            importance=torch_pruning.importance.MagnitudeImportance(p=2),
            pruning_ratio=ratio,
            ignored_layers=[model.head],
        )
        pruner.step()
        fine_tune(model, job.train, job.epochs // NUM_TRIALS)
        return model

    return bisect(job, trial, NUM_TRIALS)


if __name__ == "__main__":
    main()
