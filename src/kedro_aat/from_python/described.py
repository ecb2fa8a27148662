"""Python objects as settings: classes, functions and instances become import paths with arguments."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kedro_aat.errors import AatError, ConfigurationError
from kedro_aat.imports import Imported
from kedro_aat.validated import Settings

Plain = Any  # what JSON can hold


def as_settings(value: Any, key: str) -> Plain:
    """A value as it would stand in YAML.

    Args:
        value: Plain data, settings, a class, a function, `functools.partial` of one of them, a tensor, an optimizer,
            or an object that its constructor's arguments make again, such as a loss or a metric; also inside mappings
            and lists.
        key: Name of the argument, for errors.

    Raises:
        ConfigurationError: There is no import path to the object, or its arguments cannot be read off it.
    """
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Settings):
        return value.model_dump(mode="json", by_alias=True, exclude_unset=True)
    if isinstance(value, Mapping):
        return {name: as_settings(part, f"{key}.{name}") for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [as_settings(part, f"{key}.{number}") for number, part in enumerate(value)]
    if hasattr(value, "tolist"):  # a tensor, or a number of NumPy's
        return value.tolist()
    if isinstance(value, functools.partial):
        if value.args:
            raise ConfigurationError(key, ["functools.partial may have keyword arguments only: name the others, too"])
        return {"class_path": public_path(value.func, key), "init_args": as_settings(value.keywords, key)}
    if inspect.isclass(value) or inspect.isroutine(value):
        return public_path(value, key)
    return _of_instance(value, key)


def public_path(target: Any, key: str) -> str:
    """The shortest import path of a class or function: `torch.nn.Linear`, not `torch.nn.modules.linear.Linear`.

    Raises:
        ConfigurationError: If it has none, like a lambda.
    """
    module, name = target.__module__, target.__qualname__
    if "<" in name:
        raise ConfigurationError(
            key, [f"{name} has no import path: define it with `def` or `class` outside of any function"]
        )
    if module == "__main__" and not hasattr(sys.modules[module], name):
        # Of a script that has sent it to this process, as Ray does; the name stands for the same thing here.
        setattr(sys.modules[module], name, target)
    first = name.partition(".")[0]
    parts = module.split(".")
    for number in range(1, len(parts)):
        shorter = ".".join(parts[:number])
        found = getattr(sys.modules.get(shorter), first, None)
        if found is not None and found is getattr(sys.modules[module], first, None):
            return f"{shorter}.{name}"
    return f"{module}.{name}"


def _of_instance(value: Any, key: str) -> Plain:
    """Class and arguments of an object; those that it is made of again are read off its attributes."""
    kind = type(value)
    path = public_path(kind, key)
    if isinstance(value, torch.optim.Optimizer):
        given = value.defaults
        wanted = {name: given[name] for name in _defaults(kind) if name in given}
        return _described(path, {name: part for name, part in wanted.items() if part != _defaults(kind)[name]}, key)
    arguments = {
        name: getattr(value, name)
        for name, default in _defaults(kind).items()
        if hasattr(value, name) and not _same(getattr(value, name), default)
    }
    try:
        found = _described(path, arguments, key)
        again = Imported.model_validate(found).make()
        is_same = _state(again) == _state(value)
    except AatError:
        raise
    except Exception:  # whatever a constructor raises that gets other arguments than it was written for
        is_same = False
    if not is_same:
        raise ConfigurationError(
            key,
            [
                f"the arguments that made this {kind.__name__} cannot be read off it: give "
                f"{{'class_path': '{path}', 'init_args': {{...}}}}, or functools.partial({kind.__name__}, ...)"
            ],
        )
    return found


def _described(path: str, arguments: Mapping[str, Any], key: str) -> Plain:
    return {"class_path": path, "init_args": as_settings(arguments, key)}


def _defaults(kind: type) -> dict[str, Any]:
    """Name -> default of each argument of a constructor; `Parameter.empty` for none."""
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(kind).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.kind not in variable}


def _same(value: Any, default: Any) -> bool:
    is_plain = not isinstance(value, Tensor) and not isinstance(default, Tensor)
    return bool(is_plain and type(value) is type(default) and value == default)


def _state(instance: Any) -> tuple[Any, ...]:
    """What two equal objects have in common: plain public attributes, and the tensors of a module."""
    plain = (str, int, float, bool, tuple, type(None))
    attributes = {name: part for name, part in vars(instance).items() if isinstance(part, plain) and name[0] != "_"}
    tensors = instance.state_dict() if isinstance(instance, nn.Module) else {}
    parts = dict(instance.named_children()) if isinstance(instance, nn.Module) else {}
    return (
        type(instance),
        attributes,
        {name: tensor.tolist() for name, tensor in tensors.items() if isinstance(tensor, Tensor)},
        {name: _state(part) for name, part in parts.items()},
    )
