"""Gradual magnitude pruning (Zhu & Gupta 2017, arXiv:1710.01878): the rate rises on a cubic schedule."""

from __future__ import annotations

import copy

from benchmarks.tasks.rivals.compressed import Compressed
from benchmarks.tasks.rivals.training import Training, bisect
from benchmarks.tasks.task import Found, Problem
from kedro_aat.compression.build import build_controller
from kedro_aat.compression.schedule import ScheduleSettings
from kedro_aat.compression.settings import FilterPruning, MagnitudeSparsity
from kedro_aat.training.data import synthetic_input

SHARE_OF_RISE = 0.6  # of the epochs; the others train at the final rate
NUM_TRIALS = 2


def gradual(problem: Problem, num_epochs: int) -> Found:
    """Bisects the final rate, with half of the epochs each."""

    def trial(ratio: float, epochs: int, first_epoch: int) -> tuple[Compressed, float | None]:
        # The rate changes with each epoch's first step: with each step, ranking filters would take most of the time.
        rise = max(1, round(SHARE_OF_RISE * epochs))
        schedule = ScheduleSettings(
            kind="polynomial", power=3, target_rate=1 - 1 / ratio, target_epoch=rise, freeze_epoch=rise
        )
        settings: FilterPruning | MagnitudeSparsity = MagnitudeSparsity(importance="abs", schedule=schedule)
        if problem.algorithm == "filters":
            settings = FilterPruning(importance="l2", schedule=schedule)
        model = copy.deepcopy(problem.baseline)
        controller = build_controller(model, settings, example_input=synthetic_input(problem.splits.train))
        compressed = Compressed(controller.model, controller)
        training, metric = Training(problem, compressed, epochs, first_epoch=first_epoch), None
        for epoch in range(1, epochs + 1):
            controller.scheduler.epoch_step(epoch)
            if (metric := training.epoch()) is None:
                break
        return compressed, metric

    return bisect(problem, num_epochs, NUM_TRIALS, trial)
