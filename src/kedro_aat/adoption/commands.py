"""The `kedro aat` commands; their docstrings are the help texts.

Kedro imports this module for every command of a project, so whatever takes long to import is imported in the functions.
"""

from __future__ import annotations

import json
from contextlib import chdir
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kedro_aat.adoption.init.command import conf_folder, init
from kedro_aat.adoption.runs import runs
from kedro_aat.adoption.selection import (
    Selected,
    conf_source_option,
    env_option,
    find_pipeline,
    of_pipeline,
    params_option,
    parse_params,
    registered,
)
from kedro_aat.errors import AatError
from kedro_aat.imports import import_path
from kedro_aat.storage import local_path

if TYPE_CHECKING:
    from kedro.framework.startup import ProjectMetadata

    from kedro_aat.adoption.validation import Trial


class _ErrorReportingGroup(click.Group):
    """A group whose commands end with the message of an `AatError` and exit code 1, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except AatError as error:
            raise click.ClickException(str(error)) from error


# What `schema` describes -> its model, and whether users write such data ("validation") or a run does.
_SCHEMAS = {
    "settings": ("kedro_aat.config.AatSettings", "validation"),
    "summary": ("kedro_aat.delivery.results.Summary", "serialization"),
}

_run_nodes = click.option(
    "--run-nodes/--no-run-nodes",
    default=True,
    show_default=True,
    help="Whether to run the nodes that make a missing model or data. What they write goes to a temporary folder.",
)
_force = click.option("--force", "-f", is_flag=True, help="Overwrite existing files.")


@click.group(cls=_ErrorReportingGroup)
def aat() -> None:
    """Accuracy-aware training."""


aat.add_command(init)
aat.add_command(runs)


@aat.command()
@env_option
@conf_source_option
@params_option
@click.option("--pipeline", default="aat", show_default=True, help="Name of the pipeline in the registry.")
@_run_nodes
@click.pass_obj
def validate(
    project: ProjectMetadata, env: str | None, conf_source: str | None, params: str, pipeline: str, run_nodes: bool
) -> None:
    """Check parameters, import paths and datasets, and do everything that the run will do once, in small."""
    from kedro_aat.adoption.rehearsals import rehearse

    _try_pipeline(project, env, conf_source, params, pipeline, run_nodes, rehearse)


@aat.command()
@env_option
@conf_source_option
@params_option
@click.option("--pipeline", default="aat", show_default=True, help="Name of the pipeline in the registry.")
@_run_nodes
@click.option("--devices", type=click.IntRange(1, 1024), help="Devices that train together.  [default: the settings']")
@click.option("--sharded", is_flag=True, help="Divide weights, gradients and optimizers among the devices (FSDP2).")
@click.option("--parameters", type=click.FloatRange(1, 1e15), help="Compute for so many parameters, without a model.")
@click.option("--json", "file", type=click.Path(dir_okay=False, path_type=Path), help="Write the numbers to a file.")
@click.pass_obj
def plan(
    project: ProjectMetadata,
    env: str | None,
    conf_source: str | None,
    params: str,
    pipeline: str,
    run_nodes: bool,
    devices: int | None,
    sharded: bool,
    parameters: float | None,
    file: Path | None,
) -> None:
    """Say what memory, disk and time a run will take, from a few training steps with the model and its data.

    Nothing is trained, and the test split stays unread. With --parameters nothing is loaded or measured: for AdamW and
    sparsity, memory and disk are computed.
    """
    from kedro_aat.adoption.plans import Planning

    planning = Planning(devices, sharded, None if file is None else local_path(file).absolute())
    if parameters is not None:
        planning.computed(parameters)
        return
    _try_pipeline(project, env, conf_source, params, pipeline, run_nodes, planning.measured)


@aat.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--of",
    "subject",
    type=click.Choice(list(_SCHEMAS)),
    default="settings",
    show_default=True,
    help="The `aat` parameters, or the file aat_summary.json.",
)
def schema(file: Path, subject: str) -> None:
    """Write the JSON Schema of the parameters or of the summary to FILE, for editors and other tools."""
    class_path, mode = _SCHEMAS[subject]
    text = json.dumps(import_path(class_path).model_json_schema(mode=mode), indent=2) + "\n"
    file = local_path(file)
    # Kedro logs to the standard output, so the schema goes to a file.
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


@aat.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="[default: conf/base/parameters_aat.yml]")
@conf_source_option
@_force
@click.pass_obj
def from_nncf(project: ProjectMetadata, file: Path, out: Path | None, conf_source: str | None, force: bool) -> None:
    """Translate the NNCF 2.x configuration FILE to parameters, and name the keys that have no counterpart."""
    from kedro_aat.adoption.templates import template, write_new
    from kedro_aat.nncf.parameters import parameters_from_nncf

    target = conf_folder(project, conf_source) / "base" / "parameters_aat.yml" if out is None else local_path(out)
    text, notes = parameters_from_nncf(file, template("parameters_aat.yml"))
    write_new({target: text}, force=force)
    click.echo(f"Wrote {target}")
    for note in notes:
        click.echo(f"Note: {note}")


@aat.command()
@click.option("--max-drop", type=click.FloatRange(min=0), help="Budget in units of the metric.")
@click.option("--max-relative-drop", type=click.FloatRange(0, 1), help="Budget as a fraction of the baseline.")
@click.option("--confirm", is_flag=True, help="Replace the delivered files by this choice, or by the last one.")
@of_pipeline
def choose(selected: Selected, max_drop: float | None, max_relative_drop: float | None, confirm: bool) -> None:
    """Show the models that the searches kept, or choose the best one for another budget.

    Nothing is trained. The chosen model is written into folders named `chosen` beside the delivered files, and compared
    with what is delivered. With --confirm it replaces the delivered files, and is certified if the test split was not
    used before.
    """
    from kedro_aat.adoption import choices

    if max_drop is not None and max_relative_drop is not None:
        raise click.UsageError("Give --max-drop or --max-relative-drop, not both.")
    key, value = ("max_drop", max_drop) if max_relative_drop is None else ("max_relative_drop", max_relative_drop)
    if value is None and not confirm:
        with selected.session() as (job, catalog):
            choices.show_front(job, catalog)
        return
    if value is None:
        with selected.session() as (job, catalog):
            value = choices.last_drop(job, catalog)
    if confirm:
        selected.run(f"choose.{key}={value}")
        with selected.session() as (job, catalog):
            choices.remove_choice(job, catalog)
        click.echo(
            "The choice is delivered. The next `kedro run` delivers for the budget in the parameters again; "
            f"`choose: {{ {key}: {value} }}` below `aat` keeps this choice."
        )
        return
    with choices.written_beside():
        selected.run(f"choose.{key}={value}", "best_so_far=true", only_ours=True)
    with selected.session() as (job, catalog):
        choices.print_choice(job, catalog, f"--{key.replace('_', '-')} {value} --confirm{selected.in_words}")


@aat.command()
@of_pipeline
def deliver(selected: Selected) -> None:
    """Deliver the best model that an unfinished search has found so far.

    Nothing is trained, and the test split stays unread. `kedro run` continues the search.
    """
    selected.run("best_so_far=true")


@aat.command()
@of_pipeline
def certify(selected: Selected) -> None:
    """Certify the delivered model on the test split, once, after a run with `certificate: null`.

    Nothing is trained or chosen. The settings of the certificate are those in the parameters, or the defaults where
    `certificate` is null.
    """
    selected.run("certificate={}", first="certify_model", requires="compressed_onnx", repeats=False)


@aat.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@of_pipeline
def import_ledger(selected: Selected, file: Path) -> None:
    """Add the entries of a certificate ledger in a JSON FILE to the ledger in the catalog.

    For a ledger that has moved to an object store or a database. FILE stays as it is, and entries that the ledger has
    stay, so that the command can be repeated.
    """
    from kedro_aat.adoption.ledgers import import_ledger as take_over

    with selected.session() as (job, catalog):
        click.echo(take_over(job, catalog, local_path(file).absolute()))


def _try_pipeline(
    project: ProjectMetadata,
    env: str | None,
    conf_source: str | None,
    params: str,
    pipeline: str,
    run_nodes: bool,
    trial: Trial,
) -> None:
    """Checks a pipeline, then does with its models and data what `trial` does."""
    from kedro.framework.session import KedroSession

    from kedro_aat.adoption.validation import validate_pipeline

    runtime = parse_params(params)
    session = KedroSession.create(project.project_path, env=env, runtime_params=runtime, conf_source=conf_source)
    with session:
        context = session.load_context()
        find_pipeline(pipeline)
        with chdir(project.project_path):  # paths in a catalog are relative to the project
            for line in validate_pipeline(pipeline, registered(), context, run_nodes=run_nodes, trial=trial):
                click.echo(line)
