"""The code that stands in README and documentation."""

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
    """The title and text of each code block in a language, in their order; without one, of those without a language."""
    for found, title, text in _BLOCK.findall(page.read_text()):
        if found == language:
            yield title, text


def titled_blocks(page: Path, language: str) -> dict[str, str]:
    """The blocks that are files, by the name that stands in their title; of several for one file, all together."""
    files: dict[str, str] = {}
    for title, text in blocks(page, language):
        if title:
            files[title] = files.get(title, "") + text
    return files
