"""The plugin that Kedro loads in every project: checks before a run, and the `kedro aat` commands."""

from __future__ import annotations

import logging
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from kedro.framework.hooks import hook_impl
from kedro.io import DataCatalog
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from kedro_aat.adoption.beside import redirect_outputs
from kedro_aat.adoption.checks import allow_absent, data_mistakes, free_inputs, withhold_test_data
from kedro_aat.adoption.closing import Closing
from kedro_aat.adoption.commands import aat
from kedro_aat.adoption.credentials import require_credentials
from kedro_aat.adoption.logged_parameters import flatten_for_kedro_mlflow
from kedro_aat.adoption.rehearsals import stand_in
from kedro_aat.adoption.runners import runner_mistakes
from kedro_aat.errors import AatError, ConfigurationError
from kedro_aat.messages import show_progress
from kedro_aat.ranks.environment import launched_world_size
from kedro_aat.validated import Settings

if TYPE_CHECKING:
    from kedro.framework.context import KedroContext

    from kedro_aat.adoption.torchrun import PipelineRanks

logger = logging.getLogger(__name__)

_CHOOSING = ("tags", "from_nodes", "to_nodes", "from_inputs", "to_outputs", "namespaces")  # options of `kedro run`

# Kedro 1.7 registers its resolvers with a function that OmegaConf 2.4 calls deprecated, about five times a command. It
# is silenced for that one module of Kedro, so that the same call in code of the project is still told of.
warnings.filterwarnings(
    "ignore", message=r"register_new_resolver\(\) is deprecated", module=r"kedro\.config\.omegaconf_config$"
)


class AatHooks:
    """Finds mistakes before a run spends hours, and ends `kedro run` with what matters: our error, or the outcome."""

    def __init__(self) -> None:
        self._closing = Closing()
        self._ranks: PipelineRanks | None = None  # of the present run, if several processes were started with it

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Makes the saved models of the project's catalog trust what its entries name by `class_path`.

        It also shows the progress of a run, unless the project's logging configuration sets a level for it.

        Args:
            context: The project's context, in a run, a command or a notebook.

        Raises:
            SystemExit: In `kedro run`, if entries of the catalog name credentials that are not there.
        """
        from kedro_aat.datasets.trust import share_trust

        show_progress()
        try:
            catalog = context.config_loader["catalog"]
        except Exception:  # Kedro says so when the catalog is created
            return
        context.config_loader["catalog"] = share_trust(catalog)
        command = click.get_current_context(silent=True)
        if command is not None and command.command.name == "run":  # others may do without the catalog
            try:
                require_credentials(context.config_loader)
            except ConfigurationError as error:
                self._refuse(error)

    @hook_impl(tryfirst=True)  # so that nothing is tracked in the processes that only follow, or before a mistake
    def before_pipeline_run(self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog) -> None:
        """Checks everything that our nodes load or import.

        If several processes were started with the run, rank 0 goes on; the others end here when the run has ended.

        Args:
            run_params: Arguments of `kedro run`.
            pipeline: The pipeline that is about to run.
            catalog: Its datasets and parameters.

        Raises:
            ConfigurationError: Lists every missing dataset, every import path or argument in our settings that does
                not exist, every file that two entries share without an order, and a runner that cannot run them.
            RankError: If some of the processes do not come.
            SystemExit: In all processes but rank 0, when the run has ended.
        """
        redirect_outputs(pipeline, catalog)
        allow_absent(pipeline, catalog)
        self._join(run_params, pipeline, catalog)
        stand_in(pipeline, catalog)
        withhold_test_data(pipeline, catalog, lambda key: catalog[f"params:{key}"].load())
        mistakes = runner_mistakes(str(run_params.get("runner")), pipeline, catalog)
        for name in free_inputs(pipeline):
            if name.startswith("params:"):
                settings = catalog[name].load()
                if isinstance(settings, Settings):
                    mistakes += settings.lookup_mistakes(name.removeprefix("params:"))
        mistakes += data_mistakes(pipeline, catalog, maker_of=partial(_maker_of, run_params))
        if mistakes:
            self._refuse(ConfigurationError("Before the run", mistakes))
        self._closing.begin()

    def _join(self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog) -> None:
        """Joins the other processes of the run, if there are any; only rank 0 returns then."""
        self._ranks = None
        if launched_world_size() == 1:
            return
        from kedro_aat.adoption.torchrun import PipelineRanks, require_sequential  # with torch

        if not PipelineRanks.are_needed(pipeline):
            return
        try:
            self._ranks = PipelineRanks(pipeline, catalog.get)
            if self._ranks.leads:
                require_sequential(str(run_params.get("runner")))
                return
        except AatError as error:
            self._refuse(error)
        self._ranks.follow()

    def _refuse(self, error: AatError) -> NoReturn:
        """Ends a run that has not begun."""
        self.on_pipeline_error(error)  # Kedro calls it only for errors of nodes
        raise error

    @hook_impl(tryfirst=True)  # before kedro-mlflow logs the parameters
    def before_node_run(self, node: Node, inputs: dict[str, Any]) -> None:
        """Has the other processes of the run begin a node that all of them run, and kedro-mlflow log flat parameters.

        Args:
            node: The node that is about to run.
            inputs: A copy of its inputs by name, which Kedro makes for hooks.

        Raises:
            ConfigurationError: If an input cannot be sent to them.
            RankError: If they cannot load an input.
        """
        if self._ranks is not None:
            self._ranks.begin(node, inputs)
        flatten_for_kedro_mlflow(inputs)

    @hook_impl(trylast=True)  # Kedro-Viz writes its file first
    def after_pipeline_run(self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog) -> None:
        """Tells Kedro-Viz the sizes of the datasets, and says again what the run warned of and how it ended.

        Args:
            run_params: Arguments of `kedro run`, with the project's folder.
            pipeline: The pipeline that was run.
            catalog: Its datasets and parameters.
        """
        from kedro_aat.datasets.statistics import add_statistics

        if self._ranks is not None:
            self._ranks.end()
            self._ranks = None
        add_statistics(Path(run_params["project_path"]), pipeline, catalog)
        self._closing.end()
        self._closing.say(pipeline, catalog)

    @hook_impl(trylast=True)
    def on_pipeline_error(self, error: Exception) -> None:
        """Ends a `kedro` command with the message of our error, below Kedro's advice and instead of a traceback.

        The advice to begin at a later node would leave out what our nodes continue. Python code that runs a session
        gets the error itself.

        Args:
            error: What ended the run.

        Raises:
            SystemExit: For an error of ours in a `kedro` command.
        """
        if self._ranks is not None:
            self._ranks.end(failed=True)
            self._ranks = None
        self._closing.end()
        if isinstance(error, AatError) and click.get_current_context(silent=True) is not None:
            logger.error("%s", error, extra={"markup": False})
            raise SystemExit(1) from error


hooks = AatHooks()


@click.group("kedro-aat")  # `kedro --help` names a plugin by its group, and shows the text below at the top
def commands() -> None:
    """Kedro-aat makes models as small as an accuracy budget allows: see ``kedro aat``."""


commands.add_command(aat)


def _maker_of(run_params: dict[str, Any], name: str) -> str | None:
    """The node that makes a dataset in another pipeline of the project, and the command that runs both."""
    from kedro_aat.adoption.makers import producers_in
    from kedro_aat.adoption.selection import registered
    from kedro_aat.adoption.shared_files import stem

    names = run_params.get("pipeline_names") or [run_params.get("pipeline_name") or "__default__"]
    pipelines = registered()
    found = producers_in(pipelines, names[0]).get(stem(name)) if names[0] in pipelines else None
    if found is None:
        return None
    node, owner = found
    if owner in names:
        chosen = [f"--{key.replace('_', '-')}" for key in _CHOOSING if run_params.get(key)]
        chosen += ["--nodes"] if run_params.get("node_names") else []
        if not chosen:
            return None
        return (
            f"the node {node.name} makes it, which {' and '.join(chosen)} leaves out of this run: run that node, too, "
            "or let it write a file and run it before"
        )
    return f"the node {node.name} of the pipeline {owner} makes it: `kedro run --pipelines {','.join((owner, *names))}`"
