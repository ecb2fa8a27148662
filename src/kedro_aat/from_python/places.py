"""Where each dataset of the pipeline lies: in memory, or in the folder of the call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from kedro.io import AbstractDataset, MemoryDataset
from kedro.pipeline import Pipeline

from kedro_aat.adoption.templates import template
from kedro_aat.adoption.torchrun import led_by_rank_0

Datasets = dict[str, AbstractDataset[Any, Any]]

# What a user opens lies in the folder itself, all else in a folder inside.
DELIVERED = (
    "compressed_model",
    "compressed_onnx",
    "compressed_onnx_raw",
    "compressed_program",
    "compressed_openvino",
    "compressed_executorch",
    "compressed_litert",
    "model_card",
    "model_sbom",
    "aat_report",
    "aat_summary",
    "trajectory",
)
INNER = "run"

# Controllers know their models by a recipe, which a caller need not give.
_IN_MEMORY = ("compression_controller", "fine_tuned_controller", "second_stage_controller", "third_stage_controller")


def datasets_in(
    folder: Path,
    pipeline: Pipeline,
    given: Mapping[str, Any],
    recipe: Mapping[str, Any] | None,
    results: Path | None = None,
) -> Datasets:
    """All datasets of a pipeline.

    Args:
        folder: Where its files go.
        pipeline: The pipeline, whose catalog `kedro aat init` writes.
        given: Name -> what the caller gave, which stays in memory.
        recipe: How to build the model; without it the delivered model stays in memory.
        results: Where the files go that nodes write; `folder` by default. Checkpoints and ledger stay in `folder`.
    """
    entries: dict[str, dict[str, Any]] = yaml.safe_load(template("catalog_aat.yml"))
    found: Datasets = {}
    for name in pipeline.datasets():
        if name in given:
            found[name] = MemoryDataset(given[name], copy_mode="assign")
        elif name not in entries or name in _IN_MEMORY or (name == "compressed_model" and recipe is None):
            found[name] = MemoryDataset()
        else:
            is_shared = name not in pipeline.all_outputs()  # what nodes write while they run
            path = _path(folder if is_shared or results is None else results, name, entries[name])
            more = {"recipe": dict(recipe)} if name == "compressed_model" and recipe is not None else {}
            config = {**entries[name], **more, "filepath": str(path)}
            found[name] = AbstractDataset.from_config(name, config)
    return found


def delivered_files(folder: Path) -> dict[str, Path]:
    """Name of the dataset -> file or folder, of what there is for the user."""
    entries = yaml.safe_load(template("catalog_aat.yml"))
    paths = {name: _path(folder, name, entries[name]) for name in DELIVERED}
    return {name: path for name, path in paths.items() if path.exists()}


def run_nodes(pipeline: Pipeline, datasets: Datasets, names: Iterable[str] | None = None) -> None:
    """Runs nodes one after the other, as Kedro's own runner does; in rank 0, if there are several.

    To import that runner would configure the logging of the caller's process.

    Args:
        pipeline: The pipeline.
        datasets: Its datasets.
        names: Nodes to run; None for all.
    """
    with led_by_rank_0(pipeline, datasets.get) as ranks:
        for node in pipeline.nodes:  # in the order in which they need each other
            if names is not None and node.name not in names:
                continue
            inputs = {name: datasets[name].load() for name in node.inputs}
            if ranks is not None:
                ranks.begin(node, inputs)
            returned = node.func(*(inputs[name] for name in node.inputs))
            values = returned if len(node.outputs) > 1 else [returned] * len(node.outputs)
            for name, value in zip(node.outputs, values, strict=True):
                datasets[name].save(value)


def _path(folder: Path, name: str, entry: Mapping[str, Any]) -> Path:
    file = Path(entry["filepath"]).name
    return folder / file if name in DELIVERED else folder / INNER / file
