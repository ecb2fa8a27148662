"""Texts for people, as Kedro-Viz can show them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar

from kedro_datasets.text import TextDataset

if TYPE_CHECKING:
    from kedro_datasets._typing import HTMLPreview


class _Utf8Dataset(TextDataset):  # type: ignore[misc]  # untyped in kedro-datasets
    """A text in UTF-8 on every system, where `text.TextDataset` takes the system's encoding."""

    DEFAULT_FS_ARGS: ClassVar = {
        "open_args_load": {"mode": "r", "encoding": "utf-8"},
        "open_args_save": {"mode": "w", "encoding": "utf-8"},
    }


class MarkdownDataset(_Utf8Dataset):
    """A text in Markdown; takes what `text.TextDataset` takes."""

    def preview(self) -> HTMLPreview:
        """The text; Kedro-Viz turns Markdown into HTML, but for the tables."""
        return re.sub(r"(?:^\|.*\|\n)+", _html_table, self.load(), flags=re.MULTILINE) if self.exists() else None


class PageDataset(_Utf8Dataset):
    """An HTML page that is opened in a browser; takes what `text.TextDataset` takes."""

    def preview(self) -> HTMLPreview:
        """The page's header: Kedro-Viz runs no scripts, so the figures would be missing."""
        header = re.search(r"<header.*?</header>", self.load(), re.DOTALL) if self.exists() else None
        # Kedro-Viz takes line breaks for such in Markdown.
        return None if header is None else re.sub(r"\s*\n\s*", " ", header[0])


def _html_table(found: re.Match[str]) -> str:
    head, _, *body = ([cell.strip() for cell in line[1:-1].split("|")] for line in found[0].splitlines())
    rows = [_html_row(head, "th"), *(_html_row(cells, "td") for cells in body)]
    return f"<table>{''.join(rows)}</table>\n"  # in one line: Kedro-Viz would make each break one of the page


def _html_row(cells: list[str], kind: str) -> str:
    return f"<tr>{''.join(f'<{kind}>{cell}</{kind}>' for cell in cells)}</tr>"
