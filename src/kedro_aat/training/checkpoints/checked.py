"""Files whose checksums are computed while they are written or read, a piece at a time."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

# Bytes that are read at a time: they are still in the processor's cache when the checksum needs them.
_PIECE = 1 << 20


class Checksum:
    """CRC-32 and size, which find a torn or damaged file; a stronger hash would cost more than all else here.

    Args:
        contents: The first bytes.
    """

    def __init__(self, contents: bytes = b"") -> None:
        self._crc = self.size = 0
        self.add(contents)

    def add(self, contents: bytes | memoryview) -> None:
        """Adds the next bytes."""
        self._crc = zlib.crc32(contents, self._crc)
        self.size += contents.nbytes if isinstance(contents, memoryview) else len(contents)

    def __str__(self) -> str:
        return f"crc32:{self._crc:08x}:{self.size}"


class CheckedWriter:
    """What is written to a file goes through its checksum."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.checksum = Checksum()

    def write(self, contents: bytes | memoryview) -> int:
        """Writes bytes, all of them."""
        self.checksum.add(contents)
        return self._file.write(contents)

    def flush(self) -> None:
        """Hands everything to the operating system."""
        self._file.flush()


class CheckedReader:
    """What is read from a file goes through its checksum."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.checksum = Checksum()

    def read_into(self, target: memoryview) -> None:
        """Reads as many bytes as fit.

        Raises:
            ValueError: If the file ends before.
        """
        for start in range(0, target.nbytes, _PIECE):
            piece = target[start : start + _PIECE]
            if self._file.readinto(piece) != piece.nbytes:  # type: ignore[attr-defined]  # of a file opened as "rb"
                raise ValueError("it ends too early")
            self.checksum.add(piece)

    def read(self, num_bytes: int) -> bytes:
        """Reads bytes.

        Raises:
            ValueError: If the file ends before.
        """
        contents = bytearray(num_bytes)
        self.read_into(memoryview(contents))
        return bytes(contents)


@contextmanager
def writing(path: Path) -> Iterator[CheckedWriter]:
    """Opens a new file."""
    with path.open("wb") as file:
        yield CheckedWriter(file)


@contextmanager
def reading(path: Path) -> Iterator[tuple[CheckedReader, int]]:
    """Opens a file, and yields its size too."""
    with path.open("rb") as file:
        yield CheckedReader(file), path.stat().st_size


def checksum_of(path: Path) -> str:
    """Checksum of a file."""
    checksum = Checksum()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            checksum.add(piece)
    return str(checksum)
