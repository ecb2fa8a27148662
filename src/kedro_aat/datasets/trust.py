"""Which modules a saved file may have built: what its catalog entry says, never what the file says.

A recipe names a class by its import path, and a model folder may come from anywhere. So the name is checked before
anything is imported, and the object that it stands for before it is called.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from kedro_aat.datasets.promises import Stated
from kedro_aat.errors import ConfigurationError, ModelError
from kedro_aat.imports import Imported

_ALWAYS = ("torch.nn", "kedro_aat")
_IMPORTED = "kedro_aat.datasets.imported.ImportedModelDataset"
_SAVED = ("kedro_aat.datasets.model.ModelDataset", "kedro_aat.datasets.model.ControllerDataset")
_KEYS_THAT_NAME_CODE = ("class_path", "_target_")
_PLACEHOLDER = re.compile(r"\{.*?\}")

Trusted = Sequence[str | Mapping[str, Any]]


class Trust:
    """What the recipe of one catalog entry may name.

    Without arguments these are the module classes of `torch.nn`, `kedro_aat` and the project's own package, and the
    class methods of these classes.

    Args:
        class_path: The only class, class method or function that may be built; None for what `trusted` allows.
        trusted: Packages and modules whose module classes, class methods and functions may be built, too; and import
            paths of single ones. A mapping of `class_path` and `init_args` is what another entry builds: a function
            among these may be called with those arguments only.
        recipe: What the entry itself builds, like a mapping in `trusted`.

    Raises:
        ConfigurationError: `trusted` is not a list of names.
    """

    def __init__(
        self, class_path: str | None = None, trusted: Trusted | None = None, recipe: Imported | None = None
    ) -> None:
        if isinstance(trusted, str) or not isinstance(trusted, Sequence | None):
            raise ConfigurationError("trusted", [f"must be a list, such as [torchvision], but got {trusted!r}"])
        self._class_path = class_path
        self._names = {each for each in trusted or () if isinstance(each, str)}
        self._calls = [Imported.model_validate(each) for each in trusted or () if not isinstance(each, str)]
        if recipe is not None:
            self._calls.append(recipe)

    def require(self, recipe: Imported) -> Stated:
        """Checks what a recipe names: first the name, then the object that is imported.

        Returns:
            How much of it the catalog states itself.

        Raises:
            ModelError: It is not trusted; the message has the line for the catalog entry.
            ConfigurationError: There is no such class or function.
        """
        path = recipe.class_path
        parts = path.split(".")
        if not all(part.isidentifier() for part in parts):
            raise ModelError(f"The recipe names {path[:100]!r}, which is not an import path.")
        if self._class_path is not None and path != self._class_path:
            raise _untrusted(path, f"its catalog entry allows only {self._class_path}. Nothing was imported.")
        calls = [call for call in self._calls if call.class_path == path]
        if any(_same_arguments(call, recipe) for call in calls):
            return "call"
        if path in {self._class_path, *self._names}:
            return "name"
        packages = {*_ALWAYS, *self._names, *_project_package()}
        # `package.__main__` is a script, and no class is behind `Class.__init__`.
        if not calls and (not _is_below(path, packages) or any(part.startswith("__") for part in parts)):
            raise _untrusted(path, f"its catalog entry trusts only {_listed(packages)}. Nothing was imported.")
        target = recipe.load()
        if not (calls and inspect.isclass(target)) and not _is_own(target, packages, functions_in=self._names):
            functions = f", or a function of {_listed(self._names)}" if self._names else ""
            raise _untrusted(
                path,
                f"that is neither a module class that {_listed(packages)} define, nor a class method of one{functions}."
                " Nothing was built.",
            )
        if key := _key_that_names_code(recipe.init_args):
            raise _untrusted(path, f"its arguments name something to import, under {key!r}. Nothing was built.")
        return "package"


def share_trust(catalog: Mapping[str, Any]) -> dict[str, Any]:
    """Makes the entries of saved models and controllers trust what the same catalog's entries name themselves.

    What an `ImportedModelDataset` builds, and `recipe` or `class_path` of a `ModelDataset` or `ControllerDataset`,
    stand in the user's own configuration. So a model of another library has to be named only once. An entry with a
    `class_path` of its own stays as it is.

    Args:
        catalog: The catalog's configuration, with its dataset factories; not modified.

    Returns:
        The configuration, with more under `trusted`.
    """
    named = [each for entry in catalog.values() for part in _parts(entry) for each in _named_in(part)]
    return {
        # Kedro refuses an entry with a placeholder that is not in its name.
        name: _sharing(entry, [each for each in named if _placeholders(each) <= _placeholders(name)])
        for name, entry in catalog.items()
    }


def _parts(entry: Any) -> Iterator[Mapping[str, Any]]:
    """An entry, and the entry inside, as in a `CachedDataset`."""
    if isinstance(entry, Mapping):
        yield entry
        yield from _parts(entry.get("dataset"))


def _named_in(entry: Mapping[str, Any]) -> list[str | dict[str, Any]]:
    """What an entry builds by itself, and what it lets a file build."""
    kind = entry.get("type")
    built = entry if kind == _IMPORTED else entry.get("recipe") if kind in _SAVED else None
    named: list[str | dict[str, Any]] = []
    if isinstance(built, Mapping) and isinstance(built.get("class_path"), str):
        named.append({"class_path": built["class_path"], "init_args": built.get("init_args") or {}})
    if kind in _SAVED and isinstance(entry.get("class_path"), str):
        named.append(entry["class_path"])
    return named


def _placeholders(value: Any) -> set[str]:
    """The placeholders of a dataset factory, such as `{name}`, in all texts of a part of the configuration."""
    if isinstance(value, Mapping | list):
        parts = value.values() if isinstance(value, Mapping) else value
        return {found for part in parts for found in _placeholders(part)}
    return set(_PLACEHOLDER.findall(value)) if isinstance(value, str) else set()


def _sharing(entry: Any, named: list[str | dict[str, Any]]) -> Any:
    if not isinstance(entry, Mapping):
        return entry
    if entry.get("type") in _SAVED and not entry.get("class_path") and isinstance(entry.get("trusted", []), list):
        return {**entry, "trusted": [*entry.get("trusted", []), *named]}
    return {**entry, "dataset": _sharing(entry["dataset"], named)} if "dataset" in entry else entry


def _project_package() -> list[str]:
    """The package of the Kedro project in which this process works, if there is one."""
    # Importing this module would set up Kedro's logging, also in a script without a project.
    name = getattr(sys.modules.get("kedro.framework.project"), "PACKAGE_NAME", None)
    return [] if name is None else [name]


def _is_below(path: str, packages: Iterable[str]) -> bool:
    return any(f"{path}.".startswith(f"{package}.") for package in packages)


def _is_own(target: Any, packages: Iterable[str], *, functions_in: Iterable[str]) -> bool:
    """Whether an object is a module class, or a class method of one, that these packages define, or such a function.

    What they only import or inherit is somebody else's: a class method inherited from Lightning unpickles a file.
    """
    from torch import nn

    owner = target.__self__ if inspect.ismethod(target) else target
    if inspect.isclass(owner):
        return issubclass(owner, nn.Module) and all(_is_below(part.__module__, packages) for part in (owner, target))
    return inspect.isfunction(target) and _is_below(target.__module__, functions_in)


def _same_arguments(call: Imported, recipe: Imported) -> bool:
    return bool(call.model_dump(mode="json")["init_args"] == recipe.model_dump(mode="json")["init_args"])


def _key_that_names_code(value: Any) -> str | None:
    """The key, at any depth, by which Lightning, jsonargparse or Hydra import and call what a configuration names."""
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    own = next((key for key in _KEYS_THAT_NAME_CODE if isinstance(value, Mapping) and key in value), None)
    return own or next(filter(None, map(_key_that_names_code, parts)), None)


def _listed(packages: Iterable[str]) -> str:
    return ", ".join(sorted(packages))


def _untrusted(path: str, reason: str) -> ModelError:
    return ModelError(
        f"The recipe names {path}, but {reason} If you know {path} and where the file comes from, add this line to the "
        f"catalog entry:\n  class_path: {path}"
    )
