"""The table of the zoo: how small each method made the models, and how often it broke the budget."""

from __future__ import annotations

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

OURS = "ours"


def geometric_mean(values: pd.Series[float]) -> float:
    return float(np.exp(np.log(values.astype(float)).mean()))


def show(rows: pd.DataFrame, methods: list[str], console: Console) -> None:
    """Prints a table for each algorithm, and the errors.

    Args:
        rows: The rows of one number of epochs.
        methods: The methods in the order of the columns.
        console: Where to print.
    """
    for algorithm, of_algorithm in rows.groupby("algorithm", sort=False):
        console.print(table_of(of_algorithm, methods, str(algorithm)))
    console.print(
        "Size ratio of the returned models, geometric mean over the seeds; in parentheses the largest one among all "
        "models tried that keep the budget on the test split, which counts for a rival."
    )
    for row in rows[rows["error"] != ""].itertuples():
        console.print(f"{row.task}, seed {row.seed}, {row.algorithm}, {row.method}: {row.error}", markup=False)


def table_of(rows: pd.DataFrame, methods: list[str], algorithm: str) -> Table:
    """A row per task, the means over the tasks for choosing and over the others, the broken budgets and the time."""
    methods = [name for name in methods if name in set(rows["method"])]
    seeds = " ".join(map(str, sorted(set(rows["seed"]))))
    table = Table("task", *methods, title=f"{algorithm}, seeds {seeds}", box=None)
    rivals = [name for name in methods if name != OURS]
    if OURS in methods and rivals:
        table.add_column("ours to best rival")
    for column in table.columns[1:]:
        column.justify = "right"
    means = rows.groupby(["task", "method"], sort=False)[["size_ratio", "best_size_ratio"]].agg(geometric_mean)
    returned, best = (means[column].unstack("method") for column in ("size_ratio", "best_size_ratio"))
    about = rows.groupby("task", sort=False)[["is_for_choosing", "is_unlimited"]].first()

    def line(name: str, tasks: pd.Index[str]) -> list[str]:
        """The geometric means over some tasks; a method that lacks one of them has no mean."""
        cells = [name]
        for method in methods:
            pair = [np.exp(np.log(values.loc[tasks, method]).mean(skipna=False)) for values in (returned, best)]
            cells.append("-" if np.isnan(pair).any() else f"{pair[0]:.2f} ({pair[1]:.2f})")
        if OURS in methods and rivals:
            ratios = returned.loc[tasks, OURS] / best.loc[tasks, rivals].max(axis=1)
            cells.append(f"{np.exp(np.log(ratios).mean()):.2f}")
        return cells

    for task in about.index:
        table.add_row(*line(f"{task}{' (held out)' * (not about.loc[task, 'is_for_choosing'])}", pd.Index([task])))
    table.add_section()
    for name, is_chosen in (("mean, for choosing", True), ("mean, held out", False)):
        if len(tasks := about.index[about["is_for_choosing"] == is_chosen]):
            table.add_row(*line(name, tasks))
    of = [rows[rows["method"] == name] for name in methods]
    table.add_row("broken on test", *(_share(one["is_broken"]) for one in of))
    table.add_row("truly broken (unlimited test)", *(_share(one[one["is_unlimited"]]["is_broken"]) for one in of))
    table.add_row("seconds", *(f"{one['seconds'].mean():.1f}" for one in of))
    table.add_row("errors", *(str((one["error"] != "").sum()) for one in of))
    return table


def _share(is_broken: pd.Series[bool]) -> str:
    return f"{is_broken.sum()} of {len(is_broken)}"
