"""Files are replaced whole, and paths that are not on this machine are refused."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from kedro_aat.disk import new_file
from kedro_aat.errors import StorageError
from kedro_aat.storage import FileGroup, local_path, replacing
from kedro_aat.testing.disk_faults import without_locks


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("data/06_models/model", "data/06_models/model"),
        ("/data/model", "/data/model"),
        ("file:///data/model", "/data/model"),
        ("FILE:/data/model", "/data/model"),
        ("local:///data/model", "/data/model"),
        ("C:/data/model", "C:/data/model"),
        ("C:\\data\\model", "C:\\data\\model"),
        ("data/run 12:30/model", "data/run 12:30/model"),
        ("run-12:30", "run-12:30"),
        ("./a::b", "a::b"),
    ],
)
def test_path_on_this_machine_is_accepted(text: str, path: str) -> None:
    assert local_path(text) == local_path(Path(text)) == Path(path)


def test_file_url_may_name_this_machine() -> None:
    assert local_path("file://localhost/data/model") == Path("/data/model")


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/model",
        "S3://bucket/model",
        "gs://bucket/model",
        "az://bucket/model",
        "abfss://container@account.dfs.core.windows.net/model",
        "memory://model",
        "https://example.com/model",
        "simplecache::s3://bucket/model",
        "filecache::file:///model",
        "simplecache::/model",
        "dbfs:/model",
        "mine+s3://bucket/model",
    ],
)
def test_other_protocol_is_refused_in_one_sentence(text: str) -> None:
    for path in (text, Path(text)):  # a Path has a single slash
        with pytest.raises(StorageError, match=r"only paths on this machine.*give a local path") as info:
            local_path(path)
        assert str(info.value).startswith(str(path))
        assert "\n" not in str(info.value)


@pytest.mark.parametrize("text", ["file://data/model", "file://host/data", "local://data"])
def test_relative_or_foreign_file_url_is_refused(text: str) -> None:
    with pytest.raises(StorageError, match="not an absolute path: write file:///"):
        local_path(text)


@pytest.mark.parametrize("secret", ["secret", "secret/with/slashes"])
def test_password_in_a_url_is_not_shown(secret: str) -> None:
    with pytest.raises(StorageError) as info:
        local_path(f"s3://key:{secret}@bucket/model")
    assert "secret" not in str(info.value)
    assert "s3://key:***@bucket/model" in str(info.value)


# --- one file ---------------------------------------------------------------------------------------------------


def write(target: Path, text: str) -> None:
    with replacing(target) as new:
        new.write_text(text)


def test_file_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "page.html"
    for text in ("first", "second"):
        write(target, text)
        assert target.read_text() == text
        assert os.listdir(target.parent) == ["page.html"]
    mask = os.umask(0)
    os.umask(mask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~mask


def test_failed_block_keeps_the_file(tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    write(target, "first")
    with pytest.raises(UnicodeEncodeError):
        write(target, "text" * 10_000 + "\ud800")  # in the last block
    assert target.read_text() == "first"
    assert os.listdir(tmp_path) == ["page.html"]


def test_planted_link_in_the_place_of_the_new_file_is_not_followed(tmp_path: Path) -> None:
    target, mine = tmp_path / "page.html", tmp_path / "mine"
    mine.write_text("mine")
    with new_file(target) as new:
        new.write_text("first")
    new.symlink_to(mine)
    write(target, "second")
    assert target.read_text() == "second"
    assert sorted(os.listdir(tmp_path)) == ["mine", "page.html"]
    assert mine.read_text() == "mine"


# --- groups -----------------------------------------------------------------------------------------------------


NAMES = ("a", "b")


def contents(group: FileGroup) -> dict[str, bytes]:
    paths = {name: group.path(name) for name in NAMES}
    return {name: path.read_bytes() for name, path in paths.items() if path.exists()}


def test_group_is_replaced_as_a_whole(tmp_path: Path) -> None:
    group = FileGroup(tmp_path / "group", NAMES)
    for files in ({"a": b"1", "b": b"2"}, {"a": b"3"}, {"b": b""}, {"a": b"", "b": b"4"}):
        group.replace(files)
        assert contents(group) == files
        assert sorted(os.listdir(group.folder)) == sorted(files)
    group.remove()
    assert not group.folder.exists()
    group.remove()
    assert not group.folder.exists()


def test_folder_with_files_of_others_is_refused_and_kept(tmp_path: Path) -> None:
    folder = tmp_path / "06_models"
    group = FileGroup(folder, NAMES)
    group.replace({"a": b"1"})
    (folder / "checkpoints").mkdir()
    for number in range(10):
        (folder / f"mine-{number}.pt").touch()
    before = sorted(os.listdir(folder))
    for save in (partial(group.replace, {"a": b"2"}), group.remove):
        with pytest.raises(StorageError) as info:
            save()
        assert str(info.value) == (
            f"11 other entries in {folder}: checkpoints, mine-0.pt, mine-1.pt, mine-2.pt, mine-3.pt, .... It may hold "
            "only a, b, so nothing is written: give a folder of its own, or move the others away."
        )
    assert sorted(os.listdir(folder)) == before
    assert contents(group) == {"a": b"1"}


def test_hidden_files_and_neighbors_are_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    neighbors = [folder / ".gitkeep", *(tmp_path / name for name in ("model.old", "model.writing", "writing-model"))]
    for path in neighbors:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    group = FileGroup(folder, NAMES)
    group.replace({"a": b"1"})
    group.remove()
    assert all(path.read_text() == "mine" for path in neighbors)


@pytest.mark.parametrize("exists", [True, False])
def test_link_to_a_folder_stays_a_link(exists: bool, tmp_path: Path) -> None:
    real, link = tmp_path / "elsewhere" / "model", tmp_path / "model"
    if exists:
        real.mkdir(parents=True)
    link.symlink_to(real)
    group = FileGroup(link, NAMES)
    for files in ({"a": b"1"}, {"a": b"2", "b": b"3"}):
        group.replace(files)
        assert link.is_symlink()
        assert contents(group) == contents(FileGroup(real, NAMES)) == files
    group.remove()
    assert link.is_symlink()
    assert os.listdir(real) == []


@pytest.mark.parametrize("leads_to", ["mine", "nowhere"])
def test_planted_links_are_not_followed(tmp_path: Path, leads_to: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a").write_bytes(b"mine")
    group = FileGroup(tmp_path / "group", NAMES)
    group.replace({"a": b"1"})
    for name in (".kedro-aat-pending", ".kedro-aat-lock"):
        link = tmp_path / "group" / name
        link.symlink_to(tmp_path / leads_to)
        with pytest.raises(StorageError):
            group.replace({"a": b"2"})
        link.unlink()
        assert group.path("a").read_bytes() == b"1"
    assert (tmp_path / "mine" / "a").read_bytes() == b"mine"
    assert not (tmp_path / "nowhere").exists()


def test_file_where_a_folder_should_be_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_text("mine")
    group = FileGroup(path, NAMES)
    for save in (partial(group.replace, {"a": b"1"}), group.remove):
        with pytest.raises(StorageError, match="what was saved before is still there"):
            save()
    assert path.read_text() == "mine"


def test_folder_where_a_file_should_be_is_kept(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine.pt").touch()
    group = FileGroup(tmp_path, NAMES, prefix="a")
    for files in ({"a": b"1"}, {"b": b"2"}):
        with pytest.raises(StorageError, match="a is a folder, so no file is written there"):
            group.replace(files)
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["a", "a/mine.pt"]


# --- two writers ------------------------------------------------------------------------------------------------


def test_second_writer_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    with replacing(target) as new:
        new.write_text("first")
        with pytest.raises(StorageError, match="Another process is using"):
            write(target, "second")
        write(tmp_path / "other.html", "other")  # another file of the same folder
    assert target.read_text() == "first"
    assert sorted(os.listdir(tmp_path)) == ["other.html", "page.html"]


def test_killed_writer_leaves_no_lock_and_its_files_are_removed(tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    write(target, "first")
    (tmp_path / "page.html.new").write_text("mine")
    if (pid := os.fork()) == 0:
        with replacing(target) as new:
            new.write_text("half")
            os._exit(0)
    os.waitpid(pid, 0)
    assert len(os.listdir(tmp_path)) == 4
    write(target, "second")
    assert target.read_text() == "second"
    assert sorted(os.listdir(tmp_path)) == ["page.html", "page.html.new"]


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS], ids=errno.errorcode.get)
def test_file_system_without_locks_works_with_a_warning(
    tmp_path: Path, error: int, caplog: pytest.LogCaptureFixture
) -> None:
    target = tmp_path / "page.html"
    with without_locks(error), caplog.at_level(logging.WARNING):
        write(target, "first")
    assert target.read_text() == "first"
    assert os.listdir(tmp_path) == ["page.html"]
    assert "this file system has no locks" in caplog.text


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errno.EAGAIN, "Another process is using"),
        (errno.EACCES, "Another process is using"),
        (errno.EPERM, "this user may not write there"),
        (errno.EIO, "the disk failed"),
    ],
    ids=str,
)
def test_lock_that_fails_is_no_missing_lock(tmp_path: Path, error: int, message: str) -> None:
    with without_locks(error), pytest.raises(StorageError, match=message):
        write(tmp_path / "page.html", "first")
    assert not (tmp_path / "page.html").exists()


# --- durability -------------------------------------------------------------------------------------------------


def test_files_are_flushed_before_they_are_renamed_and_folders_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def recorded(name: str, call: Callable[..., None]) -> Callable[..., None]:
        def record(*args: object) -> None:
            calls.append(name)
            call(*args)

        return record

    monkeypatch.setattr(os, "fsync", recorded("flush", os.fsync))
    monkeypatch.setattr(os, "rename", recorded("rename", os.rename))
    monkeypatch.setattr(os, "replace", recorded("rename", os.replace))
    write(tmp_path / "page.html", "text")
    assert calls == ["flush", "rename", "flush"]
    calls.clear()
    FileGroup(tmp_path, ("a", "b"), "prefix").replace({"a": b"1", "b": b"2"})
    # Two files and their folder; then the renaming that makes them valid, and the folder; then their own places.
    assert calls == ["flush"] * 3 + ["rename", "flush"] + ["rename"] * 2 + ["flush"]
