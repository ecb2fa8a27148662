"""A job of seconds through the whole pipeline, for any settings that are valid by their schema."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Pipeline
from kedro.runner import SequentialRunner

from kedro_aat.config import AatSettings
from kedro_aat.datasets.handles import CertificateLedgerDataset, CheckpointStoreDataset, TensorBoardDataset
from kedro_aat.datasets.recipe import build_module
from kedro_aat.imports import Imported
from kedro_aat.pipelines.aat.pipeline import create_pipeline
from kedro_aat.testing.training import images
from tests.fuzzing.schema import example_of

PIPELINE: Pipeline = create_pipeline()
SEARCH = PIPELINE.to_nodes("finetune_third_stage")
FIRST_SEARCH = PIPELINE.to_nodes("finetune_adaptively")
SMALL = AatSettings.model_validate(
    {
        "budget": {"max_drop": 0.3},
        "search": {"kind": "frontier", "maximal_total_epochs": 3},
        "training": {
            "metric": {"class_path": "torchmetrics.classification.MulticlassAccuracy", "init_args": {"num_classes": 4}},
            "device": "cpu",
            "num_threads": 1,
        },
    }
)
_SCHEMA = AatSettings.model_json_schema()
_METRICS = ("MulticlassAccuracy", "MulticlassF1Score", "MulticlassAUROC")
_OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.05, "momentum": 0.9, "nesterov": True},
    "AdamW": {"lr": 1e-3},
    "RMSprop": {"lr": 1e-3},
}


def draw_settings(rng: random.Random) -> AatSettings:
    """Draws settings that are valid by the schema and of a size for a test; draws again if a rule refuses them.

    Whatever is drawn stays, but for what names something (functions, layers, devices), what would take minutes
    (numbers of epochs and of measurements), and what ends the process on purpose.
    """
    while True:
        drawn = example_of(_SCHEMA, rng)
        drawn["budget"] = {"max_drop": rng.choice((0, 0.05, 1)) if rng.random() < 0.5 else 0.3}
        drawn["training"] = {**drawn["training"], **_training(drawn["training"], rng)}
        for stage in (drawn, *(drawn.get(name) or {} for name in ("second_stage", "third_stage"))):
            stage["search"] = {**stage.get("search", {"kind": "frontier"}), "maximal_total_epochs": rng.choice((1, 3))}
        drawn["export"] = {**drawn.get("export", {}), "latency_seconds": 0.01, "batch_sizes": [1, 3], "openvino": False}
        drawn["export"].pop("limits", None)
        drawn.pop("choose", None)
        _name_layers(drawn, rng)
        try:
            return AatSettings.model_validate(drawn)
        except ValueError:
            continue


def _training(drawn: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    functions = ("train_epoch", "validate", "configure_optimizers", "early_stopping", "update_learning_rate")
    name = rng.choice(list(_OPTIMIZERS))
    metric = f"torchmetrics.classification.{rng.choice(_METRICS)}"
    schedulers = (None, {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 1}})
    bounded = {"num_bootstrap_resamples": 100, "batch_norm_adaptation_batches": 10, "batch_size": 100}
    return {
        **dict.fromkeys(functions),
        **{key: min(drawn[key], most) for key, most in bounded.items() if key in drawn},
        **({"step_timeout_seconds": None} if "step_timeout_seconds" in drawn else {}),
        "metric": {"class_path": metric, "init_args": {"num_classes": 4}},
        "optimizer": {"class_path": f"torch.optim.{name}", "init_args": _OPTIMIZERS[name]},
        "scheduler": rng.choice(schedulers),
        "loss": "torch.nn.CrossEntropyLoss",
        "higher_is_better": rng.choice((None, True)),
        "device": "cpu",
        "compile": False,
        "num_workers": 0,
        "num_threads": 1,
    }


def _name_layers(settings: Any, rng: random.Random) -> None:
    """Replaces made-up names of layers by names that exist, most of the time."""
    if isinstance(settings, dict):
        for key, value in settings.items():
            if key in ("ignored_scopes", "target_scopes") and value and rng.random() < 0.8:
                settings[key] = [rng.choice(("conv", "stem", "classifier", "{re}.*c.*", "stem.*"))]
            elif key == "group":
                settings[key] = None  # the examples have none
            elif key == "pattern" and value:
                settings[key] = rng.choice(("2:4", "1:2", "1:4"))
            else:
                _name_layers(value, rng)
    elif isinstance(settings, list):
        for value in settings:
            _name_layers(value, rng)


def run_job(settings: AatSettings, folder: Path, pipeline: Pipeline = PIPELINE) -> None:
    """Runs the pipeline, or its first nodes.

    Args:
        settings: Settings of the pipeline.
        folder: An empty folder for what the nodes write while they run.
        pipeline: The nodes.
    """
    torch.manual_seed(0)
    # The model is not trained, and such a baseline is questioned.
    training = settings.training.model_copy(update={"baseline_check": "off"})
    settings = settings.model_copy(update={"training": training})
    arguments = {"num_classes": 4, "width": 4}
    model = build_module(Imported(class_path="kedro_aat.testing.training.SmallNet", init_args=arguments)).eval()
    splits = {f"{name}_data": images(24, seed=seed) for seed, name in enumerate(("train", "validation", "test"))}
    catalog = DataCatalog(
        {
            **{name: MemoryDataset(split) for name, split in splits.items()},
            "baseline_model": MemoryDataset(model),
            "params:aat": MemoryDataset(settings, copy_mode="assign"),
            "checkpoint_store": CheckpointStoreDataset(filepath=str(folder / "store")),
            "tensorboard_log": TensorBoardDataset(filepath=str(folder / "log")),
            "certificate_ledger": CertificateLedgerDataset(filepath=str(folder / "ledger.json")),
        }
    )
    SequentialRunner().run(pipeline, catalog)
