"""A search in a notebook: one output with the frontier, which is replaced after each epoch."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from rich import get_console

from kedro_aat.training.progress.frontier import frontier_html
from kedro_aat.training.progress.so_far import SoFar


def is_notebook() -> bool:
    """Whether this process shows its output in a notebook: of Jupyter, VS Code, Colab or Databricks."""
    return "IPython" in sys.modules and get_console().is_jupyter


class NotebookView:
    """The output of a cell, as HTML and, where that cannot be shown, as text."""

    def __init__(self) -> None:
        self._handle: Any = None  # IPython's, which has no types

    def show(self, so_far: SoFar) -> None:
        """Shows the search, or replaces what is shown."""
        # No dependency of ours: where there is a notebook, IPython runs it.
        display = import_module("IPython.display").display
        text = f"{so_far.title}: {so_far.epochs_in_words}; best so far: {so_far.best_in_words}"
        shown = {"text/html": frontier_html(so_far), "text/plain": text}
        if self._handle is None:
            self._handle = display(shown, raw=True, display_id=True)
        else:
            self._handle.update(shown, raw=True)

    def close(self) -> None:
        """Leaves the output as it is."""
