"""Reports, texts and figures for people, with previews in Kedro-Viz."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
from kedro.io import DatasetError, Version

from kedro_aat.datasets.files import FileDataset
from kedro_aat.datasets.previews import require_small
from kedro_aat.disk import disk_errors
from kedro_aat.errors import StorageError
from kedro_aat.export import NotExported

if TYPE_CHECKING:
    from kedro_datasets._typing import HTMLPreview, PlotlyPreview
    from plotly.graph_objects import Figure


class _Utf8Dataset(FileDataset[Any, Any]):
    """A text in UTF-8 on every system; `text.TextDataset` of kedro-datasets uses the encoding of the system."""

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
        how = {"mode": "w", "encoding": "utf-8", **self._place.save}
        path = self._get_save_path()
        if "a" in how["mode"] or (self._place.save and not self._place.is_here):
            with self._place.writing(path), self._fs.open(self._place.text(path), **how) as file:
                file.write(text)
        else:
            with self._writing() as new, fsspec.filesystem("file").open(str(new), **how) as file:
                file.write(text)

    def _read(self, *, is_shown: bool = False) -> str:
        path = self._get_load_path()
        if self._place.load:
            how = {"mode": "r", "encoding": "utf-8", **self._place.load}
            with self._place.reading(path), self._fs.open(self._place.text(path), **how) as file:
                text: str = file.read()
                return text
        with self._reading(is_shown=is_shown) as copy:
            require_small(self.where, copy.stat().st_size if is_shown else 0)
            return copy.read_text(encoding="utf-8")

    def _shown_text(self) -> str | None:
        """The text for a preview; None if there is none."""
        return self._read(is_shown=True) if self.exists() else None


class MarkdownDataset(_Utf8Dataset):
    """A text in Markdown, with the arguments of `text.TextDataset`."""

    def preview(self) -> HTMLPreview:
        """The text, with its tables in HTML: Kedro-Viz renders all of Markdown except tables."""
        text = self._shown_text()
        return None if text is None else re.sub(r"(?:^\|.*\|\n)+", _html_table, text, flags=re.MULTILINE)


class PageDataset(_Utf8Dataset):
    """An HTML page for a browser, with the arguments of `text.TextDataset`."""

    def preview(self) -> HTMLPreview:
        """The header of the page: Kedro-Viz runs no scripts, so the figures would be missing."""
        _, start, rest = (self._shown_text() or "").partition("<header")
        header, end, _ = rest.partition("</header>")
        # Kedro-Viz renders the text as Markdown, in which line breaks have a meaning.
        return " ".join(line.strip() for line in f"{start}{header}{end}".splitlines()) if end else None


class FigureDataset(_Utf8Dataset):
    """A Plotly figure, in the bytes that `plotly.JSONDataset` writes, and with its arguments.

    `plotly.JSONDataset` cannot even be created without Plotly; this dataset needs it only to load a figure. Saving
    `NotExported` removes the file. If the entry is versioned, it writes an empty figure with the reason as its title,
    because Kedro requires each version of a run to exist.

    Args:
        filepath: The file, here or at an address such as `s3://bucket/figure.json`.
        load_args: More arguments of `plotly.io.from_json`.
        save_args: More arguments of `to_json` of a figure.
        version: Set by Kedro for a versioned entry.
        credentials: Arguments of the file system, such as keys.
        fs_args: More arguments of the file system, and of its `open`.
        metadata: For Kedro-Viz and other plugins.
    """

    def __init__(
        self,
        *,
        filepath: str | os.PathLike[str],
        load_args: dict[str, Any] | None = None,
        save_args: dict[str, Any] | None = None,
        version: Version | None = None,
        credentials: dict[str, Any] | None = None,
        fs_args: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            filepath=filepath, version=version, credentials=credentials, fs_args=fs_args, metadata=metadata
        )
        self._load_args = load_args or {}
        self._save_args = save_args or {}

    def load(self) -> Figure:
        """Reads the figure.

        Raises:
            DatasetError: The file does not exist, or Plotly is not installed.
        """
        try:
            from plotly.io import from_json
        except ImportError as error:
            raise DatasetError(f"Plotly cannot be imported ({error}); install it with `pip install plotly`.") from None
        return from_json(self._read(), **self._load_args)

    def save(self, data: Figure | NotExported) -> None:
        """Writes the figure; `NotExported` removes the file, or writes the reason as a version of its own."""
        if not isinstance(data, NotExported):
            text = data.to_json(**self._save_args)
        elif self._version is not None:
            text = json.dumps({"data": [], "layout": {"title": {"text": f"No figure: {data.reason}"}}})
        else:
            if self._exists():
                with self._place.writing(self._filepath), disk_errors(Path(self._filepath), kind=StorageError):
                    self._place.remove(self._filepath)
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
