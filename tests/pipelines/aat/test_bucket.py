"""Runs whose every output is in a bucket."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from kedro.io import Version

from kedro_aat.datasets.model import ModelDataset
from tests.projects import Project
from tests.servers import ObjectStore


class Moved:
    """A project whose datasets are in a bucket.

    Attributes:
        project: The project.
        url: Address of the bucket.
        temporary: Folder in which its runs make temporary files, and which has the checkpoints beside their mirror.
    """

    def __init__(self, project: Project, store: ObjectStore, name: str, versioned: Collection[str] = ()) -> None:
        self.project, self._store = project, store
        self.url = store.bucket(name)
        self.temporary = project.folder.parent / f"{name}-temporary"
        self.temporary.mkdir()
        entries: dict[str, Any] = yaml.safe_load((project.folder / "conf/base/catalog.yml").read_text())
        for key, entry in entries.items():
            place = {"filepath": f"${{globals:root}}/{entry['filepath']}", "credentials": "bucket"}
            if entry["type"].endswith("CheckpointStoreDataset"):
                place = {**place, "filepath": str(self.temporary / entry["filepath"]), "mirror": place["filepath"]}
            entry.update(place)
            if key in versioned:
                entry["versioned"] = True
        (project.folder / "conf/local/catalog.yml").write_text(yaml.safe_dump(entries))
        (project.folder / "conf/base/globals.yml").write_text(f"root: {self.url}\n")
        (project.folder / "conf/local/credentials.yml").write_text(yaml.safe_dump({"bucket": store.options}))

    def upload(self, folder: str) -> None:
        """Moves a folder of the project to the bucket, and the checkpoints to their place on the disk."""
        for file in sorted((self.project.folder / folder).rglob("*")):
            name = str(file.relative_to(self.project.folder))
            if not file.is_file() or file.name.startswith("."):
                continue
            if "checkpoint" in name:
                target = self.temporary / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read_bytes())
            else:
                self._store.files.pipe_file(f"{self.url}/{name}", file.read_bytes())
            file.unlink()

    def run(self, *arguments: str, **parameters: Any) -> str:
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv("TMPDIR", str(self.temporary))
            return self.project.run(*arguments, **parameters)

    def fail(self, *arguments: str) -> str:
        return self.project.fail(*arguments)

    @property
    def keyed(self) -> dict[str, Any]:
        """The argument of datasets that reach the bucket."""
        return {"credentials": self._store.options}

    @property
    def keys(self) -> set[str]:
        self._store.files.invalidate_cache()
        return {path.partition("/")[2] for path in self._store.files.find(self.url)}

    def read(self, key: str) -> Any:
        return json.loads(self._store.files.cat_file(f"{self.url}/{key}"))

    def on_disk(self) -> list[str]:
        """Names of all files in the project that are data, and of temporary ones that were left."""
        data = [path for path in (self.project.folder / "data").rglob("*") if path.is_file()]
        left = [path for path in self.temporary.iterdir() if path.name != "data"]
        return sorted(path.name for path in (*data, *left) if not path.name.startswith("."))


def test_report_of_a_run_in_a_bucket(finished: Project, s3: ObjectStore, tmp_path: Path) -> None:
    moved = Moved(finished.copy(tmp_path / "project"), s3, "report")
    moved.upload("data")
    before = moved.keys
    made_before = ("tensorboard/", "08_reporting/trajectory.parquet")
    for key in before:
        if key.startswith("data/08_reporting/") and not any(name in key for name in made_before):
            s3.files.rm_file(f"{moved.url}/{key}")
    summary = finished.summary
    output = moved.run("--from-nodes", "describe_layers")
    assert f"Report: {moved.url}/data/08_reporting/aat_report.html" in " ".join(output.split())
    mirrored = {key for key in moved.keys - before if "/checkpoints/" in key}
    assert moved.keys - mirrored == before
    assert moved.read("data/08_reporting/aat_summary.json")["outcome"] == summary["outcome"]
    assert moved.on_disk() == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_whole_run_in_a_bucket(project: Project, finished: Project, store: ObjectStore) -> None:
    moved = Moved(project, store, f"whole-{store.protocol}")
    moved.upload("data/01_raw")
    moved.run("--pipelines", "aat")
    expected = {
        str(path.relative_to(finished.folder))
        for path in (finished.folder / "data").rglob("*")
        if path.is_file() and not path.name.startswith((".", "events.out"))
    }
    own = ("tensorboard/", "checkpoints/", "certificate_ledger.json")
    expected = {name for name in expected if not any(part in name for part in own)}
    for part in own:
        assert any(part in key for key in moved.keys), part
    assert {key for key in moved.keys if not any(part in key for part in own)} == expected
    assert moved.on_disk() == []
    summary = moved.read("data/08_reporting/aat_summary.json")
    for key in ("outcome", "epochs", "certificate"):
        assert summary[key] == finished.summary[key]
    assert summary["compressed"]["parameters"] == finished.summary["compressed"]["parameters"]


@pytest.mark.slow
def test_models_of_two_runs_are_loaded_by_version(finished: Project, s3: ObjectStore, tmp_path: Path) -> None:
    names = ("compressed_model", "compressed_onnx", "export_report", "aat_summary")
    moved = Moved(finished.copy(tmp_path / "project"), s3, "versions", versioned=names)
    moved.upload("data")
    for objective in ("macs", "parameters"):
        moved.run("--nodes", "export_model,summarize_run", **{"aat.export.objective": objective})
    paths = [Path(key) for key in moved.keys]
    old, new = sorted(path.parts[3] for path in paths if path.parts[2:5:2] == ("compressed_model.onnx",) * 2)
    models = [
        ModelDataset(
            filepath=f"{moved.url}/data/06_models/compressed_model", version=Version(version, None), **moved.keyed
        )
        for version in (old, new, None)
    ]
    are_quantized = [any(tensor.dtype == torch.int8 for tensor in each.load().state_dict().values()) for each in models]
    assert are_quantized == [False, True, True]
    for version in (old, new):
        moved.run("--nodes", "report_run", "--load-versions", f"compressed_onnx:{version},aat_summary:{version}")
        content = s3.files.cat_file(f"{moved.url}/data/06_models/compressed_model.onnx/{version}/compressed_model.onnx")
        card = s3.files.cat_file(f"{moved.url}/data/06_models/compressed_model.md").decode()
        assert hashlib.sha256(content).hexdigest() in card
    for node in ("report_run", "collect_metrics", "certify_model"):
        output = moved.fail("--nodes", node, "--load-versions", f"compressed_onnx:{old}")
        assert "compressed_onnx has the SHA-256" in " ".join(output.split())
