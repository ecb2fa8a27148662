"""The code blocks of README and documentation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
TUTORIAL = ROOT / "docs/tutorial.md"

_BLOCK = re.compile(r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def documents() -> list[Path]:
    """All pages that a user reads."""
    return [README, *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path, language: str = "") -> Iterator[tuple[str, str]]:
    """Title and text of each code block of a language, in order; by default, of the blocks without a language."""
    for found, title, text in _BLOCK.findall(page.read_text()):
        if found == language:
            yield title, text


def program(page: Path) -> str:
    """The Python blocks of a page as one program, each line where it stands on the page."""
    text = page.read_text(encoding="utf-8")
    lines = [""] * (text.count("\n") + 1)
    for block in _BLOCK.finditer(text):
        if block[1] == "python":
            first = text.count("\n", 0, block.start(3))
            code = block[3].splitlines()
            lines[first : first + len(code)] = code
    return "\n".join(lines)


def titled_blocks(page: Path, language: str) -> dict[str, str]:
    """The blocks whose title is the name of a file, by that name; several blocks of one file are joined."""
    files: dict[str, str] = {}
    for title, text in blocks(page, language):
        if title:
            files[title] = files.get(title, "") + text
    return files
