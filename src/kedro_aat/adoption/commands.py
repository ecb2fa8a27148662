"""The `kedro aat` commands."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from kedro_aat.errors import AatError, ConfigurationError

if TYPE_CHECKING:
    from kedro.framework.context import KedroContext
    from kedro.framework.startup import ProjectMetadata
    from kedro.io import DataCatalog
    from kedro.pipeline import Pipeline


def _tells_mistakes(command: Callable[..., None]) -> Callable[..., None]:
    """Ends a command with our errors' words and exit code 1, without a traceback."""

    @functools.wraps(command)
    def told(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
        except AatError as error:
            raise click.ClickException(str(error)) from error

    return told


_env = click.option("--env", "-e", help="Kedro environment.")
_params = click.option("--params", default="", help="Parameters that the run has on top, as for `kedro run`.")
_pipeline = click.option("--pipeline", default="aat", show_default=True, help="The pipeline's name in the registry.")
_force = click.option("--force", "-f", is_flag=True, help="Overwrite what is there.")


@click.command()
@click.option("--env", "-e", default="base", show_default=True, help="Environment whose folder is written to.")
@click.option("--namespace", help="Prefix of data sets and parameters, where a project compresses several models.")
@_force
@click.pass_obj
@_tells_mistakes
def init(project: ProjectMetadata, env: str, namespace: str | None, force: bool) -> None:
    """Write commented parameters and catalog entries into this project."""
    from kedro_aat.adoption import templates

    package = Path(project.source_dir) / project.package_name
    registry = package / "pipeline_registry.py"
    pipeline = templates.pipeline_name(namespace)
    texts = templates.configuration(_configuration(project) / env, namespace)
    is_found = "find_pipelines" in registry.read_text(encoding="utf-8")
    if is_found:
        texts[package / "pipelines" / pipeline / "__init__.py"] = templates.pipeline_module(namespace)
    templates.write_new(texts, force=force)
    for path in texts:
        click.echo(f"Wrote {path.relative_to(project.project_path)}")
    if not is_found:
        import_line, pipeline_line = templates.registry_lines(namespace)
        click.echo(
            f"Add two lines to {registry.relative_to(project.project_path)}, the second inside register_pipelines:\n\n"
            f"{import_line}\n    {pipeline_line}\n"
        )
    click.echo(
        "Where the registry sums all pipelines, as Kedro's template does, a plain `kedro run` now runs this one, too.\n"
        "Name your model and data in the catalog, and your metric in the parameters. Then:\n"
        f"  kedro aat validate{'' if namespace is None else f' --pipeline {pipeline}'}\n"
        f"  kedro run --pipelines {pipeline}"
    )


@click.command()
@_env
@_params
@_pipeline
@click.pass_obj
@_tells_mistakes
def validate(project: ProjectMetadata, env: str | None, params: str, pipeline: str) -> None:
    """Check parameters, import paths and data sets, without training."""
    from kedro.framework.session import KedroSession
    from kedro.io.core import DatasetError

    from kedro_aat.adoption.checks import data_mistakes, parameter_mistakes

    with KedroSession.create(project.project_path, env=env, runtime_params=_given(params)) as session:
        assert isinstance(session, KedroSession)
        context = session.load_context()
        nodes = _registered(pipeline)
        mistakes = parameter_mistakes(nodes, _configured(context, "parameters"))
        with chdir(project.project_path):  # paths in a catalog are relative to the project
            try:
                mistakes += data_mistakes(nodes, _catalog(context))
            except (DatasetError, KeyError, ValueError) as error:  # an entry, credentials or duplicate keys
                mistakes.append(f"catalog: {error}")
    if mistakes:
        raise ConfigurationError(f"Pipeline {pipeline}", mistakes)
    click.echo(f"Pipeline {pipeline}: parameters, import paths and data sets are in order.")


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def schema(file: Path) -> None:
    """Write the JSON Schema of the `aat` parameters to FILE, for editors and for reading."""
    from kedro_aat.config import AatSettings

    # To a file, since Kedro's own log lines would stand between on the standard output.
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(AatSettings.model_json_schema(), indent=2) + "\n", encoding="utf-8")


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="[default: conf/base/parameters_aat.yml]")
@_force
@click.pass_obj
@_tells_mistakes
def from_nncf(project: ProjectMetadata, file: Path, out: Path | None, force: bool) -> None:
    """Write the NNCF 2.x configuration FILE as parameters; what has no counterpart is named."""
    from kedro_aat.adoption.templates import template, write_new
    from kedro_aat.nncf.parameters import parameters_from_nncf

    target = out or _configuration(project) / "base" / "parameters_aat.yml"
    text, notes = parameters_from_nncf(file, template("parameters_aat.yml"))
    write_new({target: text}, force=force)
    click.echo(f"Wrote {target}")
    for note in notes:
        click.echo(f"Note: {note}")


@click.command()
@click.option("--max-drop", type=click.FloatRange(min=0), help="The budget, in units of the metric.")
@click.option("--max-relative-drop", type=click.FloatRange(0, 1), help="The budget, as a fraction of the baseline.")
@_env
@click.option("--pipeline", help="The pipeline's name in the registry.  [default: as `kedro aat init` calls it]")
@click.option("--namespace", help="The pipeline's namespace, if it has one.")
@_params
@click.pass_obj
@_tells_mistakes
def choose(
    project: ProjectMetadata,
    max_drop: float | None,
    max_relative_drop: float | None,
    env: str | None,
    pipeline: str | None,
    namespace: str | None,
    params: str,
) -> None:
    """Show the models that a search came by, or deliver the one that suits another budget.

    Nothing is trained: a model is read off the frontier, exported, and certified if the test split is still unread.
    """
    from kedro.framework.session import KedroSession

    from kedro_aat.adoption.templates import pipeline_name
    from kedro_aat.delivery.results import BaselineEvaluation, SearchResult
    from kedro_aat.reporting.front import print_front

    if max_drop is not None and max_relative_drop is not None:
        raise click.UsageError("Give --max-drop or --max-relative-drop, not both.")
    pipeline = pipeline or pipeline_name(namespace)
    prefix = "" if namespace is None else f"{namespace}."
    given = {"max_drop": max_drop, "max_relative_drop": max_relative_drop}
    budget = [f"{prefix}aat.choose.{key}={value}" for key, value in given.items() if value is not None]
    with KedroSession.create(project.project_path, env=env, runtime_params=_given(params, *budget)) as session:
        assert isinstance(session, KedroSession)
        if budget:
            session.run(pipeline_names=[pipeline], from_nodes=[f"{prefix}finetune_adaptively"])
        else:
            catalog = session.load_context().catalog
            names = ("search_trajectory", "baseline_evaluation", "search_result", "checkpoint_store")
            if missing := [prefix + name for name in names if not catalog.exists(prefix + name)]:
                raise ConfigurationError(
                    "There is no search to choose from",
                    [f"{', '.join(missing)}: not there yet; `kedro run --pipelines {pipeline}` makes one"],
                )
            trajectory, evaluation, result, store = (catalog.load(prefix + name) for name in names)
            print_front(
                trajectory,
                BaselineEvaluation.model_validate(evaluation),
                SearchResult.model_validate(result),
                store,
            )


def _given(params: str, *more: str) -> dict[str, Any]:
    """Runtime parameters, from `key=value` with commas between."""
    from omegaconf import OmegaConf

    own = [part for part in params.split(",") if part]
    if mistaken := [part for part in own if "=" not in part]:
        raise click.UsageError(f"--params takes key=value, with commas between, but got {', '.join(mistaken)}")
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.from_dotlist([*own, *more])))


def _configuration(project: ProjectMetadata) -> Path:
    """The project's folder of configuration."""
    from kedro.framework.project import settings

    return Path(project.project_path) / str(settings.CONF_SOURCE)


def _registered(name: str) -> Pipeline:
    from kedro.framework.project import pipelines

    from kedro_aat.adoption.templates import registry_lines

    if name not in pipelines:
        lines = " and ".join(f"`{line}`" for line in registry_lines())
        raise ConfigurationError(
            "pipeline_registry.py",
            [
                f"no pipeline is called {name!r}; there are {', '.join(pipelines) or 'none'}. `kedro aat init` writes "
                f"one; in a registry without find_pipelines add {lines}; or name yours with --pipeline"
            ],
        )
    found: Pipeline = pipelines[name]
    return found


def _configured(context: KedroContext, kind: str) -> dict[str, Any]:
    """One kind of configuration, empty where the project has none."""
    from kedro.config import MissingConfigException

    try:
        found: dict[str, Any] = context.config_loader[kind]
    except MissingConfigException:
        return {}
    return found


def _catalog(context: KedroContext) -> DataCatalog:
    """The project's catalog, without the parameters, which a context refuses to build it with if they are mistaken."""
    from kedro.io import DataCatalog

    return DataCatalog.from_config(_configured(context, "catalog"), _configured(context, "credentials"))
