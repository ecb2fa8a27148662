"""Handles to what a node writes while it runs: checkpoints, the certificate ledger, TensorBoard.

Kedro does not allow a dataset to be both input and output of a node. So a handle is an input; `load` returns an object
that writes by itself, and `save` refuses.
"""

from __future__ import annotations

import json
import shlex
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeVar

from kedro_aat.certificate.ledger import CertificateLedger
from kedro_aat.datasets.local import ReadOnlyDataset
from kedro_aat.datasets.previews import open_small, table
from kedro_aat.training.checkpoints import CheckpointStore

if TYPE_CHECKING:
    from kedro_datasets._typing import JSONPreview, TablePreview
    from torch.utils.tensorboard import SummaryWriter

_Loaded = TypeVar("_Loaded")


class _HandleDataset(ReadOnlyDataset[_Loaded]):
    def _exists(self) -> bool:
        return True  # even if nothing has been written: an empty store is a store


class CheckpointStoreDataset(_HandleDataset[CheckpointStore]):
    """A folder of checkpoints; `load` returns the store, which writes by itself.

    Args:
        filepath: The folder.
        metadata: For Kedro-Viz and other plugins.
    """

    REFUSAL: ClassVar[str] = (
        "A checkpoint store cannot be saved as a whole: make it an input of the node, and write with "
        "store.open(identity).save(checkpoint)."
    )

    def load(self) -> CheckpointStore:
        """Returns the store; its folder is created when the first run is opened."""
        return CheckpointStore(self._path)

    def preview(self, nrows: int = 20) -> TablePreview:
        """The runs with their checkpoints, latest run first; for Kedro-Viz."""
        runs = sorted(self._path.glob("*/run.json"), key=lambda path: path.stat().st_mtime, reverse=True)
        rows = []
        for path in runs[:nrows]:
            run = path.parent
            numbers = self.load().numbers_of(run.name)
            size = sum(file.stat().st_size for file in run.rglob("*") if file.is_file())
            begun = datetime.fromtimestamp(path.stat().st_mtime).isoformat(" ", "minutes")
            state = "finished" if (run / "finished").exists() else "not finished"
            rows.append((run.name, begun, state, ", ".join(map(str, numbers)), round(size / 1e6, 1)))
        return table(["run", "begun", "state", "checkpoints", "MB"], rows)


class CertificateLedgerDataset(_HandleDataset[CertificateLedger]):
    """The ledger of the test splits that were read; `load` returns the ledger, which writes by itself.

    Args:
        filepath: A JSON file. If it is lost, a test split can be used twice without notice.
        metadata: For Kedro-Viz and other plugins.
    """

    REFUSAL: ClassVar[str] = (
        "A ledger cannot be saved as a whole: make it an input of the node, and write with "
        "ledger.claim(split, subject)."
    )

    def load(self) -> CertificateLedger:
        """Returns the ledger; its file is created with the first entry."""
        return CertificateLedger(self._path)

    def preview(self) -> JSONPreview:
        """The entries; for Kedro-Viz."""
        if not self._path.exists():
            return None
        with open_small(self._path) as file:
            return file.read().decode()


class TensorBoardLog:
    """A folder of TensorBoard event files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def writer(self, run: str, *, next_epoch: int = 0) -> SummaryWriter:
        """Opens a writer for one run.

        Args:
            run: Name of the run, which becomes a subfolder.
            next_epoch: The first epoch that will be written. TensorBoard hides what a killed run wrote from it on.
        """
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.folder / run), purge_step=next_epoch)


class TensorBoardDataset(_HandleDataset[TensorBoardLog]):
    """A TensorBoard log; `load` returns the log, which is written while a node runs.

    Args:
        filepath: The folder for `tensorboard --logdir`.
        metadata: For Kedro-Viz and other plugins.
    """

    REFUSAL: ClassVar[str] = (
        "A TensorBoard log cannot be saved as a whole: make it an input of the node, and write with log.writer(run)."
    )

    def load(self) -> TensorBoardLog:
        """Returns the log; its folder is created with the first run."""
        return TensorBoardLog(self._path)

    def preview(self) -> JSONPreview:
        """The command that shows the log, and the runs in it; for Kedro-Viz."""
        runs = sorted({str(file.parent.relative_to(self._path)) for file in self._path.rglob("events.out.*")})
        return json.dumps({"command": f"tensorboard --logdir {shlex.quote(str(self._path))}", "runs": runs})
