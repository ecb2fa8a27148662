"""Finds the class of a model in a project, by its name or its import path."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kedro_aat.errors import ConfigurationError
from kedro_aat.imports import Imported


def find_model(named: str, package: Path) -> str:
    """The import path of a class.

    Args:
        named: Its import path, or its name alone, which is then looked for in the project's package.
        package: Folder of the project's package.

    Raises:
        ConfigurationError: There is none of that name, or several.
    """
    if "." in named:
        return named
    found = [f"{module}.{named}" for module, names in classes_in(package).items() if named in names]
    if len(found) == 1:
        return found[0]
    known = sorted({name for names in classes_in(package).values() for name in names})
    what = f"{', '.join(found)} have that name" if found else f"no class {named} in {package.name}"
    among = "" if found else f", which has {', '.join(known[:20]) or 'no classes'}"
    raise ConfigurationError("--model", [f"{what}{among}: give the import path, such as {package.name}.models.MyModel"])


def classes_in(package: Path) -> dict[str, list[str]]:
    """The names of the classes in each module of a package, which is read and not imported."""
    classes: dict[str, list[str]] = {}
    for path in sorted(package.rglob("*.py")):
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, ValueError, OSError):
            continue
        parts = path.relative_to(package.parent).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if names := [node.name for node in tree.body if isinstance(node, ast.ClassDef)]:
            classes[module] = names
    return classes


def model_mistakes(class_path: str, init_args: Mapping[str, Any]) -> list[str]:
    """Lists what is wrong with a model's class and arguments, by importing it."""
    imported = Imported(class_path=class_path, init_args=dict(init_args))
    mistakes = imported.lookup_mistakes("--model")
    renamed = [mistake.replace("--model.class_path", "--model") for mistake in mistakes]
    renamed = [mistake.replace("--model.init_args.", "--init-args: ") for mistake in renamed]
    if not mistakes and (missing := [name for name in required_arguments(class_path) if name not in init_args]):
        renamed.append(f"--init-args: {class_path} needs {', '.join(missing)}, such as '{{ {missing[0]}: ... }}'")
    return renamed


def required_arguments(class_path: str) -> list[str]:
    """Names of the arguments without which a class cannot be called."""
    try:
        parameters = inspect.signature(Imported(class_path=class_path).load()).parameters.values()
    except (TypeError, ValueError):  # a builtin has no signature
        return []
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [each.name for each in parameters if each.default is each.empty and each.kind not in variable]
