"""What `kedro aat validate` does: checks without a run, the nodes that make what is missing, and the rehearsal."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from kedro.io import AbstractDataset, DataCatalog
from kedro.io.core import DatasetError

from kedro_aat.adoption.checks import (
    allow_absent,
    data_mistakes,
    look_up,
    parameter_mistakes,
    settings_of,
    withhold_test_data,
)
from kedro_aat.adoption.credentials import credentials_mistakes
from kedro_aat.adoption.environments import notes_on_environment
from kedro_aat.adoption.factories import notes_on_factories
from kedro_aat.adoption.makers import Makers, listed, make, makers_elsewhere, makers_of
from kedro_aat.adoption.object_stores import unreachable_stores
from kedro_aat.adoption.outputs import notes_on_memory, unreachable_outputs
from kedro_aat.adoption.rehearsals import rehearse, rehearsed_inputs
from kedro_aat.adoption.shared_files import notes_on_other_runs
from kedro_aat.errors import ConfigurationError
from kedro_aat.reading import describe

if TYPE_CHECKING:
    from kedro.config import AbstractConfigLoader
    from kedro.framework.context import KedroContext
    from kedro.pipeline import Pipeline


# What is done with a pipeline that has no mistakes: its nodes, the catalog, parameters by key, and the datasets that
# nodes of other pipelines make; yields lines for the user.
Trial = Callable[["Pipeline", DataCatalog, Callable[[str], Any], Collection[str]], Iterator[str]]


def validate_pipeline(
    pipeline: str,
    registered: Mapping[str, Pipeline],
    context: KedroContext,
    *,
    run_nodes: bool = True,
    trial: Trial = rehearse,
) -> Iterator[str]:
    """Checks a pipeline, and does everything that its run will do once, in small.

    The working directory must be the project, since paths in a catalog are relative to it.

    Args:
        pipeline: Name of the pipeline.
        registered: The project's pipelines.
        context: The project's context.
        run_nodes: Whether to run the nodes that make a missing model or data.
        trial: What to do with models and data instead of that.

    Yields:
        Lines for the user.

    Raises:
        ConfigurationError: Lists all mistakes.
        RehearsalError: Lists everything that fails, for all models.
        UserFunctionError: A node that makes what is missing fails.
    """
    nodes = registered[pipeline]
    notes: list[str] = []
    parameters: Mapping[str, Any] = {}
    elsewhere = Makers((), type(nodes)([]), (), ())
    try:
        parameters = load_config(context.config_loader, "parameters")
        mistakes = parameter_mistakes(nodes, parameters)
        notes += notes_on_environment(context.config_loader, settings_of(nodes), parameters)
    except ConfigurationError as error:  # a file cannot be read
        mistakes = error.mistakes
    value_of = partial(look_up, parameters)
    try:
        catalog = _make_catalog(context)
        withhold_test_data(nodes, catalog, value_of)
        allow_absent(nodes, catalog)
        # What follows would ask them once for each dataset. The catalog is another one, since Kedro's forgets an entry
        # that it fails to create, and its mistake is said below.
        if unreachable := unreachable_stores(_created(nodes, _make_catalog(context))):
            raise ConfigurationError("Object stores", list(dict.fromkeys(unreachable.values())))
        elsewhere = makers_elsewhere(pipeline, registered, catalog)
        mistakes += data_mistakes(nodes, catalog, elsewhere.names)
        mistakes += _missing_inputs(elsewhere)
        if not mistakes:  # asks stores, which may be far away
            mistakes += unreachable_outputs(nodes, catalog)
            notes += notes_on_memory(nodes, catalog)
        notes += notes_on_other_runs(pipeline, registered, catalog)
        notes += notes_on_factories(registered, catalog)
    except ConfigurationError as error:  # a file cannot be read, credentials are missing, a store does not answer
        mistakes += error.mistakes
    except (DatasetError, KeyError, ValueError) as error:  # an entry, or credentials
        mistakes.append(f"catalog: {error}")
    if elsewhere.names:
        notes.append(f"{elsewhere.what_they_do}: run `{elsewhere.command(pipeline)}`, not {pipeline} alone.")
    for note in notes:
        yield f"Note: {note}"
    if mistakes:
        raise ConfigurationError(f"Pipeline {pipeline}", mistakes)
    yield f"Pipeline {pipeline}: no mistakes in parameters, import paths and datasets."
    rehearses = trial is rehearse
    wanted = rehearsed_inputs(nodes, value_of, if_off=not rehearses)
    makers = makers_of(wanted, pipeline, registered, catalog)
    with tempfile.TemporaryDirectory(prefix="kedro-aat-") as folder:
        if makers.names and not makers.missing:
            if run_nodes:
                what = "the rehearsal" if rehearses else "the plan"
                yield (
                    f"Running {makers.in_words}, because {what} needs {listed(makers.names)}. What is written "
                    "goes to a temporary folder; --no-run-nodes leaves this out."
                )
                make(makers, catalog, _parameters_of(context), Path(folder))
            else:
                yield f"Not run: {makers.what_they_do}. `{makers.command(pipeline)}` runs all, and rehearses first."
        yield from trial(nodes, catalog, value_of, elsewhere.names)


def _parameters_of(context: KedroContext) -> Callable[[str], Any]:
    """Parameters as nodes get them: as models, where a node's type hint names one."""
    return lambda name: context.catalog.load(name)  # noqa: PLW0108 - the catalog is created only if a node needs one


def _missing_inputs(makers: Makers) -> list[str]:
    """What nodes of other pipelines need, and nobody makes."""
    because = f"without it, {makers.in_words} cannot make {listed(makers.names)}"
    return [
        f"{name}: does not exist; {because}; put the file there, or correct its catalog entry"
        for name in makers.missing
    ]


def load_config(loader: AbstractConfigLoader, kind: str) -> dict[str, Any]:
    """One kind of configuration, such as `parameters`; empty if the project has none.

    Raises:
        ConfigurationError: The files cannot be read, for example because of an interpolation that cannot be resolved.
    """
    from kedro.config import MissingConfigException

    try:
        return cast(dict[str, Any], loader[kind])
    except MissingConfigException:
        return {}
    except Exception as error:  # of Kedro, PyYAML and OmegaConf: syntax, duplicate keys, nesting, encoding, `${`
        file = _unreadable_file(loader, kind)  # Kedro names it only if the syntax is wrong
        where = "" if file is None or file.as_posix() in str(error) else f" (in {file.as_posix()})"
        raise ConfigurationError(kind, [f"{kind}: {describe(error)}{where}"]) from error


def _unreadable_file(loader: AbstractConfigLoader, kind: str) -> Path | None:
    """The first file of one kind of configuration that cannot be read by itself; None if all can."""
    from kedro.config import OmegaConfigLoader
    from omegaconf import OmegaConf

    if not isinstance(loader, OmegaConfigLoader):
        return None
    for env in dict.fromkeys((loader.base_env, loader.env or loader.default_run_env)):
        for pattern in loader.config_patterns.get(kind, []) if env else []:
            for file in sorted(Path(loader.conf_source, env).rglob(pattern)):
                if file.suffix not in (".yml", ".yaml", ".json") or not file.is_file():
                    continue
                try:
                    OmegaConf.load(file)
                except Exception:  # of PyYAML and OmegaConf
                    return file
    return None


def _created(nodes: Pipeline, catalog: DataCatalog) -> dict[str, AbstractDataset[Any, Any]]:
    """The datasets of a pipeline that a catalog can create."""
    datasets = {}
    for name in nodes.datasets():
        with suppress(DatasetError):
            if not name.startswith("params:") and (dataset := catalog.get(name)) is not None:
                datasets[name] = dataset
    return datasets


def _make_catalog(context: KedroContext) -> DataCatalog:
    """The catalog without parameters: a context fails to create its own if the parameters have mistakes."""
    catalog, credentials = (load_config(context.config_loader, kind) for kind in ("catalog", "credentials"))
    if mistakes := credentials_mistakes(catalog, credentials, context.config_loader):
        raise ConfigurationError("Catalog", mistakes)
    return DataCatalog.from_config(catalog, credentials)
