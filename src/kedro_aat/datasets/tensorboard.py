"""A TensorBoard writer whose files are copied to another storage while they are written."""

from __future__ import annotations

import logging
import tempfile
import time
from pathlib import Path, PurePosixPath
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from kedro_aat.datasets.remote import Place
from kedro_aat.errors import StorageError

logger = logging.getLogger(__name__)

_SECONDS = 60  # between two copies while events come in


class CopyingWriter(SummaryWriter):
    """Writes to a temporary folder, and copies its files when it is flushed or closed, and once a minute.

    A copy that fails is a warning, since training must not end with it; the next one copies the same events.

    Args:
        place: The storage.
        folder: Folder of the run in it.
        next_epoch: The first epoch that will be written.
    """

    def __init__(self, place: Place, folder: PurePosixPath, next_epoch: int) -> None:
        self._place, self._folder = place, folder
        self._here = tempfile.TemporaryDirectory(prefix="kedro-aat-", ignore_cleanup_errors=True)
        self._copied = time.monotonic()
        super().__init__(self._here.name, purge_step=next_epoch)

    def add_scalar(self, *args: Any, **kwargs: Any) -> None:
        super().add_scalar(*args, **kwargs)
        if time.monotonic() - self._copied > _SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes all events, and copies the files."""
        super().flush()
        self._copied = time.monotonic()
        try:
            with self._place.writing(self._folder):
                for file in Path(self._here.name).iterdir():
                    self._place.upload(file, self._folder / file.name)
        except StorageError as error:
            logger.warning("TensorBoard's events were not copied: %s", error)

    def close(self) -> None:
        """Writes and copies the last events, and removes the temporary folder."""
        super().close()
        if Path(self._here.name).exists():
            self.flush()
            self._here.cleanup()
