"""The code blocks of README and documentation."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
TUTORIAL = ROOT / "docs/tutorial.md"
# The tests of adoption and sweeps write and run these.
RUN_ELSEWHERE = ("src/demo/models.py", "prepare.py", "sweep.py")

# A block within a list is indented.
_BLOCK = re.compile(r'^( *)```(\w*)(?: title="([^"]+)")?\n(.*?)^\1```$', re.MULTILINE | re.DOTALL)


def documents() -> list[Path]:
    """All pages that a user reads."""
    return [README, *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path, language: str = "") -> Iterator[tuple[str, str]]:
    """Title and text of each code block of a language, in order; by default, of the blocks without a language."""
    for _, found, title, text in _BLOCK.findall(page.read_text()):
        if found == language:
            yield title, textwrap.dedent(text)


def program(page: Path) -> str:
    """The Python blocks of a page as one program, each line where it stands on the page.

    Blocks of files that another test runs are left out, and those that need a package that is not installed.
    """
    text = page.read_text(encoding="utf-8")
    lines = [""] * (text.count("\n") + 1)
    for block in _BLOCK.finditer(text):
        _, language, title, code = block.groups()
        if language == "python" and title not in RUN_ELSEWHERE and not missing_packages(title or ""):
            first = text.count("\n", 0, block.start(4))
            lines[first : first + code.count("\n")] = textwrap.dedent(code).splitlines()
    return "\n".join(lines).strip("\n") and "\n".join(lines)


def missing_packages(title: str) -> list[str]:
    """The packages that a block with the title `Needs a, b` needs and that are not installed."""
    needed = title.removeprefix("Needs ").split(", ") if title.startswith("Needs ") else []
    return [name for name in needed if find_spec(name) is None]


def titled_blocks(page: Path, language: str) -> dict[str, str]:
    """The blocks whose title is the name of a file, by that name; several blocks of one file are joined."""
    files: dict[str, str] = {}
    for title, text in blocks(page, language):
        if title:
            files[title] = files.get(title, "") + text
    return files
