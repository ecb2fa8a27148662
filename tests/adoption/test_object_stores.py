"""Before a run, each object store is asked whether it answers and has the bucket; and credentials must be there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kedro.config import OmegaConfigLoader
from kedro.io import DataCatalog
from kedro.pipeline import Node, Pipeline
from kedro_datasets.json import JSONDataset

from kedro_aat.adoption.checks import data_mistakes
from kedro_aat.adoption.credentials import credentials_mistakes, require_credentials
from kedro_aat.datasets.handles import CertificateLedgerDataset, CheckpointStoreDataset
from kedro_aat.errors import ConfigurationError
from tests.adoption.demo import Demo
from tests.servers import ObjectStore


def make(store: Any, ledger: Any) -> tuple[int, int]:
    return 1, 2


PIPELINE = Pipeline([Node(make, ["store", "ledger"], ["first", "second"])])


def _catalog(root: str, options: dict[str, Any], folder: Path) -> DataCatalog:
    datasets = {
        "store": CheckpointStoreDataset(filepath=str(folder), mirror=f"{root}/checkpoints", credentials=options),
        "ledger": CertificateLedgerDataset(filepath=f"{root}/ledger", credentials=options),
        "first": JSONDataset(filepath=f"{root}/first.json", credentials=options),
        "second": JSONDataset(filepath=f"{root}/second.json", credentials=options),
    }
    return DataCatalog(datasets)


def test_a_bucket_that_does_not_exist_is_one_mistake(store: ObjectStore, tmp_path: Path) -> None:
    root = store.bucket(tmp_path.name)
    assert data_mistakes(PIPELINE, _catalog(f"{root}/new/folder", store.options, tmp_path)) == []
    (mistake,) = data_mistakes(PIPELINE, _catalog(f"{root}-absent/folder", store.options, tmp_path))
    bucket = f"{root}-absent".partition("://")[2]
    assert mistake.startswith(f"first: {root}-absent/folder/first.json cannot be used, because there is no bucket")
    assert f"or container {bucket}. Create it" in mistake
    assert mistake.endswith("3 more in this bucket: ledger, second, store")


@pytest.mark.parametrize("lacking", ["store", "ledger"])
def test_the_bucket_of_a_handle_is_asked_for(s3: ObjectStore, tmp_path: Path, lacking: str) -> None:
    root = s3.bucket(tmp_path.name)
    catalog = _catalog(root, s3.options, tmp_path)
    catalog[lacking] = _catalog(f"{root}-absent", s3.options, tmp_path)[lacking]
    (mistake,) = data_mistakes(PIPELINE, catalog)
    assert mistake.startswith(f"{lacking}: {root}-absent/")


def test_a_store_that_does_not_answer_is_one_mistake(tmp_path: Path) -> None:
    client = {"endpoint_url": "http://127.0.0.1:9"}
    options = {"key": "k", "secret": "s", "client_kwargs": client, "config_kwargs": {"retries": {"max_attempts": 0}}}
    (mistake,) = data_mistakes(PIPELINE, _catalog("s3://bucket", options, tmp_path))
    assert mistake.startswith("first: s3://bucket/first.json cannot be reached (EndpointConnectionError: ")
    assert "credentials.yml of conf/base, or of the environment that --env names" in mistake


def _loader(folder: Path, env: str | None = None) -> OmegaConfigLoader:
    return OmegaConfigLoader(str(folder), env=env, base_env="base", default_run_env="local")


def test_missing_credentials_are_one_mistake_with_the_entry_and_the_files(tmp_path: Path) -> None:
    for env, name, text in (
        ("base", "catalog", "b: {type: X, credentials: bucket}\na: {type: Y, dataset: {credentials: bucket}}\n"),
        ("base", "catalog_factory", '"{name}.c": {type: X, credentials: bucket}\n'),
        ("local", "credentials", "other: {key: k}\n"),
        ("prod", "credentials", "bucket: {key: k}\n"),
    ):
        (tmp_path / env).mkdir(exist_ok=True)
        (tmp_path / env / f"{name}.yml").write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        require_credentials(_loader(tmp_path))
    assert caught.value.mistakes == [
        "a: its `credentials: bucket` are missing; they were looked for in conf/base/credentials.yml and "
        "conf/local/credentials.yml. Add the key bucket there, or name the environment that has it with --env. 2 more "
        "entries name it: b, {name}.c"
    ]
    require_credentials(_loader(tmp_path, "prod"))
    assert credentials_mistakes({"a": {"credentials": {"key": "k"}}}, {}, _loader(tmp_path)) == []


def test_commands_say_which_credentials_and_nodes_are_missing(demo: Demo) -> None:
    task = ("--data", "node", "--task", "classification", "--outputs", "2")
    output = demo.kedro("aat", "init", "--namespace", "small", *task)
    assert "returns small.train_data, small.validation_data and small.test_data" in " ".join(output.split())
    demo.write(
        "src/demo/pipelines/data/__init__.py",
        "from kedro.pipeline import Pipeline, node\n\n\n"
        "def make():\n    raise NotImplementedError\n\n\n"
        "def create_pipeline():\n    outputs = ['small.train_data', 'small.validation_data', 'small.test_data']\n"
        "    return Pipeline([node(make, None, outputs, name='split')])\n",
    )
    tagged = demo.kedro("run", "--pipelines", "data,aat_small", "--tags", "training", code=1)
    assert "the node split makes it, which --tags leaves out of this run: run that node, too" in " ".join(
        tagged.split()
    )
    (demo.base / "catalog_other.yml").write_text(
        "another: { type: json.JSONDataset, filepath: 's3://b/another.json', credentials: bucket }\n"
    )
    expected = "another: its `credentials: bucket` are missing; they were looked for in conf/base/credentials.yml and"
    commands = ("run", "--pipelines"), ("aat", "validate", "--pipeline"), ("aat", "runs", "list", "--pipeline")
    for command in commands:
        output = demo.kedro(*command, "aat_small", code=1)
        assert expected in " ".join(output.split())
        assert "Traceback" not in output
