"""What kedro-aat adds to any Kedro project: checks before a run, and the `kedro aat` commands."""

from __future__ import annotations

import logging
from typing import Any

import click
from kedro.framework.hooks import hook_impl
from kedro.io import DataCatalog
from kedro.pipeline import Pipeline

from kedro_aat.errors import AatError, DataError

logger = logging.getLogger(__name__)

LOOP_NODE = "finetune_adaptively"


class AatHooks:
    """Finds what is missing before hours are spent."""

    @hook_impl
    def before_pipeline_run(self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog) -> None:
        """Names every data set that a run with our loop reads from outside and that is not there.

        Raises:
            DataError: If any is missing.
        """
        if not any(node.name.rpartition(".")[2] == LOOP_NODE for node in pipeline.nodes):
            return
        missing = [
            f"{name} ({_where(catalog, name)})"
            for name in sorted(pipeline.inputs())
            if name != "parameters" and not name.startswith("params:") and not catalog.exists(name)
        ]
        if missing:
            raise DataError(
                f"Missing before the run can begin: {'; '.join(missing)}. Put the file there, mend its catalog "
                "entry, or run the pipeline that makes it."
            )

    @hook_impl
    def on_node_error(self, error: Exception, node: Any) -> None:
        """Says the one sentence that matters before Kedro's traceback."""
        if isinstance(error, AatError):
            logger.error("%s: %s", node.name, error)


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
def schema() -> None:
    """Print the JSON Schema of the `aat` parameters, for editors."""
    import json

    from kedro_aat.config import AatSettings

    click.echo(json.dumps(AatSettings.model_json_schema(), indent=2))
