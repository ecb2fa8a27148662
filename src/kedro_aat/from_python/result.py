"""What `compress` returns."""

from __future__ import annotations

import io
import shutil
import webbrowser
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import pandas as pd
from rich.console import Console
from torch import nn

from kedro_aat.budget import Outcome
from kedro_aat.config import AatSettings
from kedro_aat.delivery.results import BaselineSummary, CompressedSummary, Summary
from kedro_aat.errors import ModelError
from kedro_aat.reporting.summary import print_summary

_WIDTH = 100  # characters of the closing table


@dataclass(frozen=True)
class Report:
    """The report page; a notebook shows it.

    Attributes:
        path: The HTML file.
    """

    path: Path

    def open(self) -> None:
        """Opens the page in the browser."""
        webbrowser.open(self.path.resolve().as_uri())

    def _repr_html_(self) -> str:
        page = escape(self.path.read_text(encoding="utf-8"), quote=True)
        return f'<iframe srcdoc="{page}" style="width:100%; height:900px; border:0"></iframe>'


class Files(dict[str, Path]):
    """Name of the dataset -> file or folder; a name that is missing says what there is.

    Args:
        paths: The files that there are.
        reason: Why others are missing.
    """

    def __init__(self, paths: Mapping[str, Path], reason: str) -> None:
        super().__init__(paths)
        self._reason = reason

    def __missing__(self, name: str) -> Path:
        raise ModelError(f"There is no file {name}, only {', '.join(self)}. {self._reason}")


@dataclass(frozen=True, repr=False)
class CompressionResult:
    """A finished run.

    Attributes:
        outcome: `certified`, `within_budget` or `infeasible`.
        model: The delivered model on the CPU in evaluation mode; None if nothing is delivered.
        files: Name of the dataset, such as `compressed_onnx`, -> file or folder.
        summary: All numbers, as in `aat_summary.json`.
        trajectory: A row for each epoch of all stages.
        layers: A row for each layer of the delivered model.
        settings: The settings of the pipeline that the arguments stand for.
        folder: Folder with files and checkpoints.
        notes: What the caller should know, in words.
    """

    outcome: Outcome
    model: nn.Module | None
    files: Mapping[str, Path]
    summary: Summary
    trajectory: pd.DataFrame
    layers: pd.DataFrame
    settings: AatSettings
    folder: Path
    notes: tuple[str, ...] = ()
    _choose: Callable[[float | None, float | None], CompressionResult] = field(kw_only=True)

    @property
    def baseline(self) -> BaselineSummary:
        """Numbers of the given model: `validation` (its metric), `onnx_bytes`, `parameters`, `macs`, `latency_ms`."""
        return self.summary.baseline

    @property
    def compressed(self) -> CompressedSummary:
        """The same numbers of the delivered model; if nothing is delivered, only the baseline's `validation`."""
        return self.summary.compressed

    def report(self) -> Report:
        """The report page."""
        return Report(self.files["aat_report"])

    def choose(self, max_drop: float | None = None, *, max_relative_drop: float | None = None) -> CompressionResult:
        """The model that suits another budget, taken from this search without training.

        Its files are written beside those of this result, which stay as they are. The test split is not read.

        Args:
            max_drop: Tolerated drop in units of the metric, at least 0.
            max_relative_drop: Tolerated drop as a fraction of the baseline's metric, in [0, 1].

        Raises:
            ConfigurationError: Unless exactly one of them is given.
        """
        return self._choose(max_drop, max_relative_drop)

    def export(self, folder: str | Path) -> dict[str, Path]:
        """Copies the delivered files, with report and card, into another folder, which is made if need be.

        Args:
            folder: The folder; files of the same names are replaced.

        Returns:
            Name of the dataset -> the copy.
        """
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        copies = {name: target / path.name for name, path in self.files.items()}
        for name, path in self.files.items():
            if path.is_dir():
                shutil.copytree(path, copies[name], dirs_exist_ok=True)
            else:
                shutil.copy2(path, copies[name])
        return copies

    def __repr__(self) -> str:
        """One line, since the call has printed the table already; `print(result)` prints it again."""
        sizes = [each.onnx_bytes for each in (self.baseline, self.compressed)]
        size = "" if None in sizes else ", ONNX file of {:,} instead of {:,} bytes".format(*reversed(sizes))
        return f"<CompressionResult: {self.outcome}{size}, in {self.folder}>"

    def __str__(self) -> str:
        text = io.StringIO()
        print_summary(self.summary, Console(file=text, width=_WIDTH))
        return "\n".join([text.getvalue().strip(), *self.notes])
