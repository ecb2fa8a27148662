"""The source that objects depend on: their own, and what it mentions within the user's packages.

What is mentioned is looked up in the loaded modules, so that imports, registries and base classes lead to the objects
that will be called. Other packages count by name and version, and kedro-aat's own code does not count here.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import torch

from kedro_aat.training.fingerprints.source_text import (
    SourceText,
    bytecode,
    mentions,
    names_in,
    source_text,
    stored_by,
    unparsed,
)

Scope = Mapping[str, Any]  # what names stand for

_MAX_ITEMS = 1000  # of a container whose items are looked at, such as a registry of losses


@dataclass(frozen=True)
class Sources:
    """What objects depend on.

    Attributes:
        hashes: Hash of each of the user's functions, classes and constants by its import path. After `(...)` it is that
            of the values that a function has been given: numbers and texts in a closure or a partial.
        packages: Version of each other package whose objects are used, without what follows a plus sign.
    """

    hashes: dict[str, str]
    packages: dict[str, str]


def sources_of(objects: Iterable[Any]) -> Sources:
    """What functions, classes and instances depend on.

    Comments, docstrings and layout do not count, and neither do objects that nothing mentions by name.
    """
    walk = _Walk()
    for each in objects:
        walk.reach(each)
    versions = {name: _version(name) for name in walk.packages}
    return Sources(
        dict(sorted(walk.hashes.items())), {name: each for name, each in sorted(versions.items()) if each is not None}
    )


class _Walk:
    """Follows what is mentioned, from object to object."""

    def __init__(self) -> None:
        self.hashes: dict[str, str] = {}
        self.packages: set[str] = set()
        self._todo: list[Any] = []
        self._seen: dict[int, Any] = {}  # objects by id, kept alive so that no id is used twice
        self._resolved: set[tuple[str, str]] = set()

    def reach(self, thing: Any) -> None:
        self._todo.append(thing)
        while self._todo:
            each = self._todo.pop()
            if id(each) not in self._seen:
                self._seen[id(each)] = each
                self._visit(_unwrapped(each))

    def _visit(self, thing: Any) -> None:
        if _is_plain(thing) or isinstance(thing, ModuleType | torch.Tensor):
            return
        if isinstance(thing, functools.partial):
            self._todo += [thing.func, *thing.args, *thing.keywords.values()]
            values = [*thing.args, *sorted(thing.keywords.items())]
            self._values(_path(_unwrapped(thing.func)), [value for value in values if _is_plain(value)])
        elif inspect.ismethod(thing):
            self._todo += [thing.__func__, thing.__self__]
        elif isinstance(thing, FunctionType | type):
            self._define(thing)
        elif isinstance(thing, dict | list | tuple | set | frozenset):
            # A mapping with a `values` of its own may load what it names, which may fail.
            items = dict.values(thing) if isinstance(thing, dict) else thing
            if len(items) <= _MAX_ITEMS:
                self._todo += items
        else:
            self._todo.append(type(thing))

    def _define(self, thing: FunctionType | type) -> None:
        module = str(thing.__module__)
        if not self._is_of_user(module):
            return
        path, (text, nodes) = _path(thing), _definition(thing)
        if isinstance(thing, type):
            self._todo += thing.__bases__
            scope = _scope_of(thing)
            if not nodes:  # made by a call of `type`, or typed into a console
                self._todo += [value for value in vars(thing).values() if isinstance(value, FunctionType)]
                plain = [item for item in sorted(vars(thing).items()) if _is_plain(item[1])]
                self._hash(path, [repr([item for item in plain if not item[0].startswith("__")])])
                return
        else:
            cells = _cells(thing)
            scope = {**thing.__globals__, **cells}
            named = cells
            if not _has_file(module):  # its constants are found in no file
                mentioned = set(names_in(thing.__code__))
                named = {name: value for name, value in scope.items() if name in mentioned or name in cells}
            stored = set(stored_by(thing.__code__)) if named else set()
            self._values(
                path, sorted((name, value) for name, value in named.items() if name not in stored and _is_plain(value))
            )
            if not nodes:
                self._hash(path, [bytecode(thing.__code__)])
                self._follow(module, scope, names_in(thing.__code__))
                return
        # Statements such as `Loss.alpha = 2` change what they follow.
        more = text.statements.get(thing.__qualname__, []) if text else []
        self._hash(path, [unparsed(node) for node in (*nodes, *more)])
        for node in (*nodes, *more):
            self._mentioned_by(node, module, scope)

    def _mentioned_by(self, node: ast.AST, module: str, scope: Scope) -> None:
        names, imported = mentions(node)
        modules = {f" {name}": _module(level, name, module) for level, name in imported}
        loaded = {name: each for name, each in modules.items() if each is not None}
        self._follow(module, {**scope, **loaded}, (*loaded, *names))

    def _follow(self, module: str, scope: Scope, names: Iterable[str]) -> None:
        """Reaches what names stand for, also as attributes of the modules among them."""
        names = list(names)
        scopes = [(module, scope)]
        known = set()
        while scopes:
            owner, known_names = scopes.pop()
            for name in names:
                if name not in known_names:
                    continue
                value = known_names[name]
                if isinstance(value, ModuleType):
                    if value.__name__ not in known and self._is_of_user(value.__name__):
                        known.add(value.__name__)
                        scopes.append((value.__name__, vars(value)))
                    continue
                self._todo.append(value)
                if not isinstance(value, FunctionType | type):
                    self._assigned(owner, name)

    def _assigned(self, module: str, name: str) -> None:
        """Counts the statements that make a constant, in the module from which it comes."""
        if (module, name) in self._resolved or not self._is_of_user(module):
            return
        self._resolved.add((module, name))
        text = source_text(getattr(sys.modules.get(module), "__file__", None))
        if text is None:
            return
        if statements := text.statements.get(name):
            self._hash(f"{module}.{name}", [unparsed(node) for node in statements])
            for node in statements:
                self._mentioned_by(node, module, vars(sys.modules[module]))
            return
        origins = [text.imports[name]] if name in text.imports else [(*star, name) for star in text.stars]
        for level, origin, original in origins:
            found = _module(level, origin, module)
            if found is not None:
                self._assigned(found.__name__, original)

    def _is_of_user(self, module: str) -> bool:
        package = _foreign_package(module)
        if package:
            self.packages.add(package)
        return package is None

    def _hash(self, path: str, texts: list[str]) -> None:
        # Objects of one name, such as functions that a factory makes, count together.
        self.hashes[path] = _digest([self.hashes.get(path, ""), *texts])

    def _values(self, path: str, values: list[Any]) -> None:
        if values:
            self._hash(f"{path}(...)", [repr(values)])


def _foreign_package(module: str) -> str | None:
    """The installed package of a module; None for one of the user's, and "" for Python's library and kedro-aat."""
    top = module.partition(".")[0]
    if top == "kedro_aat" or top in sys.stdlib_module_names:
        return ""
    found = sys.modules.get(module) or sys.modules.get(top)
    file = getattr(found, "__file__", None) or next(iter(getattr(found, "__path__", ())), "")
    return top if {"site-packages", "dist-packages"} & {*Path(file).parts} else None


def _version(package: str) -> str | None:
    if not package:
        return None
    text = getattr(sys.modules.get(package), "__version__", None)
    if text is None:
        with suppress(importlib.metadata.PackageNotFoundError):
            text = importlib.metadata.version(package)
    return None if text is None else str(text).partition("+")[0]


def _unwrapped(thing: Any) -> Any:
    """The function that a decorator has wrapped; the decorator is mentioned in its source."""
    with suppress(Exception):  # it wraps itself, or has a `__getattr__` that raises something else
        return inspect.unwrap(thing) if callable(thing) and not isinstance(thing, type) else thing
    return thing


def _has_file(module: str) -> bool:
    return getattr(sys.modules.get(module), "__file__", None) is not None


def _path(thing: Any) -> str:
    return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', type(thing).__qualname__)}"


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | complex | str | bytes)


def _scope_of(thing: type) -> Scope:
    """What names stand for in a class: in its module, or in the function that makes it."""
    functions = [value for value in vars(thing).values() if isinstance(value, FunctionType)]
    scope = dict(vars(sys.modules[thing.__module__])) if thing.__module__ in sys.modules else {}
    for function in functions:
        scope |= function.__globals__ if not scope else {}
        scope |= _cells(function)
    return scope


def _cells(function: FunctionType) -> dict[str, Any]:
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # it has no value yet
            found[name] = cell.cell_contents
    return found


def _definition(thing: FunctionType | type) -> tuple[SourceText | None, list[ast.AST]]:
    """The nodes that define a function or a class, and the text that they are in; none if there is no source."""
    if isinstance(thing, FunctionType):
        code = thing.__code__
        text = source_text(code.co_filename)
        return text, [] if text is None else text.functions.get((code.co_name, code.co_firstlineno), [])
    files = [getattr(sys.modules.get(thing.__module__), "__file__", None)]
    files += [each.__code__.co_filename for each in vars(thing).values() if isinstance(each, FunctionType)]
    for file in files:
        text = source_text(file)
        if text is not None and (node := text.classes.get(thing.__qualname__)) is not None:
            return text, [node]
    return None, []


def _module(level: int, name: str, importer: str) -> ModuleType | None:
    """The user's module of that name, which is loaded if it is not; None if it is not the user's."""
    with suppress(Exception):  # what cannot be imported is an error when it is used
        if level:
            package = getattr(sys.modules.get(importer), "__package__", None)
            name = importlib.util.resolve_name("." * level + name, package)
        if name not in sys.modules:
            top = name.partition(".")[0]
            spec = importlib.util.find_spec(top)
            is_installed = {"site-packages", "dist-packages"} & {*Path(getattr(spec, "origin", None) or "").parts}
            if is_installed or top in sys.stdlib_module_names:
                return None
        return importlib.import_module(name)
    return None


def _digest(texts: Iterable[str]) -> str:
    return hashlib.blake2b("\n".join(texts).encode(errors="surrogatepass"), digest_size=8).hexdigest()
