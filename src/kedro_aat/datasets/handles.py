"""Handles to what a node writes while it runs: checkpoints, the certificate ledger, TensorBoard.

Kedro does not allow a dataset to be both input and output of a node. So a handle is an input; `load` returns an object
that writes by itself, and `save` refuses.
"""

from __future__ import annotations

import json
import shlex
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar, Never, TypeVar

from fsspec import AbstractFileSystem
from kedro.io import AbstractDataset, DatasetError

from kedro_aat.certificate.ledger import CertificateLedger
from kedro_aat.datasets.arguments import RecordedArguments
from kedro_aat.datasets.damage import ReportsDamage
from kedro_aat.datasets.files import ReadOnlyDataset
from kedro_aat.datasets.previews import open_small, table
from kedro_aat.datasets.remote import Place
from kedro_aat.errors import ConfigurationError, StorageError
from kedro_aat.storage import is_local_path, local_path
from kedro_aat.training.checkpoints import CheckpointStore
from kedro_aat.training.checkpoints.mirror import Mirror

if TYPE_CHECKING:
    from kedro_datasets._typing import JSONPreview, TablePreview
    from torch.utils.tensorboard import SummaryWriter

_Loaded = TypeVar("_Loaded")


class _HandleDataset(ReadOnlyDataset[_Loaded]):
    """A handle has no versions, since it is written while a node runs.

    Attributes:
        LOADS_EMPTY: It loads before anything is written, while `exists` says whether something is.
    """

    LOADS_EMPTY: ClassVar[bool] = True

    def __init__(
        self,
        *,
        filepath: str,
        credentials: dict[str, Any] | None = None,
        fs_args: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(filepath=filepath, credentials=credentials, fs_args=fs_args, metadata=metadata)


class CheckpointStoreDataset(_HandleDataset[CheckpointStore]):
    """A folder of checkpoints; `load` returns the store, which writes by itself.

    Args:
        filepath: The folder, on this machine.
        mirror: Folder to which everything in it is copied while nodes run, such as `s3://bucket/checkpoints`; any that
            fsspec knows. Another machine, whose folder is empty, goes on from there. None copies nothing.
        credentials: Arguments of the mirror's file system, such as keys.
        fs_args: More arguments of the mirror's file system.
        metadata: For Kedro-Viz and other plugins.

    Raises:
        StorageError: The folder is not on this machine.
    """

    REFUSAL: ClassVar[str] = (
        "A checkpoint store cannot be saved as a whole: make it an input of the node, and write with "
        "store.open(identity).save(checkpoint)."
    )

    def __init__(
        self,
        *,
        filepath: str,
        mirror: str | None = None,
        credentials: dict[str, Any] | None = None,
        fs_args: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(filepath=filepath, metadata=metadata)
        if not is_local_path(self.where):
            raise StorageError(
                f"{self.where} cannot be used, because the files of a checkpoint store grow while a model is trained: "
                "give a folder on this machine as `filepath`, such as data/06_models/checkpoints, and this address as "
                "`mirror`, to which it is copied."
            )
        self._folder = local_path(self.where)
        self._mirror = None if mirror is None else Mirror(mirror, {**(credentials or {}), **(fs_args or {})})

    def load(self) -> CheckpointStore:
        """Returns the store; its folder is created when the first run is opened, or when its mirror is read."""
        store = CheckpointStore(self._folder, self._mirror)
        store.fetch_shared()
        return store

    def remote_folder(self) -> tuple[AbstractFileSystem, str] | None:
        """File system and path of the mirror; None without one."""
        return None if self._mirror is None else self._mirror.folder()

    def _exists(self) -> bool:
        return super()._exists() or (self._mirror is not None and bool(self._mirror.files()))

    def _describe(self) -> dict[str, Any]:
        return super()._describe() | ({} if self._mirror is None else {"mirror": self._mirror.shown})

    def preview(self, nrows: int = 20) -> TablePreview:
        """The runs with their checkpoints, latest run first; for Kedro-Viz."""
        store = CheckpointStore(self._folder)
        found = [path for folder in store.folders if (path := folder / "run.json").exists()]
        runs = sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)
        rows = []
        for path in runs[:nrows]:
            run = path.parent
            numbers = store.numbers_of(run.name)
            size = sum(file.stat().st_size for file in run.rglob("*") if file.is_file())
            begun = datetime.fromtimestamp(path.stat().st_mtime).isoformat(" ", "minutes")
            state = "finished" if (run / "finished").exists() else "not finished"
            rows.append((run.name, begun, state, ", ".join(map(str, numbers)), round(size / 1e6, 1)))
        return table(["run", "begun", "state", "checkpoints", "MB"], rows)


class CertificateLedgerDataset(ReportsDamage, RecordedArguments, AbstractDataset[Never, CertificateLedger]):
    """The ledger of the test splits that were read; `load` returns the ledger, which writes by itself.

    Args:
        filepath: A JSON file on this machine; a folder of an object store (`s3://`, `gs://`, `abfs://`), such as
            `s3://bucket/ledger`; or the URL of a database, such as `postgresql://user@host/name`. If it is lost, a test
            split can be used twice.
        credentials: Arguments of fsspec's class for the object store; or, under the key `con`, the URL of the database,
            in place of `filepath`.
        fs_args: Further arguments of fsspec's class, or of SQLAlchemy's `create_engine`.
        metadata: For Kedro-Viz and other plugins.
    """

    LOADS_EMPTY: ClassVar[bool] = True
    REFUSAL: ClassVar[str] = (
        "A ledger cannot be saved as a whole: make it an input of the node, and write with "
        "ledger.claim(split, subject)."
    )

    def __init__(
        self,
        *,
        filepath: str | None = None,
        credentials: dict[str, Any] | None = None,
        fs_args: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        options = dict(credentials or {})
        place = options.pop("con", None) or filepath
        if place is None:
            raise ConfigurationError("The certificate ledger", ["filepath: missing; or give credentials with `con`"])
        self._ledger = CertificateLedger(place, options | (fs_args or {}))
        self._filepath = self.where = self._ledger.place  # for messages
        self.metadata = metadata

    def load(self) -> CertificateLedger:
        """Returns the ledger; its file, folder or table is created with the first entry."""
        return self._ledger

    def remote_folder(self) -> tuple[AbstractFileSystem, str] | None:
        """File system and path of a ledger in an object store; None elsewhere."""
        return self._ledger.folder()

    def save(self, data: Never) -> None:
        """Refuses."""
        raise DatasetError(self.REFUSAL)

    def preview(self) -> JSONPreview:
        """The entries; for Kedro-Viz."""
        if not is_local_path(self._ledger.place):
            return json.dumps({split: entry.model_dump() for split, entry in self._ledger.entries().items()}, indent=2)
        if not self._ledger.path.exists():
            return None
        with open_small(self._ledger.path) as file:
            return file.read().decode()

    def _exists(self) -> bool:
        if is_local_path(self._ledger.place):
            return self._ledger.path.exists()
        return bool(self._ledger.entries())

    def _describe(self) -> dict[str, Any]:
        return {"filepath": self._ledger.place}


class TensorBoardLog:
    """A folder of TensorBoard event files.

    Args:
        folder: The folder, on this machine.
        place: Storage of the folder, if it is not on this machine: events are written to a temporary folder, and copied
            when the writer is flushed or closed, and once a minute.
    """

    def __init__(self, folder: Path, place: Place | None = None) -> None:
        self.folder = folder
        self._place = place

    def writer(self, run: str, *, next_epoch: int = 0) -> SummaryWriter:
        """Opens a writer for one run.

        Args:
            run: Name of the run, which becomes a subfolder.
            next_epoch: The first epoch that will be written. TensorBoard hides what a killed run wrote from it on.
        """
        if self._place is None:
            from torch.utils.tensorboard import SummaryWriter

            return SummaryWriter(str(self.folder / run), purge_step=next_epoch)
        from kedro_aat.datasets.tensorboard import CopyingWriter

        return CopyingWriter(self._place, PurePosixPath(self.folder, run), next_epoch)


class TensorBoardDataset(_HandleDataset[TensorBoardLog]):
    """A TensorBoard log; `load` returns the log, which is written while a node runs.

    Args:
        filepath: The folder for `tensorboard --logdir`, here or at an address such as `s3://bucket/tensorboard`.
        credentials: Arguments of the file system, such as keys.
        fs_args: More arguments of the file system.
        metadata: For Kedro-Viz and other plugins.
    """

    REFUSAL: ClassVar[str] = (
        "A TensorBoard log cannot be saved as a whole: make it an input of the node, and write with log.writer(run)."
    )

    def load(self) -> TensorBoardLog:
        """Returns the log; its folder is created with the first run."""
        return TensorBoardLog(Path(self._filepath), None if self._place.is_here else self._place)

    def preview(self) -> JSONPreview:
        """The command that shows the log, and the runs in it; for Kedro-Viz."""
        files = [PurePosixPath(each) for each in self._fs.glob(f"{self._place.text(self._filepath)}/**/events.out.*")]
        root = PurePosixPath(self._fs._strip_protocol(str(self._filepath)))
        runs = sorted({str(file.parent.relative_to(root)) for file in files})
        return json.dumps({"command": f"tensorboard --logdir {shlex.quote(self.where)}", "runs": runs})
