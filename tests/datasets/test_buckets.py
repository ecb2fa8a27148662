"""Datasets in a bucket of a server, with keys from the catalog's credentials."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from kedro.io import DataCatalog, DatasetError
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kedro_aat.datasets.files import FileDataset
from kedro_aat.datasets.handles import CertificateLedgerDataset, CheckpointStoreDataset, TensorBoardDataset
from kedro_aat.datasets.model import ModelDataset
from kedro_aat.export import NotExported
from kedro_aat.testing.store_saving import IDENTITY, checkpoint
from tests.datasets.kinds import KINDS, MORE_KINDS, Kind
from tests.datasets.saved import built
from tests.servers import ObjectStore

# One that replaces several files, one that replaces one, and one that streams a file.
TRIED = {name: (KINDS | MORE_KINDS)[name] for name in ("model", "onnx", "table")}


class Bucket(NamedTuple):
    """An empty bucket.

    Attributes:
        store: Its server.
        url: Protocol and name, such as `s3://bucket`.
    """

    store: ObjectStore
    url: str

    @property
    def credentials(self) -> dict[str, Any]:
        """As they stand in `credentials.yml`."""
        return self.store.options

    @property
    def name(self) -> str:
        return self.url.partition("://")[2]

    @property
    def keys(self) -> list[str]:
        """Names of all objects."""
        self.store.files.invalidate_cache()
        return sorted(path.removeprefix(f"{self.name}/") for path in self.store.files.find(self.name))


@pytest.fixture
def bucket(store: ObjectStore, request: pytest.FixtureRequest) -> Bucket:
    return Bucket(store, store.bucket(request.node.name))


def catalog_of(bucket: Bucket, save: str, load: dict[str, str] | None = None, **more: Any) -> DataCatalog:
    entries = {
        name: kind.entry(f"{bucket.url}/06_models/{kind.name}", credentials="keys", **more)
        for name, kind in TRIED.items()
    }
    return DataCatalog.from_config(entries, {"keys": bucket.credentials}, load_versions=load, save_version=save)


def saved(bucket: Bucket, name: str, kind: Kind, **more: Any) -> dict[str, object]:
    """Saves all versions, and returns what each of them loads."""
    seen = {}
    for number, data in enumerate(kind.versions()):
        if not isinstance(data, NotExported):
            catalog = catalog_of(bucket, f"v{number}", **more)
            catalog.save(name, data)
            seen[f"v{number}"] = kind.seen(catalog.load(name))
    return seen


def test_what_is_saved_in_a_bucket_is_loaded(bucket: Bucket) -> None:
    for name, kind in TRIED.items():
        assert not catalog_of(bucket, "v0").exists(name)
        seen = saved(bucket, name, kind)
        assert catalog_of(bucket, "v9").exists(name)
        assert kind.seen(catalog_of(bucket, "v9").load(name)) == [*seen.values()][-1]
        configuration: tuple[Any, ...] = catalog_of(bucket, "v9").to_config()
        assert kind.seen(DataCatalog.from_config(*configuration).load(name)) == [*seen.values()][-1]
    assert bucket.keys == [
        "06_models/model.onnx",
        "06_models/model/model.safetensors",
        "06_models/model/recipe.json",
        "06_models/split.csv",
    ]


def test_versions_in_a_bucket_are_loaded_by_name(bucket: Bucket) -> None:
    for name, kind in TRIED.items():
        seen = saved(bucket, name, kind, versioned=True)
        for version, expected in seen.items():
            pinned = catalog_of(bucket, "v9", {name: version}, versioned=True)
            assert kind.seen(pinned.load(name)) == expected
        latest = catalog_of(bucket, "v9", versioned=True)[name]
        assert isinstance(latest, FileDataset)
        assert kind.seen(latest.load()) == seen[max(seen)]
        assert latest.list_versions(full_path=False) == sorted(seen, reverse=True)
    assert "06_models/model/v0/model/recipe.json" in bucket.keys
    assert "06_models/model.onnx/v0/model.onnx" in bucket.keys


def test_another_process_is_seen_at_once(bucket: Bucket) -> None:
    reader = ModelDataset(filepath=f"{bucket.url}/model", credentials=bucket.credentials, trusted=["tests"])
    assert not reader.exists()
    # Another client, whose writing does not reach the first one's cache of listings.
    other = {**bucket.credentials, "default_block_size": 6 << 20}
    ModelDataset(filepath=f"{bucket.url}/model", credentials=other).save(built(num_classes=4))
    assert reader.exists()
    assert TRIED["model"].seen(reader.load()) == 4


def test_missing_bucket_is_one_error(bucket: Bucket) -> None:
    url = f"{bucket.store.protocol}://no-such-bucket/model"
    dataset = ModelDataset(filepath=url, credentials=bucket.credentials, trusted=["tests"])
    assert not dataset.exists()
    with pytest.raises(DatasetError, match=rf"{url}: cannot write it \(.*\)\. Check that it can be reached"):
        dataset.save(built())
    with pytest.raises(DatasetError, match=f"Nothing is saved at {url}"):
        dataset.load()


def test_damaged_model_in_a_bucket_is_refused_and_named(bucket: Bucket) -> None:
    dataset = ModelDataset(filepath=f"{bucket.url}/model", credentials=bucket.credentials, trusted=["tests"])
    dataset.save(built())
    system = bucket.store.files
    path = f"{bucket.name}/model/model.safetensors"
    system.pipe_file(path, system.cat_file(path)[:-4] + b"abcd")
    with pytest.raises(DatasetError, match=f"{bucket.url}/model/model.safetensors is damaged: its SHA-256"):
        dataset.load()


def test_recipe_in_a_bucket_is_not_trusted_more(bucket: Bucket) -> None:
    ModelDataset(filepath=f"{bucket.url}/model", credentials=bucket.credentials).save(built())
    with pytest.raises(DatasetError, match=r"recipe names tests\.nets\.SmallNet, but its catalog entry trusts only"):
        ModelDataset(filepath=f"{bucket.url}/model", credentials=bucket.credentials).load()


def test_handles_in_a_bucket(bucket: Bucket, tmp_path: Path) -> None:
    ledger = CertificateLedgerDataset(filepath=f"{bucket.url}/ledger", credentials=bucket.credentials)
    store = CheckpointStoreDataset(
        filepath=str(tmp_path / "one"), mirror=f"{bucket.url}/checkpoints", credentials=bucket.credentials
    )
    assert not ledger.exists()
    assert not store.exists()
    ledger.load().claim("split", {"model": "a"})
    with store.load().open(IDENTITY) as run:
        run.save(checkpoint(3))
    for dataset in (ledger, store):
        dataset.release()
        assert dataset.exists()
    configuration: tuple[Any, ...] = DataCatalog({"ledger": ledger, "store": store}).to_config()
    configuration[0]["store"]["filepath"] = str(tmp_path / "another machine")
    again = DataCatalog.from_config(*configuration)
    assert again.load("ledger").claim("split", {"model": "b"}).subject == {"model": "a"}
    assert again.exists("store")
    with again.load("store").open(IDENTITY) as run:
        assert run.numbers == [3]


def test_tensorboard_log_in_a_bucket(bucket: Bucket, tmp_path: Path) -> None:
    dataset = TensorBoardDataset(filepath=f"{bucket.url}/log", credentials=bucket.credentials)
    assert not dataset.exists()
    writer = dataset.load().writer("run-a")
    for epoch in range(3):
        writer.add_scalar("metric", epoch / 8, epoch)
    writer.flush()
    assert dataset.exists()
    assert json.loads(dataset.preview()) == {"command": f"tensorboard --logdir {bucket.url}/log", "runs": ["run-a"]}
    writer.add_scalar("metric", 1.0, 3)
    writer.close()
    system = bucket.store.files
    system.get(f"{bucket.name}/log/run-a", str(tmp_path), recursive=True)
    events = EventAccumulator(str(tmp_path / "run-a" if (tmp_path / "run-a").exists() else tmp_path))
    events.Reload()
    assert [event.value for event in events.Scalars("metric")] == [0.0, 0.125, 0.25, 1.0]
