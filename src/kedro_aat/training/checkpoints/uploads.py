"""Copies the checkpoints of a run to its mirror while training continues, in a thread of its own.

Each upload makes the mirror equal to the disk. While one is under way, others are put together into one after it: what
the disk has lost meanwhile is never copied. At any instant the mirror has a whole checkpoint: the files of a new one
are copied before its manifest, and older ones are removed after that. If an upload fails, the next one copies what is
missing; no run ends because of it.
"""

from __future__ import annotations

import json
import logging
import threading
import uuid
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from fsspec import AbstractFileSystem

from kedro_aat.training.checkpoints.mirror import (
    MANIFEST,
    MARKER,
    RUN,
    Copied,
    Mirror,
    MirrorState,
    failure,
    present_in,
)

logger = logging.getLogger(__name__)

_FINISHED = "finished"


class RunUploads:
    """Keeps the mirror of one run equal to its folder.

    Args:
        mirror: The mirror of the store; None copies nothing.
        folder: Folder of the run, which this process alone writes.
    """

    def __init__(self, mirror: Mirror | None, folder: Path) -> None:
        self._mirror = mirror
        self._folder = folder
        self._thread = ThreadPoolExecutor(1)
        self._lock = threading.Lock()
        self._running: Future[None] | None = None
        self._is_wanted = False
        self._has_failed = self._is_of_another = False
        # Uploads that may be the mirror's last one; None until the first upload.
        self._own: set[str | None] | None = None
        self._copied: Copied = {}

    def request(self) -> None:
        """Has the mirror made equal to the disk, soon."""
        if self._mirror is None or self._is_of_another:
            return
        with self._lock:
            self._is_wanted = True
            if self._running is None or self._running.done():
                self._running = self._thread.submit(self._work, self._mirror)

    def close(self) -> None:
        """Waits until the mirror is equal to the disk, or until that fails."""
        self.request()
        self._thread.shutdown()

    def _work(self, mirror: Mirror) -> None:
        while True:
            with self._lock:
                if not self._is_wanted:
                    self._running = None
                    return
                self._is_wanted = False
            try:
                self._upload(mirror)
            except Exception as error:  # the run does not depend on it
                if not self._has_failed:
                    logger.warning("%s", failure(mirror.shown, error, self._folder), extra={"markup": False})
                self._has_failed = True
            else:
                if self._has_failed and not self._is_of_another:
                    logger.info("The mirror %s has everything again.", mirror.shown)
                self._has_failed = False

    def _upload(self, mirror: Mirror) -> None:
        if self._is_of_another or not (self._folder / RUN).exists():
            return
        run = self._folder.name
        last = mirror.last_upload(run)
        if self._own is None:
            state = MirrorState.read(self._folder)
            self._own = {last}
            # What another upload has written is not known by its size and time here, but it may have to be removed.
            known = state.copied if state.upload == last else dict.fromkeys(mirror.files(run))
            self._copied = {name: each for name, each in known.items() if name != MARKER}
        elif last is None:  # somebody has removed the mirror
            self._copied = {}
        elif last not in self._own:
            self._is_of_another = True
            logger.warning(
                "%s/%s: another process writes this run, too, so nothing is copied there any more. Let only one "
                "machine at a time run the same search with the same mirror. What this run finds is in %s.",
                mirror.shown,
                run,
                self._folder,
            )
            return
        with mirror.opened() as (fs, root):
            self._make_equal(fs, f"{root}/{run}")
            upload = uuid.uuid4().hex
            self._own = {last, upload}
            MirrorState(upload, self._copied).write(self._folder)  # first: if the process ends here, this disk is ahead
            fs.pipe_file(f"{root}/{run}/{MARKER}", json.dumps({"upload": upload}).encode())
            self._own = {upload}
        mirror.push_shared(self._folder.parent)

    def _make_equal(self, fs: AbstractFileSystem, remote: str) -> None:
        present = present_in(self._folder)
        newest = max((int(match[1]) for match in map(MANIFEST.fullmatch, present) if match), default=-1)
        changed = {name for name, stamp in present.items() if self._copied.get(name) != stamp}
        gone = self._copied.keys() - present.keys()
        # A run that has gone back to an earlier checkpoint must not be continued from a later one.
        invalid = {name for name in gone if name == _FINISHED or _number(name) > newest}
        invalid |= {name for name in changed & self._copied.keys() if MANIFEST.fullmatch(name)}
        self._remove(fs, remote, invalid)
        torn: set[str] = set()
        for name in sorted(changed, key=_order):
            folder = name.partition("/")[0]
            if folder in torn and MANIFEST.fullmatch(name):
                continue
            stamp = present[name]
            try:
                fs.put_file(str(self._folder / name), f"{remote}/{name}")
            except FileNotFoundError:
                if (self._folder / name).exists():
                    raise  # the mirror's own folder is not there
                if not name.rpartition("/")[2].startswith("optimizers"):  # those may be missing
                    torn.add(folder)
            else:
                self._copied[name] = stamp
        self._remove(fs, remote, gone - invalid)

    def _remove(self, fs: AbstractFileSystem, remote: str, names: Iterable[str]) -> None:
        for name in sorted(names, key=lambda name: (MANIFEST.fullmatch(name) is None, name)):  # manifests first
            with suppress(FileNotFoundError):
                fs.rm_file(f"{remote}/{name}")
            self._copied.pop(name, None)


def _number(name: str) -> int:
    """Number of the checkpoint to which a file belongs; -1 for other files."""
    match = MANIFEST.fullmatch(f"{name.partition('/')[0]}/manifest.json")
    return int(match[1]) if match else -1


def _order(name: str) -> tuple[int, int, bool, str]:
    """Other files before checkpoints, these by number, each manifest last, and the mark of the end after all."""
    number = _number(name)
    return (2 if name == _FINISHED else int(number >= 0), number, MANIFEST.fullmatch(name) is not None, name)
