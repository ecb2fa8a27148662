"""Each node on a machine of its own, whose disk is empty: certificate, ledger and frontier survive."""

from __future__ import annotations

import copy
import json
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
import yaml
from kedro.io import AbstractDataset
from kedro.pipeline import Pipeline

from kedro_aat.certificate.ledger import CertificateLedger, is_of_split
from kedro_aat.config import AatSettings
from kedro_aat.datasets.handles import CertificateLedgerDataset, CheckpointStoreDataset, TensorBoardDataset
from kedro_aat.errors import InterruptedRunError, LostLedgerError, MissingRunError
from kedro_aat.export.onnx_file import to_onnx
from kedro_aat.pipelines.aat import create_pipeline
from kedro_aat.pipelines.digits.pipeline import create_pipeline as create_digits_pipeline
from kedro_aat.testing.training import images, small_net
from kedro_aat.training.checkpoints import CheckpointStore, Mirror
from tests.projects import Project
from tests.servers import ObjectStore

COLUMNS = ["epoch", "requested_rate", "achieved_rate", "metric", "loss"]
PIPELINE = create_pipeline()
FIRST_STAGE = PIPELINE.to_nodes("finetune_adaptively")
SETTINGS: dict[str, Any] = {
    "rehearsal": False,
    "budget": {"max_drop": 0.4},
    "certificate": {},
    "compression": {"algorithm": "magnitude_sparsity"},
    "search": {"kind": "frontier", "maximal_total_epochs": 4},
    "second_stage": None,
    "training": {
        "batch_size": 16,
        "baseline_check": "off",
        "device": "cpu",
        "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05, "momentum": 0.9}},
        "metric": {
            "class_path": "torchmetrics.classification.MulticlassAccuracy",
            "init_args": {"num_classes": 4, "average": "micro"},
        },
    },
    "export": {"latency_seconds": 0.01, "objective": "rate"},
}


class Machine:
    """Runs nodes on a disk that no other machine sees. Only the catalog's values come from others.

    Args:
        folder: The disk, which is empty at first.
        travelling: Values by the names of the catalog; nodes add theirs.
        mirror: URL of the mirror of the checkpoints; None for none.
        ledger: Place of the ledger; None for a file on the disk.
    """

    def __init__(self, folder: Path, travelling: dict[str, Any], mirror: str | None, ledger: str | None) -> None:
        self._values = travelling
        self._handles: Mapping[str, AbstractDataset[Any, Any]] = {
            "checkpoint_store": CheckpointStoreDataset(filepath=str(folder / "checkpoints"), mirror=mirror),
            "tensorboard_log": TensorBoardDataset(filepath=str(folder / "tensorboard")),
            "certificate_ledger": CertificateLedgerDataset(filepath=ledger or str(folder / "ledger.json")),
        }

    def run(self, pipeline: Pipeline) -> None:
        for node in pipeline.nodes:
            # A node changes its controller in place, and what travels is as it was saved.
            inputs = [
                self._handles[name].load() if name in self._handles else copy.deepcopy(self._values[name])
                for name in node.inputs
            ]
            outputs = node.func(*inputs)
            self._values.update(zip(node.outputs, outputs if len(node.outputs) > 1 else [outputs], strict=True))


def started() -> dict[str, Any]:
    splits = {f"{name}_data": images(48, seed=seed) for seed, name in enumerate(("train", "validation", "test"))}
    settings = AatSettings.model_validate(SETTINGS)
    return {**splits, "baseline_model": small_net().eval(), "params:aat": settings}


class Ended(NamedTuple):
    """A run with a machine for each node."""

    values: dict[str, Any]
    mirror: str
    ledger: str


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    folder = tmp_path_factory.mktemp("disks")
    mirror, ledger = f"memory://{uuid.uuid4().hex}", f"sqlite:///{folder}/ledger.db"
    values = started()
    values["compressed_onnx"] = to_onnx(
        small_net().eval(), values["test_data"]["inputs"][:1]
    )  # quicker than the export
    values |= dict.fromkeys(("export_report", *(f"compressed_{name}" for name in ("openvino", "executorch", "litert"))))
    for number, node in enumerate([*FIRST_STAGE.nodes, *PIPELINE.only_nodes("certify_model").nodes]):
        Machine(folder / f"{number}", values, mirror, ledger).run(Pipeline([node]))
    return Ended(values, mirror, ledger)


def test_certificate_ledger_and_frontier_survive(ended: Ended, tmp_path: Path) -> None:
    assert ended.values["certificate"]["baseline"] is not None
    splits = {name: entry for name, entry in CertificateLedger(ended.ledger).entries().items() if is_of_split(name)}
    (entry,) = splits.values()
    assert entry.result is not None
    run = ended.values["search_result"]["run"]
    store = CheckpointStore(tmp_path, Mirror(ended.mirror))
    store.require(run)
    kept = store.numbers_of(run)
    assert {0, ended.values["search_result"]["best_checkpoint"]} < {*kept}
    assert [store.load(run, number).number for number in kept] == kept


def test_interrupted_search_goes_on_on_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    training = {**SETTINGS["training"], "on_epoch": "tests.pipelines.aat.stopping.after_two_epochs"}
    settings = AatSettings.model_validate({**SETTINGS, "training": training})
    mirror, ledger = f"memory://{uuid.uuid4().hex}", f"sqlite:///{tmp_path}/ledger.db"
    expected, values = ({**started(), "params:aat": settings} for _ in range(2))
    Machine(tmp_path / "single", expected, None, None).run(FIRST_STAGE)
    monkeypatch.setenv("STOPS", "1")
    with pytest.raises(InterruptedRunError):
        Machine(tmp_path / "one", values, mirror, ledger).run(FIRST_STAGE)
    monkeypatch.delenv("STOPS")
    Machine(tmp_path / "two", values, mirror, ledger).run(FIRST_STAGE.only_nodes("finetune_adaptively"))
    trajectory = values["search_trajectory"]
    pd.testing.assert_frame_equal(trajectory[COLUMNS], expected["search_trajectory"][COLUMNS])
    assert caplog.text.count(" epoch 1  rate ") == 2  # not again on the last machine
    assert caplog.text.count(" epoch 3  rate ") == 2
    assert values["search_result"]["run"] == expected["search_result"]["run"]


def test_ledger_on_a_disk_of_its_own_is_one_that_is_lost(ended: Ended, tmp_path: Path) -> None:
    values = dict(ended.values)
    with pytest.raises(
        LostLedgerError, match=r"does not know the baseline that evaluate_baseline registered in sqlite"
    ):
        Machine(tmp_path, values, ended.mirror, None).run(PIPELINE.only_nodes("certify_model"))
    assert not (tmp_path / "ledger.json").exists()


def test_new_run_notices_that_the_ledger_was_lost(tmp_path: Path) -> None:
    first = FIRST_STAGE.to_nodes("evaluate_baseline")
    mirror = f"memory://{uuid.uuid4().hex}"
    disks = {name: tmp_path / name for name in ("one", "two")}
    for _ in range(2):
        Machine(disks["one"], started(), mirror, None).run(first)
    for disk in disks.values():  # of which one has lost it, and another one never had it
        (disk / "ledger.json").unlink(missing_ok=True)
        with pytest.raises(LostLedgerError, match=f"remove {disk}/checkpoints/ledgers/.*json, and its copy {mirror}"):
            Machine(disk, started(), mirror, None).run(first)
    (file,) = disks["two"].glob("checkpoints/ledgers/*.json")
    file.unlink()
    Machine(disks["two"], started(), mirror, None).run(first)


@pytest.mark.parametrize("node", ["finetune_second_stage", "export_model"])
def test_store_without_the_run_ends_a_node(ended: Ended, tmp_path: Path, node: str) -> None:
    run = ended.values["search_result"]["run"]
    settings = AatSettings.model_validate({**SETTINGS, "second_stage": {}})
    skipped = {"outcome": "skipped"}
    values = {
        **ended.values,
        "params:aat": settings,
        **dict.fromkeys(("second_stage_controller", "third_stage_controller")),
        **dict.fromkeys(("second_stage_result", "third_stage_result"), skipped),
    }
    with pytest.raises(MissingRunError, match=f"does not have the run {run}, which the search's result names"):
        Machine(tmp_path, values, None, ended.ledger).run(PIPELINE.only_nodes(node))


# --- through `kedro` commands, each in a process of its own, with S3 ---------------------------------------------

# What nodes write by themselves; all else is in the catalog.
HANDLES = ("06_models/checkpoints", "06_models/baseline_checkpoints", "08_reporting/tensorboard")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_node_in_a_process_with_a_disk_of_its_own(finished: Project, store: ObjectStore, tmp_path: Path) -> None:
    bucket = store.bucket(f"disks-{uuid.uuid4().hex}")
    entries = {
        f"{prefix}checkpoint_store": {
            "type": "kedro_aat.datasets.handles.CheckpointStoreDataset",
            "filepath": f"data/06_models/{prefix}checkpoints",
            "mirror": f"{bucket}/{prefix}checkpoints",
            "credentials": "object_store",
        }
        for prefix in ("", "baseline_")
    }
    entries["certificate_ledger"] = {
        "type": "kedro_aat.datasets.handles.CertificateLedgerDataset",
        "filepath": f"{bucket}/ledger",
        "credentials": "object_store",
    }
    travelling = tmp_path / "travelling"
    shutil.copytree(finished.folder / "data/01_raw", travelling / "01_raw")

    def run(folder: Path, start: Callable[[Project], str]) -> str:
        """Runs a command on a machine of its own, which is gone afterwards."""
        project = Project.create(folder)
        shutil.copytree(travelling, folder / "data", dirs_exist_ok=True)
        (folder / "conf/local/catalog.yml").write_text(yaml.safe_dump(entries))
        (folder / "conf/local/credentials.yml").write_text(yaml.safe_dump({"object_store": store.options}))
        output = start(project)
        for handle in HANDLES:
            shutil.rmtree(folder / "data" / handle, ignore_errors=True)
        assert not (folder / "data/07_model_output/certificate_ledger.json").exists()
        shutil.copytree(folder / "data", travelling, dirs_exist_ok=True)
        shutil.rmtree(folder)
        return output

    pipeline = create_digits_pipeline() + create_pipeline()
    for number, node in enumerate(pipeline.nodes):
        name = node.name
        run(tmp_path / f"machine-{number}", lambda project, name=name: project.run("--nodes", name))  # type: ignore[misc]
    summary = json.loads((travelling / "08_reporting/aat_summary.json").read_text())
    for key in ("outcome", "epochs"):
        assert summary[key] == finished.summary[key]
    trajectory = pd.read_parquet(travelling / "08_reporting/trajectory.parquet")
    pd.testing.assert_frame_equal(trajectory[COLUMNS], finished.trajectory[COLUMNS])
    assert summary["certificate"] == finished.summary["certificate"]
    onnx = "06_models/compressed_model.onnx"
    assert (travelling / onnx).read_bytes() == (finished.folder / "data" / onnx).read_bytes()
    ledger = CertificateLedger(f"{bucket}/ledger", store.options)
    assert len([name for name in ledger.entries() if is_of_split(name)]) == 1

    another = {"aat.seed": 7, "aat.search.maximal_total_epochs": 2, "aat.second_stage": "null"}
    output = run(tmp_path / "another", lambda project: project.run("--from-nodes", "evaluate_baseline", **another))
    assert "the test split was already read on 20" in " ".join(output.split())
