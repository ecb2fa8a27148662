"""What kedro-aat adds to any Kedro project: checks before a run, and the `kedro aat` commands."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import click
from kedro.framework.hooks import hook_impl
from kedro.io import DataCatalog
from kedro.pipeline import Node, Pipeline

from kedro_aat.errors import AatError, ConfigurationError
from kedro_aat.validated import Settings

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
