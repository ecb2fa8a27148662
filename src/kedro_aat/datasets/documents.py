"""Reports, texts and figures for people, with previews in Kedro-Viz."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, ClassVar

from kedro.io import DatasetError
from kedro.io.core import get_filepath_str
from kedro_datasets.text import TextDataset

from kedro_aat.datasets.arguments import RecordedArguments
from kedro_aat.export import NotExported

if TYPE_CHECKING:
    from kedro_datasets._typing import HTMLPreview, PlotlyPreview
    from plotly.graph_objects import Figure


class _Utf8Dataset(RecordedArguments, TextDataset):  # type: ignore[misc]  # untyped in kedro-datasets
    """A text in UTF-8 on every system; `text.TextDataset` uses the encoding of the system."""

    DEFAULT_FS_ARGS: ClassVar = {
        "open_args_load": {"mode": "r", "encoding": "utf-8"},
        "open_args_save": {"mode": "w", "encoding": "utf-8"},
    }


class MarkdownDataset(_Utf8Dataset):
    """A text in Markdown; takes the arguments of `text.TextDataset`."""

    def preview(self) -> HTMLPreview:
        """The text, with its tables in HTML: Kedro-Viz renders all of Markdown except tables."""
        return re.sub(r"(?:^\|.*\|\n)+", _html_table, self.load(), flags=re.MULTILINE) if self.exists() else None


class PageDataset(_Utf8Dataset):
    """An HTML page for a browser; takes the arguments of `text.TextDataset`."""

    def preview(self) -> HTMLPreview:
        """The header of the page: Kedro-Viz runs no scripts, so the figures would be missing."""
        header = re.search(r"<header.*?</header>", self.load(), re.DOTALL) if self.exists() else None
        # Kedro-Viz renders the text as Markdown, in which line breaks have a meaning.
        return None if header is None else re.sub(r"\s*\n\s*", " ", header[0])


class FigureDataset(_Utf8Dataset):
    """A Plotly figure, in the bytes that `plotly.JSONDataset` writes; takes the arguments of `text.TextDataset`.

    `plotly.JSONDataset` cannot even be created without Plotly; this dataset needs it only to load a figure. Saving
    `NotExported` removes the file. If the entry is versioned, it writes an empty figure with the reason as its title,
    because Kedro requires each version of a run to exist.
    """

    def load(self) -> Figure:
        """Reads the figure.

        Raises:
            DatasetError: The file does not exist, or Plotly is not installed.
        """
        try:
            from plotly.io import from_json
        except ImportError as error:
            raise DatasetError(f"Plotly cannot be imported ({error}); install it with `pip install plotly`.") from None
        return from_json(self._read())

    def save(self, data: Figure | NotExported) -> None:
        """Writes the figure; `NotExported` removes the file, or writes the reason as a version of its own."""
        if not isinstance(data, NotExported):
            text = data.to_json()
        elif self._version is not None:
            text = json.dumps({"data": [], "layout": {"title": {"text": f"No figure: {data.reason}"}}})
        else:
            if self._exists():
                self._fs.rm(get_filepath_str(self._filepath, self._protocol))
                self._invalidate_cache()
            return
        TextDataset.save.__wrapped__(self, text)  # not wrapped by Kedro twice

    def preview(self) -> PlotlyPreview:
        """The figure, which Kedro-Viz draws."""
        return json.loads(self._read()) if self.exists() else None

    def _read(self) -> str:
        text: str = TextDataset.load.__wrapped__(self)
        return text


def _html_table(match: re.Match[str]) -> str:
    head, _, *body = ([cell.strip() for cell in line[1:-1].split("|")] for line in match[0].splitlines())
    rows = [_html_row(head, "th"), *(_html_row(cells, "td") for cells in body)]
    return f"<table>{''.join(rows)}</table>\n"  # in one line, because Kedro-Viz keeps line breaks


def _html_row(cells: list[str], tag: str) -> str:
    return f"<tr>{''.join(f'<{tag}>{cell}</{tag}>' for cell in cells)}</tr>"
