"""The pipeline that the options of a command select, in a session with the user's parameters."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, cast

import click

from kedro_aat.errors import ConfigurationError

if TYPE_CHECKING:
    from kedro.framework.session import KedroSession
    from kedro.framework.startup import ProjectMetadata
    from kedro.io import CatalogProtocol
    from kedro.pipeline import Pipeline

    from kedro_aat.adoption.jobs import Job

_Command = Callable[..., None]


def _conf_source(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    from kedro.framework.cli.utils import validate_conf_source

    return None if value is None else validate_conf_source(context, option, value)


env_option = click.option("--env", "-e", help="Kedro environment.")
conf_source_option = click.option(
    "--conf-source",
    callback=_conf_source,
    help="Where the configuration is, as for `kedro run`.  [default: the project's folder]",
)
params_option = click.option("--params", default="", help="Additional parameters of the run, as for `kedro run`.")
_pipeline_option = click.option(
    "--pipeline", help="Name of the pipeline in the registry.  [default: the one that `kedro aat init` uses]"
)
_namespace_option = click.option("--namespace", help="Namespace of the pipeline, if it has one.")


@dataclass(frozen=True)
class Selected:
    """The pipeline that the options of a command select.

    Attributes:
        project: The project.
        env: Kedro environment; None for the default.
        params: Additional parameters, as for `kedro run`.
        pipeline: Name in the registry; None for the one that `kedro aat init` uses.
        namespace: Namespace; None for none.
        conf_source: Where the configuration is; None for the project's own.
    """

    project: ProjectMetadata
    env: str | None
    params: str
    pipeline: str | None
    namespace: str | None
    conf_source: str | None = None

    @property
    def in_words(self) -> str:
        """The options that select it, as they follow others on a command line; empty without any."""
        options = {
            "env": self.env,
            "conf-source": self.conf_source,
            "pipeline": self.pipeline,
            "namespace": self.namespace,
            "params": self.params,
        }
        return "".join(f" --{name} {shlex.quote(value)}" for name, value in options.items() if value)

    @property
    def job(self) -> Job:
        """Its job."""
        from kedro_aat.adoption.jobs import Job
        from kedro_aat.adoption.templates import pipeline_name

        name = self.pipeline or pipeline_name(self.namespace)
        find_pipeline(name)
        return Job.find(name, registered(), self.namespace)

    @contextmanager
    def session(self, *settings: str) -> Iterator[tuple[Job, CatalogProtocol[Any, Any]]]:
        """The job and the catalog.

        Args:
            *settings: Settings of the job that are changed, such as `certificate=null`.
        """
        with self._open(*settings) as (session, job):
            yield job, session.load_context().catalog

    def run(
        self,
        *settings: str,
        first: str = "finetune_adaptively",
        only_ours: bool = False,
        requires: str | None = None,
        repeats: bool = True,
    ) -> None:
        """Runs the nodes from one of ours on, and what makes their data if no dataset holds it.

        Args:
            *settings: Settings of the job that are changed.
            first: The function of the first node.
            only_ours: Whether nodes of the user's that read our results are left out.
            requires: An argument of the first node that an earlier run must have saved; None for none.
            repeats: Whether nodes of ours before it that train, choose or export may run again.

        Raises:
            ConfigurationError: If it was not saved, or if such a node would have to run.
        """
        from kedro_aat.adoption.checks import exists

        with self._open(*settings) as (session, job):
            catalog = session.load_context().catalog
            start = job.search if first == job.search.func.__name__ else job.node(first)
            if requires is not None and not exists(catalog, name := job.dataset(requires, first)):
                raise ConfigurationError(
                    f"Pipeline {job.pipeline}",
                    [f"nothing is saved in {name}, which {start.name} reads: finish a run first, with `kedro run`"],
                )
            pipelines, nodes = job.nodes_from(start, catalog, only_ours=only_ours, repeats=repeats)
            session.run(pipeline_names=pipelines, node_names=nodes)

    @contextmanager
    def _open(self, *settings: str) -> Iterator[tuple[KedroSession, Job]]:
        from kedro.framework.session import KedroSession

        from kedro_aat.adoption.credentials import require_credentials

        job = self.job
        changed = [f"{job.settings}.{setting}" for setting in settings]
        runtime = parse_params(self.params, *changed)
        session = KedroSession.create(
            self.project.project_path, env=self.env, runtime_params=runtime, conf_source=self.conf_source
        )
        with session:
            require_credentials(session.load_context().config_loader)
            yield session, job


def of_pipeline(command: _Command) -> _Command:
    """Adds the options that select a pipeline to a command, whose first argument is then what they select.

    Args:
        command: A function that takes a `Selected`, then its own options by name.
    """

    @click.pass_obj
    @wraps(command)
    def with_selected(
        project: ProjectMetadata,
        /,
        *,
        env: str | None,
        conf_source: str | None,
        pipeline: str | None,
        namespace: str | None,
        params: str,
        **options: Any,
    ) -> None:
        command(Selected(project, env, params, pipeline, namespace, conf_source), **options)

    selecting = (env_option, conf_source_option, _pipeline_option, _namespace_option, params_option)
    for option in reversed(selecting):  # the help lists the last one that is added first
        with_selected = option(with_selected)
    return with_selected


def parse_params(params: str, *assignments: str) -> dict[str, Any]:
    """Parses `key=value` pairs that are separated by commas, and further `key=value` assignments."""
    from omegaconf import OmegaConf

    pairs = [pair for pair in params.split(",") if pair]
    if mistakes := [pair for pair in pairs if "=" not in pair]:
        raise click.UsageError(f"--params takes key=value pairs separated by commas, but got {', '.join(mistakes)}")
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.from_dotlist([*pairs, *assignments])))


def find_pipeline(name: str) -> Pipeline:
    """The registered pipeline of that name.

    Raises:
        ConfigurationError: If there is none.
    """
    from kedro_aat.adoption.templates import registry_lines

    pipelines = registered()
    if name not in pipelines:
        lines = " and ".join(f"`{line}`" for line in registry_lines())
        raise ConfigurationError(
            "pipeline_registry.py",
            [
                f"no pipeline is called {name!r}, only {', '.join(pipelines) or 'none'}. Run `kedro aat init`, which "
                f"writes one; if the registry does not use find_pipelines, add {lines}; or name yours with --pipeline"
            ],
        )
    return pipelines[name]


def registered() -> Mapping[str, Pipeline]:
    """All registered pipelines, which Kedro creates when they are first read."""
    from kedro.framework.project import pipelines

    return cast("Mapping[str, Pipeline]", pipelines)
