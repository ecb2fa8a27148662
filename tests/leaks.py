"""Finds the digits in files: an image is recognized by eight of its pixels, which no other content repeats."""

from __future__ import annotations

import base64
import binascii
import contextlib
import functools
import gzip
import io
import re
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tests.forks import ROOT

WIDTH = 8  # pixels by which an image is recognized
MAX_PIXEL = 16
_NUMBER = re.compile(rb"\d+(?:\.\d+)?(?:[eE]-?\d+)?")
_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{16,}={0,2}")


@functools.cache
def digits() -> NDArray[np.uint8]:
    """The pixels of all images, (1797, 64), from 0 to 16."""
    return pd.read_csv(ROOT / "data/01_raw/digits.csv").iloc[:, :-1].to_numpy("uint8")


@functools.cache
def windows() -> NDArray[np.uint8]:
    """Eight neighboring pixels of each image, those with the most different values, (1797, 8)."""
    found = np.lib.stride_tricks.sliding_window_view(digits(), WIDTH, axis=1)
    num_values = (np.diff(np.sort(found, axis=2), axis=2) > 0).sum(2)
    num_values[found[:, :, 0] == 0] = 0  # files are full of zeros
    return np.ascontiguousarray(found[np.arange(len(found)), num_values.argmax(1)])


class Search:
    """Searches for the images as bytes, integers, float32, float64 and text; from 0 to 16 as in the table, or to 1."""

    def __init__(self) -> None:
        pixels = windows()
        kinds = [pixels.astype(kind) for kind in ("u1", "<i8", "<f4", "<f8")]
        kinds += [kind / MAX_PIXEL for kind in kinds[2:]]
        self._patterns = {row.tobytes() for kind in kinds for row in kind}
        self._words = np.unique([int.from_bytes(pattern[:8], "little") for pattern in self._patterns]).astype("<u8")
        self._likely = np.zeros(2**16, bool)
        self._likely[self._words & 0xFFFF] = True
        self._sizes = sorted({len(pattern) for pattern in self._patterns})

    def finds(self, data: bytes) -> bool:
        """Whether an image is in the contents of a file, packed or not."""
        return any(self._is_in(part) for part in unpacked(data))

    def _is_in(self, data: bytes) -> bool:
        for offset in range(8):
            words = np.frombuffer(data[offset : offset + (len(data) - offset) // 8 * 8], "<u8")
            likely = np.flatnonzero((words != 0) & self._likely[words & 0xFFFF])
            nearest = self._words[np.searchsorted(self._words[:-1], words[likely])]
            for index in likely[nearest == words[likely]]:
                start = offset + 8 * int(index)
                if any(data[start : start + size] in self._patterns for size in self._sizes):
                    return True
        return False


def unpacked(data: bytes) -> Iterator[bytes]:
    """The data, and what is in it: archives, compressed data, columns of tables, base64, and numbers in a text."""
    yield data
    if data[:4] == b"PK\3\4":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                yield from unpacked(archive.read(name))
    elif data[:2] == b"\x1f\x8b":
        yield from unpacked(gzip.decompress(data))
    elif data[:4] == b"PAR1":
        table = pd.read_parquet(io.BytesIO(data)).select_dtypes("number")
        yield table.to_numpy("float64", na_value=np.nan).tobytes()
        yield table.to_numpy("float64", na_value=np.nan).T.tobytes()
    elif data[:1] == b"\x78":
        with contextlib.suppress(zlib.error):
            yield from unpacked(zlib.decompress(data))
    elif _is_text(data):
        yield np.array(_NUMBER.findall(data), "S32").astype("float64").tobytes()
        for found in _BASE64.findall(data):
            with contextlib.suppress(binascii.Error):
                yield from unpacked(base64.b64decode(found, altchars=b"-_" if set(found) & set(b"-_") else None))


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
