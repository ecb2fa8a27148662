"""Files that were changed, and every way in which kedro-aat reads them."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from kedro.config import OmegaConfigLoader
from kedro.io import DataCatalog
from kedro_datasets.json import JSONDataset

from kedro_aat import NNCFConfig
from kedro_aat.adoption.choices import show_front
from kedro_aat.adoption.jobs import Job
from kedro_aat.adoption.templates import template
from kedro_aat.adoption.validation import load_config
from kedro_aat.certificate.ledger import CertificateLedger
from kedro_aat.compression.settings import parse_compression
from kedro_aat.config import AatSettings
from kedro_aat.datasets.documents import FigureDataset, MarkdownDataset, PageDataset
from kedro_aat.datasets.exported import ExportedProgramDataset, OnnxDataset, OpenvinoDataset
from kedro_aat.datasets.handles import CertificateLedgerDataset, CheckpointStoreDataset
from kedro_aat.datasets.images import ImageFolderDataset
from kedro_aat.datasets.imported import ImportedModelDataset
from kedro_aat.datasets.model import ControllerDataset, ModelDataset
from kedro_aat.datasets.tabular import TableDataset
from kedro_aat.datasets.tensors import TensorsDataset
from kedro_aat.export import NotExported
from kedro_aat.nncf.config import AccuracyAwareSettings
from kedro_aat.nncf.parameters import parameters_from_nncf
from kedro_aat.pipelines.aat import create_pipeline, nodes
from kedro_aat.reading import read_json
from tests.fuzzing import corpus, job
from tests.fuzzing.harness import Case, our_error
from tests.fuzzing.mutations import damaged

SETTINGS = AatSettings.model_validate(
    {"budget": {"max_drop": 0.05}, "training": {"metric": "torchmetrics.classification.BinaryAccuracy"}}
)
_RESULTS = (
    "baseline_evaluation",
    "search_result",
    "second_stage_result",
    "export_report",
    "certificate",
    "third_stage_result",
)
_NO_FILE = NotExported("there is no file")


def _model(folder: Path, name: str = "model") -> None:
    dataset = ModelDataset(filepath=str(folder / name))
    _all(dataset.load, dataset.preview)


def _controller(folder: Path, name: str = "controller") -> None:
    dataset = ControllerDataset(filepath=str(folder / name))
    _all(dataset.load, dataset.preview)


def _store(folder: Path) -> None:
    dataset = CheckpointStoreDataset(filepath=str(folder / "store"))
    store = dataset.load()
    (run,) = (path.name for path in (folder / "store").iterdir())
    _all(dataset.preview, *(lambda number=number: store.load(run, number) for number in store.numbers_of(run)))


def _ledger(folder: Path) -> None:
    path = folder / "results/certificate_ledger.json"
    known = read_json(path)
    ledger = CertificateLedger(path)
    entry = next(iter(known.values()), None) if isinstance(known, dict) else None
    subject = entry.get("subject") if isinstance(entry, dict) else None

    def use(split: str) -> None:
        ledger.claim(split, subject if isinstance(subject, dict) else {"model": "a"})
        ledger.record(split, {"words": "x"})

    splits = [*known][:1] if isinstance(known, dict) else []
    _all(*(lambda split=split: use(split) for split in (*splits, "new")))
    _all(CertificateLedgerDataset(filepath=str(path)).preview)


def _summary(folder: Path) -> None:
    summary = read_json(folder / "reporting/aat_summary.json")
    trajectory = pd.read_parquet(folder / "reporting/trajectory.parquet")
    layers = pd.read_parquet(folder / "reporting/layer_statistics.parquet")
    _all(
        lambda: nodes.collect_metrics(summary, trajectory),
        lambda: nodes.list_packages(summary),
        lambda: nodes.require_feasible(summary, SETTINGS),
        lambda: nodes.report_run(summary, trajectory, layers, _NO_FILE, SETTINGS),
    )


def _results(folder: Path) -> None:
    """Every node that reads results of other nodes, but for those that read models, too."""
    *results, third = [read_json(folder / f"results/{name}.json") for name in _RESULTS]
    nodes.summarize_run(*results, SETTINGS, third)


def _choose(folder: Path) -> None:
    """`kedro aat choose`."""
    results = {
        name: JSONDataset(filepath=str(folder / f"results/{name}.json"))
        for name in ("baseline_evaluation", "search_result")
    }
    catalog = DataCatalog({**results, "checkpoint_store": CheckpointStoreDataset(filepath=str(folder / "store"))})
    show_front(Job.find("aat", {"aat": create_pipeline()}), catalog)


def _nncf(folder: Path) -> None:
    """`kedro aat from-nncf`, whose parameters must be what the file says, and the loops' configuration."""
    path = next((folder / "nncf").iterdir(), folder / "missing.json")

    def parameters() -> dict[str, Any]:
        text, _ = parameters_from_nncf(path, template("parameters_aat.yml"))
        (folder / "conf/base").mkdir(parents=True)
        (folder / "conf/base/parameters.yml").write_text(text, encoding="utf-8")
        loader = OmegaConfigLoader(str(folder / "conf"), base_env="base", default_run_env="base")
        loaded: dict[str, Any] = load_config(loader, "parameters")["aat"]
        return loaded

    def translate() -> None:
        written = NNCFConfig.from_json(path, warn=False).parsed
        settings = AatSettings.model_validate(parameters())
        algorithms = [each.to_settings(written.ignored_scopes, written.target_scopes) for each in written.compression]
        assert settings.compression == parse_compression([each.model_dump() for each in algorithms])

    _all(translate, lambda: AccuracyAwareSettings.from_config(NNCFConfig.from_json(path)))


def _exported(kind: type[Any], name: str, *, load: bool = True) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        dataset = kind(filepath=str(folder / name))
        _all(dataset.preview, *([dataset.load] if load else []))

    return read


def _tables(folder: Path) -> None:
    path = next(folder.glob("table.*"), folder / "table.csv")
    datasets = [
        TableDataset(filepath=str(path), target="label", classes=["a", "b"]),
        TableDataset(filepath=str(path), target="size", columns=["weight"]),
    ]
    _all(*(way for dataset in datasets for way in (dataset.load, dataset.preview)))


def _images(folder: Path) -> None:
    dataset = ImageFolderDataset(filepath=str(folder / "images"), size=4, channels=1)

    def look() -> None:
        images = dataset.load()
        for index in range(len(images)):
            images[index]

    _all(dataset.preview, look)


def _weights(folder: Path) -> None:
    path = next(folder.glob("weights.*"), folder / "weights.pt")
    dataset = ImportedModelDataset(
        class_path="torch.nn.Linear",
        init_args={"in_features": 2, "out_features": 2},
        filepath=str(path),
        key="state" if path.suffix == ".pt" else None,
    )
    _all(dataset.load, dataset.preview)


def _all(*ways: Callable[[], object]) -> None:
    """Takes every way, so that a mistake that one of them reports hides none in another."""
    errors = []
    for way in ways:
        try:
            way()
        except Exception as error:
            if our_error(error) is None:
                raise
            errors.append(error)
    if errors:
        raise errors[0]


@dataclass(frozen=True)
class Reader:
    """Files that are read together.

    Attributes:
        read: Reads them, from a folder.
        copied: Files and folders of the corpus that it reads besides the changed file.
        changed: Patterns of the files that are changed, one in each case.
    """

    read: Callable[[Path], None]
    copied: tuple[str, ...]
    changed: tuple[str, ...]


_RUN = "search/store/*"
_CHECKPOINT = "store/*/checkpoint-*"
READERS = {
    "recipe": Reader(_model, ("model",), ("model/recipe.json",)),
    "weights of a model": Reader(_model, ("model",), ("model/*.safetensors",)),
    "controller": Reader(_controller, ("controller",), ("controller/*",)),
    "quantized controller": Reader(
        lambda folder: _controller(folder, "quantized"), ("quantized",), ("quantized/*.json",)
    ),
    "checkpoints": Reader(_store, ("store",), (f"{_CHECKPOINT}/*.json", f"{_CHECKPOINT}/*.safetensors")),
    "search": Reader(
        lambda folder: job.run_job(job.SMALL, folder / "search", job.FIRST_SEARCH),
        ("search",),
        (f"{_RUN}/*.json", f"{_RUN}/checkpoint-*/*.json", f"{_RUN}/checkpoint-*/*.safetensors"),
    ),
    "optimizer state": Reader(_store, ("store",), (f"{_CHECKPOINT}/training.pt",)),
    "ledger": Reader(_ledger, ("results",), ("results/certificate_ledger.json",)),
    "summary": Reader(_summary, ("reporting",), ("reporting/aat_summary.json",)),
    "results": Reader(_results, ("results",), tuple(f"results/{name}.json" for name in _RESULTS)),
    "choose": Reader(
        _choose,
        ("results", "store"),
        ("results/baseline_evaluation.json", "results/search_result.json"),
    ),
    "NNCF": Reader(_nncf, (), ("nncf/*.json",)),
    "ONNX": Reader(_exported(OnnxDataset, "model.onnx"), (), ("model.onnx",)),
    "program": Reader(_exported(ExportedProgramDataset, "model.pt2", load=False), (), ("model.pt2",)),
    "OpenVINO": Reader(_exported(OpenvinoDataset, "model.xml"), ("model.bin",), ("model.xml",)),
    "tensors": Reader(_exported(TensorsDataset, "split.safetensors"), (), ("split.safetensors",)),
    "table": Reader(_tables, (), ("table.*",)),
    "imported weights": Reader(_weights, (), ("weights.*",)),
}
# No mutation knows these formats; they are only damaged.
DAMAGED_ONLY = {
    "images": Reader(_images, ("images",), ("images/*/*",)),
    "model card": Reader(_exported(MarkdownDataset, "model.md"), (), ("model.md",)),
    "page": Reader(_exported(PageDataset, "reporting/aat_report.html"), (), ("reporting/aat_report.html",)),
    "figure": Reader(_exported(FigureDataset, "reporting/frontier.json"), (), ("reporting/frontier.json",)),
}


def mutation(reader: Reader, source: Path) -> Case:
    """Cases in which one file says something else."""

    def case(rng: random.Random, folder: Path) -> None:
        corpus.mutate(_one_file(reader, source, rng, folder), rng)
        reader.read(folder)

    return case


def damage(reader: Reader, source: Path) -> Case:
    """Cases in which one file is damaged, missing, or a folder."""

    def case(rng: random.Random, folder: Path) -> None:
        path = _one_file(reader, source, rng, folder)
        contents = path.read_bytes()
        kind = rng.random()
        if kind < 0.1:
            path.unlink()
        if kind < 0.05:
            path.mkdir()
        elif kind >= 0.1:
            path.write_bytes(damaged(contents, rng))
        with suppress(FileNotFoundError):  # of the reader itself, which has nothing to read then
            reader.read(folder)

    return case


def _one_file(reader: Reader, source: Path, rng: random.Random, folder: Path) -> Path:
    """Copies what a reader reads, and returns the file to change."""
    for name in reader.copied:
        copy = shutil.copytree if (source / name).is_dir() else shutil.copy
        copy(source / name, folder / name)
    changed = rng.choice(sorted(path for pattern in reader.changed for path in source.glob(pattern)))
    target = folder / changed.relative_to(source)
    target.parent.mkdir(exist_ok=True, parents=True)
    shutil.copy(changed, target)
    return target
