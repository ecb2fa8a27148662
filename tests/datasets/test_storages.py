"""All datasets of files behave alike on this machine and in other storages, with and without versions."""

from __future__ import annotations

import io
import itertools
import pickle
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from kedro.io import DataCatalog, DatasetError, Version
from onnx import TensorProto

from kedro_aat.datasets.exported import ExportedProgramDataset, OnnxDataset
from kedro_aat.datasets.files import FileDataset
from kedro_aat.datasets.images import ImageFolderDataset
from kedro_aat.datasets.imported import ImportedModelDataset
from kedro_aat.datasets.model import ModelDataset
from kedro_aat.errors import AatError, StorageError
from kedro_aat.export import NotExported
from kedro_aat.training.data import data_fingerprint
from tests.datasets.kinds import KINDS as SAVED
from tests.datasets.kinds import MORE_KINDS, NONE, Kind, onnx_model
from tests.datasets.saved import built
from tests.fuzzing.harness import our_error
from tests.servers import ObjectStore

KINDS = SAVED | MORE_KINDS
MEMORY = "memory://bucket"
CLOUDS = [pytest.param(name, marks=pytest.mark.slow) for name in ("azure", "google")]


# A program takes seconds to save, and its class shares all that it does with the file of ONNX.
@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.slow if name == "program" else ()) for name in KINDS])
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


# Paths without a protocol are those of all other tests.
@pytest.fixture(params=["file", "memory", *CLOUDS])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    match request.param:
        case "file":
            yield f"file://{tmp_path}"
        case "memory":
            yield "memory://bucket"
            forget_memory()
        case name:
            server: ObjectStore = request.getfixturevalue(name)
            with pytest.MonkeyPatch.context() as patched:  # what fsspec's own configuration says, no entry needs to
                patched.setitem(fsspec.config.conf, server.protocol, server.options)
                yield server.bucket(uuid.uuid4().hex)


def forget_memory() -> None:
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def catalog_of(kind: Kind, root: str, save: str = "v1", load: str | None = None, **more: Any) -> DataCatalog:
    """A catalog with one entry, as a run has it."""
    entry = kind.entry(f"{root}/folder/{kind.name}", **more)
    versions = None if load is None else {"entry": load}
    return DataCatalog.from_config({"entry": entry}, load_versions=versions, save_version=save)


def rewritten(catalog: DataCatalog) -> DataCatalog:
    """The catalog that another one writes as its configuration."""
    configuration: tuple[Any, ...] = catalog.to_config()
    return DataCatalog.from_config(*configuration)


def test_what_is_saved_is_loaded_and_replaced(kind: Kind, root: str) -> None:
    catalog = catalog_of(kind, root)
    assert not catalog.exists("entry")
    if getattr(kind.dataset, "OPTIONAL", None) is None:
        with pytest.raises(DatasetError, match="entry"):
            catalog.load("entry")
    else:  # written on request only
        assert not catalog.load("entry").is_asked
    for data in kind.versions():
        if data is NONE:
            continue
        catalog.save("entry", data)
        assert catalog.exists("entry")
        first = kind.seen(catalog.load("entry"))
        catalog.release("entry")
        assert catalog.exists("entry")
        again = rewritten(catalog)
        assert kind.seen(again.load("entry")) == first
        assert repr(again["entry"]) == repr(catalog["entry"])
    assert first == kind.seen(pickle.loads(pickle.dumps(catalog["entry"])).load())


def test_versions_are_kept_and_loaded_by_name(kind: Kind, root: str) -> None:
    expected = {}
    for number, data in enumerate(kind.versions()):
        catalog = catalog_of(kind, root, f"v{number}", versioned=True)
        catalog.save("entry", data)
        if not isinstance(data, NotExported):
            expected[f"v{number}"] = kind.seen(catalog.load("entry"))
        with pytest.raises(DatasetError, match="must not exist if versioning is enabled"):
            catalog.save("entry", data)
    assert len(expected) >= 2
    for version, seen in expected.items():
        pinned = catalog_of(kind, root, "v9", load=version, versioned=True)
        assert pinned.exists("entry")
        assert kind.seen(pinned.load("entry")) == seen
        assert kind.seen(rewritten(pinned).load("entry")) == seen
    missing = catalog_of(kind, root, "v9", load="v8", versioned=True)
    assert not missing.exists("entry")
    named = ", ".join(f"v{number}" for number in range(len(kind.versions()) - 1, -1, -1))
    with pytest.raises(DatasetError, match=f"Nothing is saved at .*/v8/.* The latest versions are {named}; name one"):
        missing.load("entry")
    latest = catalog_of(kind, root, "v9", versioned=True)["entry"]
    assert isinstance(latest, FileDataset)
    assert latest.list_versions(full_path=False) == [f"v{number}" for number in range(number, -1, -1)]


def test_version_that_a_dataset_chooses_itself(kind: Kind, root: str) -> None:
    dataset = kind.dataset(filepath=f"{root}/{kind.name}", version=Version(None, None), **kind.arguments)
    data = kind.versions()[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Kedro warns if what it loads is not what it saved
        dataset.save(data)
    assert len(dataset.list_versions()) == 1
    assert dataset.exists()


@pytest.mark.parametrize("kind", ["model", "onnx", "openvino", "figure"], indirect=True)
def test_without_a_model_there_is_no_file(kind: Kind, root: str) -> None:
    catalog = catalog_of(kind, root)
    catalog.save("entry", kind.versions()[0])
    catalog.save("entry", NONE)
    if kind.name in ("model", "figure.json"):
        assert not catalog.exists("entry")
    else:
        assert catalog.load("entry") == NONE
    catalog.save("entry", NotExported("not asked for", is_asked=False))
    assert not catalog.exists("entry")


def test_version_without_a_model_says_why(root: str) -> None:
    kind = KINDS["model"]
    catalog_of(kind, root, "v1", versioned=True).save("entry", built(num_classes=3))
    catalog = catalog_of(kind, root, "v2", versioned=True)
    catalog.save("entry", NONE)
    assert not catalog.exists("entry")
    with pytest.raises(DatasetError, match=r"model/v2/model.* was not written: no rate was within budget"):
        catalog.load("entry")
    assert kind.seen(catalog_of(kind, root, load="v1", versioned=True).load("entry")) == 3


@pytest.mark.parametrize("kind", ["model", "controller", "onnx", "openvino"], indirect=True)
@pytest.mark.parametrize("versioned", [False, True])
def test_cut_off_upload_never_looks_complete(kind: Kind, versioned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = kind.versions()[:2]
    before, after = (seen_after(kind, data) for data in (old, new))
    for failing in itertools.count():
        forget_memory()
        catalog_of(kind, MEMORY, "v1", versioned=versioned).save("entry", old)
        catalog = catalog_of(kind, MEMORY, "v2", versioned=versioned)
        with monkeypatch.context() as patched:
            cut_off(patched, failing)
            try:
                catalog.save("entry", new)
                break
            except DatasetError as raised:
                error = raised
        assert "the network is gone" in str(error)
        assert isinstance(our_error(error), StorageError)
        seen = kind.seen(catalog.load("entry")) if catalog.exists("entry") else None
        assert seen in ((before,) if versioned else (None, before))
        catalog = catalog_of(kind, MEMORY, "v2", versioned=versioned)  # the next run
        catalog.save("entry", new)
        assert kind.seen(catalog.load("entry")) == after
    assert failing >= 1
    assert kind.seen(catalog.load("entry")) == after


def cut_off(patched: pytest.MonkeyPatch, num_calls: int) -> None:
    """Lets so many calls that change the storage pass, and no more."""
    calls, kind = itertools.count(), type(fsspec.filesystem("memory"))

    def counted(call: Callable[..., None]) -> Callable[..., None]:
        def counting(*args: Any, **kwargs: Any) -> None:
            if next(calls) >= num_calls:
                raise ConnectionError("the network is gone")
            call(*args, **kwargs)

        return counting

    for name in ("pipe_file", "rm_file"):
        patched.setattr(kind, name, counted(getattr(kind, name)))


def seen_after(kind: Kind, data: Any) -> object:
    """What is loaded after data were saved."""
    catalog = catalog_of(kind, "memory://another")
    catalog.save("entry", data)
    return kind.seen(catalog.load("entry"))


def test_folder_with_files_of_others_is_refused_and_kept(root: str) -> None:
    dataset = ModelDataset(filepath=f"{root}/model", trusted=["tests"])
    system, path = fsspec.core.url_to_fs(f"{root}/model/mine.pt")
    system.makedirs(system._parent(path), exist_ok=True)
    system.pipe_file(path, b"mine")
    (mistake,) = dataset.save_mistakes("model")
    assert "1 other entry in " in mistake
    for data in (built(), NONE):
        with pytest.raises(DatasetError, match="1 other entry in"):
            dataset.save(data)
    assert [each.rpartition("/")[2] for each in system.find(system._parent(path))] == ["mine.pt"]


def test_files_elsewhere_are_not_trusted_more() -> None:
    forget_memory()
    system = fsspec.filesystem("memory")
    program = ExportedProgramDataset(filepath=f"{MEMORY}/model.pt2")
    system.pipe_file("/bucket/model.pt2", b"")
    with pytest.raises(DatasetError, match=r"memory://bucket/model\.pt2 was not loaded: .* runs any code"):
        program.load()

    whole = io.BytesIO()
    torch.save(torch.nn.Linear(2, 1), whole)
    system.pipe_file("/bucket/weights.pt", whole.getvalue())
    entry: dict[str, Any] = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 2, "out_features": 1}}
    with pytest.raises(DatasetError, match=r"memory://bucket/weights\.pt contains .* is not unpickled"):
        ImportedModelDataset(filepath=f"{MEMORY}/weights.pt", **entry).load()

    model = onnx_model("Relu")
    tensor = model.graph.initializer.add(name="w", data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    system.pipe_file("/bucket/model.onnx", model.SerializeToString())
    with pytest.raises(DatasetError, match=r"memory://bucket/model\.onnx refers to other files"):
        OnnxDataset(filepath=f"{MEMORY}/model.onnx").load()
    forget_memory()


def test_error_of_a_storage_is_no_missing_file(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = ModelDataset(filepath="memory://bucket/model")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("Forbidden")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "ls", refuse)
    with pytest.raises(DatasetError, match="Forbidden"):
        dataset.exists()
    (mistake,) = dataset.save_mistakes("baseline_model")  # before the run
    assert mistake.startswith("baseline_model: memory://bucket/model: cannot read it (PermissionError: Forbidden)")
    with pytest.raises(
        DatasetError, match=r"memory://bucket/model: cannot read it \(PermissionError: Forbidden\)"
    ) as info:
        dataset.load()
    assert isinstance(info.value.__cause__, AatError)


def test_arguments_of_open_reach_the_storage() -> None:
    forget_memory()
    how = {"open_args_save": {"compression": "gzip"}, "open_args_load": {"compression": "gzip"}}
    for name in ("model", "onnx", "tensors", "markdown", "table"):
        kind = KINDS[name]
        catalog = catalog_of(kind, "memory://bucket", fs_args=how)
        catalog.save("entry", kind.versions()[0])
        assert kind.seen(catalog.load("entry")) is not None
    system = fsspec.filesystem("memory")
    assert all(system.cat_file(path).startswith(b"\x1f\x8b") for path in system.find("/bucket"))
    forget_memory()


@pytest.mark.parametrize("root", ["memory", *CLOUDS], indirect=True)
def test_images_elsewhere_are_copied_until_they_are_released(root: str) -> None:
    from PIL import Image

    system, folder = fsspec.core.url_to_fs(f"{root}/train")
    for name in ("cats/a.png", "cats/.hidden/b.png", "dogs/deep/c.png", "dogs/notes.txt"):
        with system.open(f"{folder}/{name}", "wb") as file:
            Image.new("RGB", (4, 4)).save(file, "PNG")
    dataset = ImageFolderDataset(filepath=f"{root}/train", size=2)
    assert dataset.exists()
    data = dataset.load()
    assert [(path.name, label) for path, label in data.files] == [("a.png", 0), ("c.png", 1)]
    assert data[1][0].shape == (3, 2, 2)
    assert dataset.load().files == data.files
    assert dataset.preview() is not None
    fingerprint = data_fingerprint(data)
    dataset.release()
    assert not any(path.exists() for path, _ in data.files)
    again = dataset.load()
    assert {path.name for path, _ in again.files} == {"a.png", "c.png"}
    assert data_fingerprint(again) == fingerprint  # a run is found again, wherever the copies are
    system.rm(folder, recursive=True)
    assert not dataset.exists()


def test_image_whose_name_leads_out_of_its_folder_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["/bucket/train/a/one.png", "/bucket/train/../../etc/one.png"]
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "find", lambda *_: names)
    with pytest.raises(DatasetError, match=r"memory://bucket/train/\.\./\.\./etc/one\.png leads out of its folder"):
        ImageFolderDataset(filepath="memory://bucket/train", size=2).load()
