"""What kedro-aat adds to any Kedro project: checks before a run, and the `kedro aat` commands."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click
from kedro.framework.hooks import hook_impl
from kedro.io import DataCatalog
from kedro.pipeline import Node, Pipeline

from kedro_aat.errors import AatError, ConfigurationError
from kedro_aat.validated import Settings

if TYPE_CHECKING:
    from kedro.framework.startup import ProjectMetadata

logger = logging.getLogger(__name__)


class AatHooks:
    """Finds what is missing before hours are spent."""

    @hook_impl
    def before_pipeline_run(self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog) -> None:
        """Looks up all that our nodes are told to read or import.

        Raises:
            ConfigurationError: Names every data set that is not there, and every import path or argument in our
                settings that leads nowhere.
        """
        names = set[str]().union(*(node.inputs for node in pipeline.nodes if _is_ours(node)))
        mistakes: list[str] = []
        for name in sorted(names & pipeline.inputs()):
            if name.startswith("params:"):
                settings = catalog[name].load()
                if isinstance(settings, Settings):
                    mistakes += settings.lookup_mistakes(name.removeprefix("params:"))
            elif not catalog.exists(name):
                mistakes.append(
                    f"{name}: {_where(catalog, name)} is missing; put the file there, mend its catalog entry, or "
                    "run the nodes that make it"
                )
        if mistakes:
            raise ConfigurationError("Before the run", mistakes)

    @hook_impl
    def on_node_error(self, error: Exception, node: Node) -> None:
        """Says the one sentence that matters before Kedro's traceback."""
        if isinstance(error, AatError):
            logger.error("%s: %s", node.name, error)


def _is_ours(node: Node) -> bool:
    return node.func.__module__.startswith("kedro_aat.")


def _where(catalog: DataCatalog, name: str) -> str:
    described = catalog[name]._describe() if name in catalog else {}
    return str(described.get("filepath", "not in the catalog"))


hooks = AatHooks()


@click.group()
def commands() -> None:
    """Commands of the plugins of this project."""


@commands.group(name="aat")
def aat() -> None:
    """Accuracy-aware training."""


@aat.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def schema(file: Path) -> None:
    """Write the JSON Schema of the `aat` parameters to FILE, for editors and for reading."""
    from kedro_aat.config import AatSettings

    # To a file, since Kedro's own log lines would stand between on the standard output.
    file.write_text(json.dumps(AatSettings.model_json_schema(), indent=2) + "\n")


@aat.command()
@click.option("--max-drop", type=click.FloatRange(min=0), help="The budget, in units of the metric.")
@click.option("--max-relative-drop", type=click.FloatRange(0, 1), help="The budget, as a fraction of the baseline.")
@click.option("--env", "-e", help="Kedro environment.")
@click.option("--pipeline", default="aat", show_default=True, help="The pipeline that made the run.")
@click.option("--params", default="", help="The parameters that the run was made with, as for `kedro run`.")
@click.pass_obj
def choose(
    project: ProjectMetadata,
    max_drop: float | None,
    max_relative_drop: float | None,
    env: str | None,
    pipeline: str,
    params: str,
) -> None:
    """Show the models that a search came by, or deliver the one that suits another budget.

    Nothing is trained: a model is read off the frontier, exported, and certified if the test split is still unread.
    """
    from kedro.framework.session import KedroSession
    from omegaconf import OmegaConf

    from kedro_aat.reporting.frontier import print_frontier

    given = {"max_drop": max_drop, "max_relative_drop": max_relative_drop}
    budget = [f"aat.choose.{key}={value}" for key, value in given.items() if value is not None]
    own = [part for part in params.split(",") if part]
    runtime_params = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.from_dotlist(own + budget)))
    with KedroSession.create(project.project_path, env=env, runtime_params=runtime_params) as session:
        assert isinstance(session, KedroSession)
        if budget:
            session.run(pipeline_names=[pipeline], from_nodes=["finetune_adaptively"])
        else:
            catalog = session.load_context().catalog
            names = ("search_trajectory", "baseline_evaluation", "search_result", "checkpoint_store")
            print_frontier(*(catalog.load(name) for name in names))
