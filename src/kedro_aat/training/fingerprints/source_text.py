"""What a file or a cell of a notebook defines, and what its code mentions."""

from __future__ import annotations

import ast
import dis
import functools
import linecache
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import CodeType
from typing import Any

_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_STORES = {"STORE_DEREF", "STORE_GLOBAL", "DELETE_DEREF", "DELETE_GLOBAL"}


@dataclass
class SourceText:
    """What a file or a cell of a notebook defines; docstrings are removed.

    Attributes:
        classes: Classes by their qualified names.
        functions: Functions and lambdas by name and first line.
        statements: Other statements at the top level, by the names that they assign, or whose methods they call.
        imports: Module and name of what is imported at the top level, by the name that it gets.
        stars: Modules from which everything is imported.
    """

    classes: dict[str, ast.ClassDef] = field(default_factory=dict)
    functions: dict[tuple[str, int], list[ast.AST]] = field(default_factory=lambda: defaultdict(list))
    statements: dict[str, list[ast.stmt]] = field(default_factory=lambda: defaultdict(list))
    imports: dict[str, tuple[int, str, str]] = field(default_factory=dict)
    stars: list[tuple[int, str]] = field(default_factory=list)


def source_text(file: str | None) -> SourceText | None:
    """What a file or cell defines, as it is now; None if it is no Python, and nothing if it cannot be read."""
    if file is None:
        return None
    try:
        stat = os.stat(file)
    except OSError:  # a cell of a notebook
        return _parsed("".join(linecache.getlines(file)))
    return _read(file, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=1024)
def _read(file: str, size: int, time: int) -> SourceText | None:
    linecache.checkcache(file)
    return _parsed("".join(linecache.getlines(file)))


@functools.lru_cache(maxsize=1024)
def _parsed(source: str) -> SourceText | None:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):  # lines of a console, or of a language on top of Python
        return None
    text = SourceText()
    _index(tree, "", text)
    for node in tree.body:
        if not isinstance(node, _DEFINITIONS):
            for name in _assigned_by(node):
                text.statements[name].append(node)
            for each in ast.walk(node):
                if isinstance(each, ast.ImportFrom):
                    for alias in each.names:
                        text.imports[alias.asname or alias.name] = (each.level, each.module or "", alias.name)
                        if alias.name == "*":
                            text.stars.append((each.level, each.module or ""))
    return text


def _index(parent: ast.AST, prefix: str, text: SourceText) -> None:
    for node in ast.iter_child_nodes(parent):
        inner = prefix
        if isinstance(node, _DEFINITIONS):
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:] or [ast.Pass()]
            if isinstance(node, ast.ClassDef):
                text.classes[prefix + node.name] = node
                inner = f"{prefix}{node.name}."
            else:
                first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
                text.functions[node.name, first].append(node)
                inner = f"{prefix}{node.name}.<locals>."
        elif isinstance(node, ast.Lambda):
            text.functions["<lambda>", node.lineno].append(node)
            inner = f"{prefix}<lambda>.<locals>."
        _index(node, inner, text)


def _assigned_by(statement: ast.stmt) -> set[str]:
    """The names that a statement assigns, in whole or in part, or whose methods it calls."""
    found = set()
    for node in ast.walk(statement):
        if isinstance(node, ast.Name | ast.Attribute | ast.Subscript) and not isinstance(node.ctx, ast.Load):
            found.add(_root(node))
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            found.add(_root(node.value.func))
    return found - {""}


def _root(node: ast.AST) -> str:
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


@functools.lru_cache(maxsize=8192)
def unparsed(node: ast.AST) -> str:
    """The source of a node in one layout, without comments."""
    return ast.unparse(node)


@functools.lru_cache(maxsize=8192)
def mentions(node: ast.AST) -> tuple[tuple[str, ...], tuple[tuple[int, str], ...]]:
    """Names, attributes and texts that may be names in a node, and the modules that it imports, with their levels."""
    names: dict[str, None] = {}
    imported = []
    for each in ast.walk(node):
        match each:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.Constant(value=str(name)):
                names[name] = None
            case ast.Import(names=aliases):
                imported += [(0, alias.name) for alias in aliases]
            case ast.ImportFrom(module=module, names=aliases, level=level):
                imported.append((level, module or ""))
                if module or level:  # what is imported from a package may be one of its modules
                    imported += [(level, f"{module}.{alias.name}" if module else alias.name) for alias in aliases]
                names |= dict.fromkeys(alias.name for alias in aliases)
    return tuple(names), tuple(imported)


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def names_in(code: CodeType) -> list[str]:
    """Names that code mentions, of globals, attributes and variables of the functions around it."""
    return [name for each in _codes(code) for name in (*each.co_names, *each.co_freevars)]


def stored_by(code: CodeType) -> list[str]:
    """Names outside of a function that it changes while it runs."""
    return [
        str(instruction.argval)
        for each in _codes(code)
        for instruction in dis.get_instructions(each)
        if instruction.opname in _STORES
    ]


def bytecode(code: CodeType) -> str:
    """What code does, for functions without source; the same in every process of the same Python."""

    def text(constant: Any) -> str:
        if isinstance(constant, frozenset):  # in another order in each process
            return str(sorted(map(repr, constant)))
        return repr(constant)

    return repr(
        [
            (each.co_code, each.co_names, [text(value) for value in each.co_consts if not isinstance(value, CodeType)])
            for each in _codes(code)
        ]
    )
