"""Does the runs that the command asks for, one after another or in several processes."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context

import torch

from benchmarks.tasks.baseline import problem_of
from benchmarks.tasks.methods import METHODS
from benchmarks.tasks.registry import all_tasks
from benchmarks.tasks.results import Row, run

Run = tuple[str, int, str, str, int]  # the values of `results.KEY`


@contextmanager
def quiet_on_one_core() -> Iterator[None]:
    """Trains on one core, and shows only errors; afterwards the process is as it was."""
    logger, num_threads = logging.getLogger("kedro_aat"), torch.get_num_threads()
    level = logger.level
    torch.set_num_threads(1)
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"torch|torch_pruning|torchmetrics")
            yield
    finally:
        logger.setLevel(level)
        torch.set_num_threads(num_threads)


def perform(key: Run) -> Row:
    """Does one run."""
    name, seed, algorithm, method, num_epochs = key
    with quiet_on_one_core():  # the baseline may have to be trained
        problem = problem_of(all_tasks()[name], seed, "filters" if algorithm == "filters" else "sparsity")
        return run(problem, method, METHODS[method], num_epochs)


def performed(keys: list[Run], num_jobs: int) -> Iterator[Row]:
    """Does the runs, and yields each row when it is there."""
    if num_jobs == 1:
        yield from map(perform, keys)
        return
    with ProcessPoolExecutor(num_jobs, mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(perform, key) for key in keys]):
            yield future.result()
