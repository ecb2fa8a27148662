"""Whatever a parser raises about a file is one error that names it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kedro_aat.errors import DataError, ModelError
from kedro_aat.reading import read_json, reading


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        (b"", "JSONDecodeError: Expecting value"),
        (b"\xff", "UnicodeDecodeError"),
        (100_000 * b"[", "RecursionError"),
        (5000 * b"1", "ValueError: Exceeds the limit"),
    ],
)
def test_json_that_cannot_be_read(contents: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(contents)
    with pytest.raises(DataError, match=f"^{path} cannot be read: {words}"):
        read_json(path)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    for path, words in ((tmp_path, "IsADirectoryError"), (tmp_path / "x", "FileNotFoundError")):
        with pytest.raises(DataError, match=words):
            read_json(path)


def test_json_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text(json.dumps({"a": 1}), encoding="utf-16")
    assert read_json(path) == {"a": 1}


def test_our_errors_stay_and_others_are_the_cause() -> None:
    with pytest.raises(ModelError, match="mine"), reading("x"):
        raise ModelError("mine")
    with pytest.raises(OSError, match="theirs"), reading("x", but=OSError):
        raise OSError("theirs")
    with pytest.raises(DataError) as caught, reading("x"):
        raise KeyError("\ud800" + 1000 * "a")
    assert isinstance(caught.value.__cause__, KeyError)
    assert len(str(caught.value).encode()) < 600
    with pytest.raises(KeyboardInterrupt), reading("x"):
        raise KeyboardInterrupt
