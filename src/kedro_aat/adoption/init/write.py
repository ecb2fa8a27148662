"""Writes what `kedro aat init` writes: two files of configuration, the pipeline's module, and the dependency."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from kedro_aat.adoption import templates
from kedro_aat.adoption.factories import FILE, covered_by, factories, others_in_namespaces, without_results
from kedro_aat.adoption.init.dependency import add_dependency
from kedro_aat.adoption.init.names import Taken, is_ours, taken_names, top_level
from kedro_aat.adoption.init.tasks import Choices
from kedro_aat.adoption.init.texts import catalog_with, parameters_with, with_weights, without_entries
from kedro_aat.errors import ConfigurationError

if TYPE_CHECKING:
    from kedro.pipeline import Pipeline

PARAMETERS, CATALOG = templates.TEMPLATES
_WAYS_OUT = "use these with --use-existing, which writes no others; or give ours a prefix with --namespace NAME"


@dataclass(frozen=True)
class Place:
    """Where in a project something is written.

    Attributes:
        project: Root of the project.
        package: Folder of the project's package.
        conf: Folder of configuration.
        env: Environment whose folder is written to.
        namespace: Prefix of datasets and parameters; None for none.
    """

    project: Path
    package: Path
    conf: Path
    env: str
    namespace: str | None

    @property
    def pipeline(self) -> str:
        """Name of the pipeline in the registry."""
        return templates.pipeline_name(self.namespace)

    @property
    def registry(self) -> Path:
        """The module with the project's pipelines."""
        return self.package / "pipeline_registry.py"

    @property
    def module(self) -> Path | None:
        """The module at the place where Kedro finds it; None if the registry is written by hand."""
        if "find_pipelines" not in self.registry.read_text(encoding="utf-8"):
            return None
        return self.package / "pipelines" / self.pipeline / "__init__.py"

    def file(self, template: str) -> Path:
        """The file that a template becomes; `FILE` is the one with the factories for all namespaces."""
        folder = self.conf / self.env
        return folder / FILE if template == FILE else templates.written_to(template, folder, self.namespace)

    def shown(self, path: Path) -> str:
        """A path relative to the project."""
        return str(path.relative_to(self.project)) if path.is_relative_to(self.project) else str(path)


def write(
    place: Place,
    choices: Choices,
    registered: Mapping[str, Pipeline],
    confirm: Callable[[str], bool],
    *,
    force: bool = False,
) -> Iterator[str]:
    """Writes everything, or nothing.

    Args:
        place: Where.
        choices: What the user has chosen.
        registered: The project's pipelines.
        confirm: Asks whether what the project has of the same names is used in place of ours; answers for the user
            where nobody can be asked.
        force: Whether to overwrite files that exist.

    Yields:
        Lines for the user: what was written, and what is left to do.

    Raises:
        ConfigurationError: The choices do not fit together, files exist, or names are taken; nothing is written then.
    """
    choices.check()
    parameters = parameters_with(templates.template(PARAMETERS), choices)
    catalog, shared = catalog_with(templates.template(CATALOG), choices), place.file(FILE)
    if place.namespace is not None:
        shared_text = _factories(place, registered)
        covered = covered_by(shared_text) - _explicit(place)
        catalog = templates.in_namespace(CATALOG, without_results(catalog, covered), place.namespace)
    texts = {
        place.file(PARAMETERS): templates.in_namespace(PARAMETERS, parameters, place.namespace),
        place.file(CATALOG): with_weights(catalog, choices.weights),
    }
    if place.namespace is not None and not shared.exists():
        texts[shared] = shared_text
    if place.module is not None:
        texts[place.module] = templates.pipeline_module(place.namespace)
    taken = _taken(place, texts, registered)
    if taken:
        if not confirm("; ".join(taken.in_words())):
            raise ConfigurationError(
                "Nothing was written",
                [*(f"{line} already" for line in taken.in_words()), _WAYS_OUT],
            )
        _leave_out(taken, texts, place)
    templates.write_new(texts, force=force)
    for path in texts:
        yield f"Wrote {place.shown(path)}"
    yield from dependency_lines(place, choices)
    if place.module is None:
        import_line, pipeline_line = templates.registry_lines(place.namespace)
        yield (
            f"Add two lines to {place.shown(place.registry)}, the second inside register_pipelines:\n\n"
            f"{import_line}\n    {pipeline_line}\n"
        )


def dependency_lines(place: Place, choices: Choices) -> Iterator[str]:
    """Adds the dependency, and says so."""
    changed, left = add_dependency(place.project, ("images",) if choices.data == "images" else ())
    if changed:
        yield f"Added kedro-aat to {' and '.join(map(place.shown, changed))}"
    yield from left


def _factories(place: Place, registered: Mapping[str, Pipeline]) -> str:
    """The text of the file with the factories: what is there, or one that takes no dataset of the project."""
    if place.file(FILE).exists():
        return place.file(FILE).read_text(encoding="utf-8")
    others = others_in_namespaces(registered)
    have_entries = taken_names(place.conf, ["base", place.env], [], others, []).entries
    return factories({result for name, result in others.items() if name not in have_entries})


def _explicit(place: Place) -> set[str]:
    """The results with entries in the namespace's own file in `base`, which go before factories in any environment."""
    base = replace(place, env="base")
    if place == base:
        return set()
    return {name.rpartition(".")[2] for name in top_level(base.file(CATALOG))}


def _taken(place: Place, texts: Mapping[Path, str], registered: Mapping[str, Pipeline]) -> Taken:
    from kedro.framework.project import settings

    run_env = (settings.CONFIG_LOADER_ARGS or {}).get("default_run_env", "local")
    envs = ["base", place.env, run_env]
    entries, parameters = (_keys(texts[place.file(name)]) for name in (CATALOG, PARAMETERS))
    entries += [] if place.namespace is None else _keys(templates.template(CATALOG, place.namespace))
    entries += _keys(texts.get(place.file(FILE), "{}"))
    # Files of ours in another environment are there to be overridden.
    places = [replace(place, env=env) for env in envs]
    own = [path for each in places for path in (each.file(CATALOG), each.file(PARAMETERS), each.file(FILE))]
    found = taken_names(place.conf, envs, own, entries, parameters)
    other = registered.get(place.pipeline)
    return replace(found, pipeline=place.pipeline) if other is not None and not is_ours(other) else found


def _leave_out(taken: Taken, texts: dict[Path, str], place: Place) -> None:
    for catalog in (place.file(CATALOG), place.file(FILE)):
        if catalog in texts:
            texts[catalog] = without_entries(texts[catalog], taken.entries)
    if taken.parameters:
        del texts[place.file(PARAMETERS)]
    if taken.pipeline and place.module is not None:
        texts.pop(place.module, None)


def _keys(text: str) -> list[str]:
    loaded: Any = yaml.safe_load(text)
    return [str(key) for key in loaded]
