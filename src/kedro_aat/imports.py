"""Objects named by an import path, which are imported only when they are needed."""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_serializer

from kedro_aat.errors import ConfigurationError
from kedro_aat.reading import describe
from kedro_aat.validated import Settings, closest

_MAX_NAMES = 32  # in an import path
_MAX_SHOWN = 60  # characters of a longer one


# Neither pydantic's ImportString nor jsonargparse can replace this, and neither suggests a likely name. ImportString
# imports while the settings are read, which loads torch, and saves `torch.optim.SGD` as `torch.optim.sgd.SGD`, which
# would rename runs. jsonargparse would be another dependency, to read the same two keys.
class Imported(Settings):
    """A class or function by its import path, with the arguments of a call.

    Attributes:
        class_path: Import path, for example `torch.optim.SGD`.
        init_args: Keyword arguments.
    """

    class_path: str
    init_args: dict[str, Any] = Field(default_factory=dict)

    @field_serializer("init_args", when_used="json")
    def _as_json(self, arguments: dict[str, Any]) -> dict[str, Any]:
        return {name: _without_arrays(value) for name, value in arguments.items()}

    def load(self) -> Any:
        """Imports the object that `class_path` names."""
        return import_path(self.class_path)

    def build(self, *args: Any, **more: Any) -> Any:
        """Calls the object with `args`, `init_args` and `more`, and returns the result."""
        return self.load()(*args, **self.init_args, **more)

    def make(self, *args: Any, **known: Any) -> Any:
        """Calls the object as `build` does, with arguments that may themselves name what is to be built.

        A mapping with `class_path` and perhaps `init_args`, anywhere in the arguments, becomes what it names. A list
        of numbers becomes a tensor, and the import path of a function this function, where an annotation asks for it.
        Never for what a file names: this imports whatever stands there.

        Args:
            *args: Positional arguments.
            **known: Arguments for whatever has a parameter of that name, the object itself or one of its arguments.
        """
        target = self.load()
        parameters = _parameters(target)
        given = {name: _made(value, parameters.get(name), known) for name, value in self.init_args.items()}
        return target(*args, **{name: known[name] for name in known if name in parameters} | given)

    def make_function(self) -> Any:
        """Returns what is called with more arguments later: a function that needs them, or what `make` returns.

        A function keeps the arguments of `init_args`. One that needs no others is called, as a class is: it makes the
        function.
        """
        target = self.load()
        if not inspect.isroutine(target):
            return self.make()
        try:
            inspect.signature(target).bind(**self.init_args)
        except (TypeError, ValueError):  # it needs more, or is a builtin, which has no signature
            return functools.partial(target, **self.init_args) if self.init_args else target
        return self.make()

    def has_parameter(self, name: str) -> bool:
        """Whether the object has a parameter of that name."""
        return name in _parameters(self.load())

    def annotates_tensor(self, name: str) -> bool:
        """Whether `make` gives a tensor for a list of numbers under that name."""
        return _kinds(_parameters(self.load()).get(name)) == {"Tensor"}

    def lookup_mistakes(self, key: str, *, nested: bool = False) -> list[str]:
        """Lists mistakes in the path and in the names of the arguments.

        Args:
            key: Key to report them under.
            nested: Whether to import what `make` would build of the arguments, too; never for what a file names.
        """
        try:
            target = self.load()
        except ConfigurationError as error:
            return [f"{key}.class_path: {mistake}" for mistake in error.mistakes]
        if not callable(target):
            return [f"{key}.class_path: must name a class or a function, but {self.class_path} is {target!r:.60}"]
        if _is_method_of_instances(self.class_path, target):
            return [
                f"{key}.class_path: {self.class_path} is a method of instances, of which there is none yet: make it a "
                "class method (@classmethod), or name the class"
            ]
        if nested and (inside := _nested_mistakes(self.init_args, f"{key}.init_args")):
            return inside
        try:
            signature = inspect.signature(target)
        except (TypeError, ValueError):  # a builtin has no signature to check against
            return []
        parameters = signature.parameters
        if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
            return []
        return [
            f"{key}.init_args.{name}: {self.class_path} takes no such argument.{closest(name, list(parameters))}"
            for name in self.init_args
            if name not in parameters
        ]


def import_path(path: str) -> Any:
    """Imports the object that a dotted path names: an object of a module, or of a class in a module.

    Raises:
        ConfigurationError: If there is no such module or name; the message suggests the likely name.
    """
    if (num_names := path.count(".") + 1) > _MAX_NAMES:  # Python imports a package within the import of its modules
        shown = f"{path[:_MAX_SHOWN]}..."
        raise ConfigurationError(shown, [f"'{shown}' has {num_names} names, but may have at most {_MAX_NAMES}"])
    owner_path, _, name = path.rpartition(".")
    if not owner_path:
        rule = "must be a dotted import path such as torch.optim.SGD"
        raise ConfigurationError(path, [f"{rule}, but got '{path}'"])
    try:
        owner: Any = import_module(owner_path)
    except ModuleNotFoundError as error:
        # A class method is named by the path of its class, which is no module.
        # Not if an import inside the module fails.
        is_path = f"{owner_path}.".startswith(f"{error.name}.") and "." in owner_path
        owner = import_path(owner_path) if is_path else None
        if not inspect.isclass(owner):
            raise ConfigurationError(path, [f"'{path}' cannot be imported: {error}"]) from None
    except Exception as error:  # from the module's own code, or the path has an empty part
        raise ConfigurationError(path, [f"'{path}' cannot be imported: {describe(error)}"]) from error
    if not hasattr(owner, name):
        known = [known for known in dir(owner) if not known.startswith("_")]
        raise ConfigurationError(path, [f"'{owner_path}' has no '{name}'.{closest(name, known)}"])
    return getattr(owner, name)


def _parameters(target: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(target).parameters
    except (TypeError, ValueError):  # a builtin has none
        return {}


def _made(value: Any, parameter: inspect.Parameter | None, known: Mapping[str, Any]) -> Any:
    """What an argument in YAML means."""
    if isinstance(value, Mapping):
        if isinstance(value.get("class_path"), str) and not {*value} - {"class_path", "init_args"}:
            return Imported(class_path=value["class_path"], init_args=value.get("init_args") or {}).make(**known)
        return {key: _made(part, None, known) for key, part in value.items()}
    kinds = _kinds(parameter)
    if kinds == {"Tensor"} and _are_numbers(value):
        torch = import_module("torch")  # which is loaded, since a class asks for its tensors
        return torch.tensor(value, dtype=torch.get_default_dtype())
    if isinstance(value, list | tuple):
        return [_made(part, parameter, known) for part in value]
    return import_path(value) if isinstance(value, str) and "Callable" in kinds and "." in value else value


def _kinds(parameter: inspect.Parameter | None) -> set[str]:
    """The names of the types that a parameter is annotated with, without None."""
    wanted = "" if parameter is None or parameter.annotation is parameter.empty else str(parameter.annotation)
    kinds = {kind.rpartition(".")[2] for kind in re.findall(r"[\w.]+", wanted)}
    return kinds - {"class", "Optional", "Union", "None", "NoneType"}


def _are_numbers(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_are_numbers, value))
    return isinstance(value, int | float) and not isinstance(value, bool)


def _nested(value: Any) -> Imported | None:
    """What a mapping of `class_path` and `init_args` stands for; None for any other value."""
    is_nested = isinstance(value, dict) and "class_path" in value and value.keys() <= {"class_path", "init_args"}
    return Imported.model_validate(value) if is_nested else None


def _nested_mistakes(value: Any, key: str) -> list[str]:
    if (part := _nested(value)) is not None:
        return part.lookup_mistakes(key, nested=True)
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return [mistake for name, each in parts for mistake in _nested_mistakes(each, f"{key}.{name}")]


def _is_method_of_instances(path: str, target: Any) -> bool:
    owner_path, _, name = path.rpartition(".")
    if not inspect.isfunction(target) or owner_path in sys.modules:
        return False
    return not isinstance(inspect.getattr_static(import_path(owner_path), name), staticmethod)


def _without_arrays(value: Any) -> Any:
    """Plain data with Python's numbers in place of NumPy's and torch's, which Python code may put into settings."""
    if isinstance(value, dict):
        return {key: _without_arrays(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_arrays(part) for part in value]
    return value.tolist() if hasattr(value, "tolist") else value


def _from_path(value: Any) -> Any:
    return {"class_path": value} if isinstance(value, str) else value


# A string is read as an import path without arguments.
ImportedOrPath = Annotated[Imported, BeforeValidator(_from_path)]
