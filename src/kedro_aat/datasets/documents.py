"""Reports, texts and figures for people, with previews in Kedro-Viz."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from kedro.io import DatasetError, Version
from kedro.io.core import get_filepath_str
from kedro_datasets.text import TextDataset

from kedro_aat.datasets.local import KedroFileDataset, require_kedro_path
from kedro_aat.datasets.previews import require_small
from kedro_aat.disk import disk_errors
from kedro_aat.errors import StorageError
from kedro_aat.export import NotExported

if TYPE_CHECKING:
    from kedro_datasets._typing import HTMLPreview, PlotlyPreview
    from plotly.graph_objects import Figure


class _Utf8Dataset(KedroFileDataset, TextDataset):  # type: ignore[misc]  # untyped in kedro-datasets
    """A text in UTF-8 on every system; `text.TextDataset` uses the encoding of the system."""

    DEFAULT_FS_ARGS: ClassVar = {
        "open_args_load": {"mode": "r", "encoding": "utf-8"},
        "open_args_save": {"mode": "w", "encoding": "utf-8"},
    }

    def __init__(
        self,
        *,
        filepath: str | os.PathLike[str],
        version: Version | None = None,
        credentials: dict[str, Any] | None = None,
        fs_args: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            filepath=require_kedro_path(filepath),
            version=version,
            credentials=credentials,
            fs_args=fs_args,
            metadata=metadata,
        )

    def load(self) -> str:
        """Reads the text."""
        return self._read()

    def save(self, data: str) -> None:
        """Writes the text.

        Raises:
            StorageError: The file system refuses, or another process is writing the file.
        """
        self._write(data)

    def _write(self, text: str) -> None:
        with self._new_file() as path, self._fs.open(path, **self._fs_open_args_save) as file:
            file.write(text)

    def _read(self) -> str:
        text: str = TextDataset.load.__wrapped__(self)  # whose errors Kedro has not wrapped yet
        return text

    def _shown_text(self) -> str | None:
        """The text for a preview; None if there is none."""
        if not self.exists():
            return None
        path = get_filepath_str(self._get_load_path(), self._protocol)
        require_small(Path(path), self._fs.size(path) or 0)
        return self._read()


class MarkdownDataset(_Utf8Dataset):
    """A text in Markdown; takes the arguments of `text.TextDataset`."""

    def preview(self) -> HTMLPreview:
        """The text, with its tables in HTML: Kedro-Viz renders all of Markdown except tables."""
        text = self._shown_text()
        return None if text is None else re.sub(r"(?:^\|.*\|\n)+", _html_table, text, flags=re.MULTILINE)


class PageDataset(_Utf8Dataset):
    """An HTML page for a browser; takes the arguments of `text.TextDataset`."""

    def preview(self) -> HTMLPreview:
        """The header of the page: Kedro-Viz runs no scripts, so the figures would be missing."""
        _, start, rest = (self._shown_text() or "").partition("<header")
        header, end, _ = rest.partition("</header>")
        # Kedro-Viz renders the text as Markdown, in which line breaks have a meaning.
        return " ".join(line.strip() for line in f"{start}{header}{end}".splitlines()) if end else None


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
                with disk_errors(Path(self._filepath), kind=StorageError):
                    self._fs.rm_file(get_filepath_str(self._filepath, self._protocol))
                self._invalidate_cache()
            return
        self._write(text)

    def preview(self) -> PlotlyPreview:
        """The figure, which Kedro-Viz draws; the smaller one in `layout.meta.pane`, if it carries one."""
        text = self._shown_text()
        if text is None:
            return None
        figure = json.loads(text)
        meta = figure.get("layout", {}).get("meta")
        return meta["pane"] if isinstance(meta, dict) and "pane" in meta else figure


def _html_table(match: re.Match[str]) -> str:
    head, _, *body = ([cell.strip() for cell in line[1:-1].split("|")] for line in match[0].splitlines())
    rows = [_html_row(head, "th"), *(_html_row(cells, "td") for cells in body)]
    return f"<table>{''.join(rows)}</table>\n"  # in one line, because Kedro-Viz keeps line breaks


def _html_row(cells: list[str], tag: str) -> str:
    return f"<tr>{''.join(f'<{tag}>{cell}</{tag}>' for cell in cells)}</tr>"
