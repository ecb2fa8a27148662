"""Adds kedro-aat to the requirements that a project declares."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

_NAME = "kedro-aat"
_LIST = re.compile(r"(?m)^dependencies\s*=\s*\[")


def add_dependency(project: Path, extras: tuple[str, ...] = ()) -> tuple[list[Path], list[str]]:
    """Adds a requirement to `requirements.txt` and to `dependencies` in `pyproject.toml`, where the project has them.

    Args:
        project: Root of the project.
        extras: Extras of the package, such as `images`.

    Returns:
        The files that were changed, and what is left to the user, in words.
    """
    requirement = _NAME + (f"[{','.join(extras)}]" if extras else "")
    changed: list[Path] = []
    left: list[str] = []
    plain, declared = project / "requirements.txt", project / "pyproject.toml"
    if plain.is_file() and not any(map(_is_ours, (text := plain.read_text(encoding="utf-8")).splitlines())):
        ending = "" if not text or text.endswith("\n") else "\n"
        plain.write_text(f"{text}{ending}{requirement}\n", encoding="utf-8")
        changed.append(plain)
    text = declared.read_text(encoding="utf-8") if declared.is_file() else ""
    if (names := _dependencies(text)) is not None:
        new = text if any(map(_is_ours, names)) else _with(text, requirement)
        if new is None:
            left.append(f'Add "{requirement}" to the dependencies in {declared.name}.')
        elif new != text:
            declared.write_text(new, encoding="utf-8")
            changed.append(declared)
    elif not plain.is_file() and _NAME not in text:  # Poetry has a table of its own
        left.append(f"Add {requirement} to the requirements of your project.")
    return changed, left


def _is_ours(requirement: str) -> bool:
    name = re.match(r"\s*([A-Za-z0-9._-]+)", requirement)
    return name is not None and re.sub(r"[-_.]+", "-", name[1]).lower() == _NAME


def _dependencies(text: str) -> list[str] | None:
    """The static dependencies of a project; None if it has none."""
    try:
        found: Any = tomllib.loads(text).get("project", {}).get("dependencies")
    except tomllib.TOMLDecodeError:
        return None
    return found if isinstance(found, list) else None


def _with(text: str, requirement: str) -> str | None:
    """The text with one more dependency, everything else unchanged; None if it cannot be added safely."""
    wanted = tomllib.loads(text)
    wanted["project"]["dependencies"].append(requirement)
    for found in _LIST.finditer(text):
        for end in re.finditer(r"\]", text[found.end() :]):  # the first one may be in a text, as in "package[extra]"
            inside = text[found.end() : found.end() + end.start()]
            new = text[: found.end()] + _appended(inside, requirement) + text[found.end() + end.start() :]
            try:
                if tomllib.loads(new) == wanted:
                    return new
            except tomllib.TOMLDecodeError:
                continue
    return None


def _appended(inside: str, requirement: str) -> str:
    """What is between the brackets of a list of texts, with one more."""
    last = max(inside.rfind('"'), inside.rfind("'")) + 1  # the end of the last text; a comment may follow
    rest = inside[last:].rstrip()
    comma = "," if last and not rest.startswith(",") else ""
    before = f"{inside[:last]}{comma}{rest}"
    if "\n" not in inside:
        return f'{before}{" " if before else ""}"{requirement}"'
    indent = re.search(r"\n([ \t]+)\S", inside)
    return f'{before}\n{indent[1] if indent else "    "}"{requirement}",\n'
