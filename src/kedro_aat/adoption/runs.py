"""`kedro aat runs`: the runs of the checkpoint store, listed, compared and removed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import click

from kedro_aat.adoption.selection import Selected, of_pipeline

if TYPE_CHECKING:
    from kedro.io import CatalogProtocol

    from kedro_aat.adoption.jobs import Job
    from kedro_aat.training.checkpoints import CheckpointStore
    from kedro_aat.training.checkpoints.stored import StoredRun

KEPT = 5
WIDTH = 120
_yes = click.option("--yes", "-y", is_flag=True, help="Do not ask.")


@click.group()
def runs() -> None:
    """List, compare and remove the runs in the checkpoint store; each search stage is a run."""


@runs.command("list")
@of_pipeline
def list_runs(selected: Selected) -> None:
    """List the runs, the last used first."""
    from rich.console import Console
    from rich.table import Table

    with _store(selected) as (store, delivered):
        from kedro_aat.training.checkpoints.stored import stored_runs

        found = stored_runs(store)
        if not found:
            click.echo(f"{store.root} has no runs.")
            return
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("run", "last used", "stage", "state"):
            table.add_column(column, no_wrap=True)
        for column in ("epochs", "rate", "metric", "MB"):
            table.add_column(column, justify="right")
        for run in found:
            state, *numbers = _cells(run).values()
            state += ", delivered" if run.name in delivered and run.best is not None else ""
            table.add_row(run.name, f"{run.last_used:%Y-%m-%d %H:%M}", run.stage or "-", state, *numbers)
        # Lines that wrap in a narrow terminal are better than numbers that are cut off.
        Console(width=max(Console().width, WIDTH)).print(table)


@runs.command()
@click.argument("run")
@of_pipeline
def show(selected: Selected, run: str) -> None:
    """Show the settings of RUN, what it found, and its models within the budget. The begin of its name will do."""
    with _store(selected) as (store, _):
        from kedro_aat.training.checkpoints.stored import find_run
        from kedro_aat.training.progress import flatten

        found = find_run(store, run)
        click.echo(f"{found.name}, in {found.record.folder}")
        for name, text in {"stage": found.stage or "-", **_cells(found)}.items():
            click.echo(f"  {name}: {text}")
        click.echo(f"  kedro-aat: {found.record.version}")
        click.echo("Settings")
        for name, value in flatten(found.settings):
            if value is not None and value != []:
                click.echo(f"  {name}: {value}")


@runs.command()
@click.argument("first")
@click.argument("second")
@of_pipeline
def compare(selected: Selected, first: str, second: str) -> None:
    """Show what is different between two runs: what they found, code, data and settings."""
    with _store(selected) as (store, _):
        from kedro_aat.training.checkpoints.changes import changes_between
        from kedro_aat.training.checkpoints.stored import find_run

        pair = find_run(store, first), find_run(store, second)
        one, other = map(_cells, pair)
        click.echo(f"{'':10}  {pair[0].name:>14}  {pair[1].name:>14}")
        for name in one:
            click.echo(f"{name:10}  {one[name]:>14}  {other[name]:>14}")
        changes = changes_between(pair[0].record, pair[1].record)
        click.echo("Different:" if changes else "Settings, code and data are the same.")
        for change in changes:
            click.echo(f"  {change}")


@runs.command()
@click.argument("names", nargs=-1, required=True, metavar="RUN...")
@click.option("--force", "-f", is_flag=True, help="Also runs of what is delivered; nothing can be chosen of them then.")
@_yes
@of_pipeline
def remove(selected: Selected, names: tuple[str, ...], force: bool, yes: bool) -> None:
    """Remove runs with all their checkpoints. A run that a process works on stays."""
    with _store(selected) as (store, delivered):
        from kedro_aat.errors import CheckpointError
        from kedro_aat.training.checkpoints.stored import find_run

        found = [find_run(store, name) for name in names]
        kept = [run.name for run in found if run.name in delivered]
        if kept and not force:
            raise CheckpointError(
                f"{len(kept)} of {len(found)} runs ({', '.join(kept)}) made what the results of the last run name: its "
                "files could not be delivered again, or chosen for another budget. --force removes them nevertheless."
            )
        _remove(store, found, yes)


@runs.command()
@click.option(
    "--keep", type=click.IntRange(min=0), default=KEPT, show_default=True, help="Runs to keep, those used last."
)
@_yes
@of_pipeline
def prune(selected: Selected, keep: int, yes: bool) -> None:
    """Remove all runs but those used last, and those that the results of the last run name."""
    with _store(selected) as (store, delivered):
        from kedro_aat.training.checkpoints.stored import stored_runs

        found = [run for run in stored_runs(store)[keep:] if run.name not in delivered]
        if not found:
            click.echo("There is nothing to remove.")
            return
        _remove(store, found, yes)


@contextmanager
def _store(selected: Selected) -> Iterator[tuple[CheckpointStore, set[str]]]:
    """The checkpoint store of a pipeline, and the runs that its results name."""
    from contextlib import chdir

    with selected.session() as (job, catalog), chdir(selected.project.project_path):
        store = catalog.load(job.dataset("checkpoint_store"))
        yield cast("CheckpointStore", store), _named(job, catalog)


def _named(job: Job, catalog: CatalogProtocol[Any, Any]) -> set[str]:
    """Names of the runs in the results of the stages."""
    results = [catalog.load(name) for name in job.results if catalog.exists(name)]
    return {str(result["run"]) for result in results if isinstance(result, dict) and result.get("run")}


def _cells(run: StoredRun) -> dict[str, str]:
    """What a run found, in words."""
    best = run.best
    return {
        "state": "finished" if run.is_finished else "not finished",
        "epochs": str(run.epochs),
        "rate": "-" if best is None else f"{best.achieved_rate:.4f}",
        "metric": "-" if best is None else f"{best.metric:.4f}",
        "MB": f"{run.num_bytes / 1e6:.1f}",
    }


def _remove(store: CheckpointStore, found: Sequence[StoredRun], yes: bool) -> None:
    from kedro_aat.training.checkpoints.stored import remove_run

    size = sum(run.num_bytes for run in found) / 1e6
    words = f"{len(found)} run{'s' if len(found) > 1 else ''} ({', '.join(run.name for run in found)}), {size:.1f} MB"
    if not yes:
        click.confirm(f"Remove {words}?", abort=True)
    for run in found:
        remove_run(store, run)
    click.echo(f"Removed {words}.")
