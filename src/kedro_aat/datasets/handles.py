"""Handles: what a long node writes to while it runs, and so can be neither its input nor its output."""

from __future__ import annotations

import json
import shlex
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Never

from kedro.io import AbstractDataset, DatasetError

from kedro_aat.certificate.ledger import CertificateLedger
from kedro_aat.datasets.previews import table
from kedro_aat.training.checkpoints import CheckpointStore

if TYPE_CHECKING:
    from kedro_datasets._typing import JSONPreview, TablePreview
    from torch.utils.tensorboard import SummaryWriter


class CheckpointStoreDataset(AbstractDataset[Never, CheckpointStore]):
    """A folder of checkpoints; `load` gives the store, which writes by itself.

    Args:
        filepath: The folder.
        metadata: For Kedro-Viz.
    """

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        self._folder = Path(filepath)
        self.metadata = metadata

    def load(self) -> CheckpointStore:
        """The store; its folder is made when the first run is opened."""
        return CheckpointStore(self._folder)

    def save(self, data: Never) -> None:
        """Refuses: a checkpoint is written by `CheckpointStore.open(...).save(...)`."""
        raise DatasetError(
            "A checkpoint store is not saved as a whole: take it as a node's input, and write with "
            "store.open(identity).save(checkpoint)."
        )

    def preview(self, nrows: int = 20) -> TablePreview:
        """The runs, the latest first, with the checkpoints that are kept; for Kedro-Viz."""
        runs = sorted(self._folder.glob("*/run.json"), key=lambda path: path.stat().st_mtime, reverse=True)
        rows = []
        for path in runs[:nrows]:
            run = path.parent
            numbers = self.load().numbers_of(run.name)
            size = sum(file.stat().st_size for file in run.rglob("*") if file.is_file())
            begun = datetime.fromtimestamp(path.stat().st_mtime).isoformat(" ", "minutes")
            state = "finished" if (run / "finished").exists() else "not finished"
            rows.append((run.name, begun, state, ", ".join(map(str, numbers)), round(size / 1e6, 1)))
        return table(["run", "begun", "state", "checkpoints", "MB"], rows)

    def _exists(self) -> bool:
        return True  # an empty store is a store

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._folder)}


class CertificateLedgerDataset(AbstractDataset[Never, CertificateLedger]):
    """The ledger of the test splits that were read; `load` gives the ledger, which writes by itself.

    Args:
        filepath: A JSON file. Where it is lost, a test split could be used twice unnoticed.
        metadata: For Kedro-Viz.
    """

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        self._path = Path(filepath)
        self.metadata = metadata

    def load(self) -> CertificateLedger:
        """The ledger; its file is made with the first entry."""
        return CertificateLedger(self._path)

    def preview(self) -> JSONPreview:
        """The entries; for Kedro-Viz."""
        return self._path.read_text() if self._path.exists() else None

    def save(self, data: Never) -> None:
        """Refuses: an entry is made by `CertificateLedger.claim(...)`."""
        raise DatasetError(
            "A ledger is not saved as a whole: take it as a node's input, and write with ledger.claim(split, subject)."
        )

    def _exists(self) -> bool:
        return True  # an empty ledger is a ledger

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._path)}


class TensorBoardLog:
    """A folder of TensorBoard event files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def writer(self, run: str, *, next_epoch: int = 0) -> SummaryWriter:
        """A writer for one run.

        Args:
            run: The run's name, a folder below this one.
            next_epoch: First epoch to come: what a killed run had written from there on is hidden.
        """
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.folder / run), purge_step=next_epoch)


class TensorBoardDataset(AbstractDataset[Never, TensorBoardLog]):
    """A TensorBoard log; `load` gives the log, which is written while a node runs.

    Args:
        filepath: The folder to give to `tensorboard --logdir`.
        metadata: For Kedro-Viz.
    """

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        self._folder = Path(filepath)
        self.metadata = metadata

    def load(self) -> TensorBoardLog:
        """The log."""
        return TensorBoardLog(self._folder)

    def save(self, data: Never) -> None:
        """Refuses: scalars are written with `TensorBoardLog.writer(...)`."""
        raise DatasetError(
            "A TensorBoard log is not saved as a whole: take it as a node's input, and write with log.writer(run)."
        )

    def preview(self) -> JSONPreview:
        """The command that shows the log, and the runs in it; for Kedro-Viz."""
        runs = sorted({str(file.parent.relative_to(self._folder)) for file in self._folder.rglob("events.out.*")})
        return json.dumps({"command": f"tensorboard --logdir {shlex.quote(str(self._folder))}", "runs": runs})

    def _exists(self) -> bool:
        return True

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._folder)}
