"""A search in a terminal: a live bar."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from kedro_aat.training.progress.so_far import SoFar, judged


class TerminalView:
    """A bar with the epochs used and the last epoch.

    Args:
        console: The terminal.
    """

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            TextColumn("[bold]epoch {task.fields[epochs]}[/]"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[line]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._bar.add_task("", total=None, line="", epochs="0")
        self._bar.start()

    def show(self, so_far: SoFar) -> None:
        """Moves the bar."""
        used, allowed = so_far.epochs_used, so_far.epochs_allowed
        self._bar.update(
            self._task,
            completed=used,
            total=allowed,
            epochs=str(used) if allowed is None else f"{used}/{allowed}",
            line=judged(so_far.history[-1]) if so_far.history else "",
        )

    def close(self) -> None:
        """Leaves the bar as it is."""
        self._bar.stop()
