"""Writing a folder all at once: a reader never sees a part of it, and a crash leaves the old one or the new one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A new folder that takes `target`'s place when the block ends without an error."""
    writing, old = target.with_name(target.name + ".writing"), target.with_name(target.name + ".old")
    if old.exists() and not target.exists():  # a crash between the two renames below
        old.rename(target)
    remove(writing)
    writing.mkdir(parents=True)
    try:
        yield writing
    except BaseException:
        remove(writing)
        raise
    remove(old)
    if target.exists():
        target.rename(old)
    writing.rename(target)
    remove(old)


def remove(path: Path) -> None:
    """Removes a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
