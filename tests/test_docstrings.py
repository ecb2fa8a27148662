"""Every public function with three or more arguments describes all of them in `Args:`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src"
MOST_WITHOUT_ARGS = 2  # arguments of a function that its first line can describe
_ENTRY = re.compile(r"^    \*{0,2}(\w+)(?: \(.*?\))?:", re.MULTILINE)  # "    name: what it is", or "    *args: ..."
_SECTION = re.compile(r"^Args:\n((?:(?: {4}.*)?\n?)+)", re.MULTILINE)

Function = ast.FunctionDef | ast.AsyncFunctionDef
RULE = {"tracer", "func", "args", "kwargs"}  # of the rules of `compression/filters`


def public_functions(node: ast.Module | ast.ClassDef, owner: str = "") -> Iterator[tuple[str, Function, str | None]]:
    """Name, syntax and docstring; the arguments of `__init__` are described in the docstring of its class.

    A method without a docstring overrides one that has it. What `--help` shows of a command is its docstring, and its
    options describe themselves.
    """
    for child in node.body:
        if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
            yield from public_functions(child, f"{owner}{child.name}.")
        elif isinstance(child, Function) and child.name == "__init__":
            yield f"{owner}__init__", child, ast.get_docstring(node)
        elif isinstance(child, Function) and not child.name.startswith("_"):
            is_command = any("click." in ast.unparse(decorator) for decorator in child.decorator_list)
            docstring = ast.get_docstring(child)
            if docstring is not None and not is_command:
                yield f"{owner}{child.name}", child, docstring


def arguments_of(function: Function) -> set[str]:
    """Names of all arguments but `self` and `cls`, and but those that start with an underscore, as unused ones do."""
    given = function.args
    every = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]
    return {argument.arg for argument in every if argument.arg not in ("self", "cls") and argument.arg[0] != "_"}


def mistakes_in(path: Path) -> Iterator[str]:
    for name, function, docstring in public_functions(ast.parse(path.read_text(encoding="utf-8"))):
        section = _SECTION.search(docstring or "")
        described = set(_ENTRY.findall(section[1])) if section else set()
        arguments = arguments_of(function)
        where = f"{path.relative_to(SOURCE)}:{function.lineno} {name}"
        if arguments == RULE and path.name.endswith("rules.py"):  # `Rule` describes them once for all
            continue
        if len(arguments) > MOST_WITHOUT_ARGS and (missing := arguments - described):
            yield f"{where}: Args lacks {', '.join(sorted(missing))}"
        if unknown := described - arguments:
            yield f"{where}: Args describes {', '.join(sorted(unknown))}, which is no argument"


def test_arguments_are_described() -> None:
    mistakes = [mistake for path in sorted(SOURCE.rglob("*.py")) for mistake in mistakes_in(path)]
    assert not mistakes, "\n".join(mistakes)
