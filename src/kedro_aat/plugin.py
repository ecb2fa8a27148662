"""What kedro-aat adds to any Kedro project: checks before a run, and the `kedro aat` commands."""

from __future__ import annotations

import logging
from typing import Any

import click
from kedro.framework.hooks import hook_impl
from kedro.io import DataCatalog
from kedro.pipeline import Node, Pipeline

from kedro_aat.adoption.checks import data_mistakes, free_inputs
from kedro_aat.adoption.commands import choose, from_nncf, init, schema, validate
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
        mistakes: list[str] = []
        for name in free_inputs(pipeline):
            if name.startswith("params:"):
                settings = catalog[name].load()
                if isinstance(settings, Settings):
                    mistakes += settings.lookup_mistakes(name.removeprefix("params:"))
        mistakes += data_mistakes(pipeline, catalog)
        if mistakes:
            raise ConfigurationError("Before the run", mistakes)

    @hook_impl
    def on_node_error(self, error: Exception, node: Node) -> None:
        """Says the one sentence that matters before Kedro's traceback."""
        if isinstance(error, AatError):
            logger.error("%s: %s", node.name, error)


hooks = AatHooks()


@click.group()
def commands() -> None:
    """Commands of the plugins of this project."""


@commands.group(name="aat")
def aat() -> None:
    """Accuracy-aware training."""


for command in (init, validate, schema, choose, from_nncf):
    aat.add_command(command)
