"""Configurations that were changed, and those that are valid by their schema."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import yaml
from kedro.config import OmegaConfigLoader

from kedro_aat.adoption.checks import parameter_mistakes
from kedro_aat.adoption.templates import template
from kedro_aat.adoption.validation import load_config
from kedro_aat.config import AatSettings
from kedro_aat.errors import ConfigurationError
from tests.fuzzing import job
from tests.fuzzing.mutations import damaged, json_text, mutated, nested, odd_key_or_value
from tests.fuzzing.schema import example_of

_SCHEMA = AatSettings.model_json_schema()
_TEMPLATE: dict[str, Any] = yaml.safe_load(template("parameters_aat.yml"))["aat"]
_CLASSES: dict[str, Any] = {
    "budget": {"max_relative_drop": 0.02},
    "training": {
        "metric": {"class_path": "torchmetrics.classification.BinaryAccuracy"},
        "validate": "tests.scripted.validate",
        "scheduler": {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 1}},
        "device": "cpu",
    },
    "compression": [
        {"algorithm": "magnitude_sparsity", "pattern": "2:4", "ignored_scopes": ["head", "{re}.*conv.*"]},
        {"algorithm": "quantization", "schedule": {"kind": "multistep", "multistep_rates": [0, 0.5]}},
        {"algorithm": "knowledge_distillation", "type": "mse"},
    ],
    "search": {"kind": "interpolate", "patience_epochs": 2},
    "export": {"batch_sizes": [1, 8], "limits": {"latency_ms": {1: 0.5}, "onnx_bytes": 1000}},
    "choose": {"max_drop": 0.1},
}


def changed_parameters(rng: random.Random, folder: Path) -> None:
    """Parameters as Python data, with `kedro aat validate`'s checks."""
    drawn = example_of(_SCHEMA, rng) if rng.random() < 0.3 else rng.choice((_TEMPLATE, _CLASSES))
    _check({"aat": mutated(drawn, rng, odd=odd_key_or_value)})


def changed_parameter_files(rng: random.Random, folder: Path) -> None:
    """Parameters as a file, which Kedro reads with OmegaConf."""
    base = folder / "conf/base"
    base.mkdir(parents=True)
    if rng.random() < 0.5:
        contents = damaged(template("parameters_aat.yml").encode(), rng)
    elif rng.random() < 0.05:
        contents = yaml.safe_dump({"aat": {"seed": nested(254)}}).encode()
    else:
        # JSON is YAML, nearly. At 100,000 levels, PyYAML's parser, which is in C, ends the process.
        contents = json_text({"aat": mutated(_TEMPLATE, rng)}, rng, levels=2000)
    (base / "parameters.yml").write_bytes(contents)
    if rng.random() < 0.1:
        (base / "parameters_more.yml").write_bytes(contents)  # each key twice
    loader = OmegaConfigLoader(str(folder / "conf"), base_env="base", default_run_env="base")
    _check(load_config(loader, "parameters"))


def _check(parameters: Any) -> None:
    if mistakes := parameter_mistakes(job.PIPELINE, parameters):
        raise ConfigurationError("parameters", mistakes)


def valid_by_schema(rng: random.Random, folder: Path) -> None:
    """Parameters that the JSON Schema accepts; rules on several keys may refuse them."""
    settings = AatSettings.model_validate(example_of(_SCHEMA, rng))
    assert AatSettings.model_validate(settings.model_dump(mode="json", by_alias=True)) == settings


def searched(rng: random.Random, folder: Path) -> None:
    """A search with settings that the schema accepts, to its end."""
    job.run_job(job.draw_settings(rng), folder, job.SEARCH)


def delivered(rng: random.Random, folder: Path) -> None:
    """The whole pipeline with settings that the schema accepts, to its end."""
    job.run_job(job.draw_settings(rng), folder)
