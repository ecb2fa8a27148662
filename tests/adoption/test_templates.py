"""The templates agree with this repository's own configuration, and have everything that the pipeline needs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from kedro.io import DataCatalog
from omegaconf import OmegaConf

from kedro_aat.adoption.checks import parameter_mistakes
from kedro_aat.adoption.templates import TEMPLATES, pipeline_module, template
from kedro_aat.compression.settings import Composite
from kedro_aat.config import AatSettings
from kedro_aat.imports import Imported
from kedro_aat.nncf.parameters import parameters_from_nncf
from kedro_aat.pipelines.aat import create_pipeline
from kedro_aat.validated import Settings
from tests.documents import ROOT

YOURS = {"baseline_model", "train_data", "validation_data", "test_data"}
# Parameters that depend on the model or the data, and therefore differ from those of the digits.
DIFFERENT = {
    "aat.training.optimizer.class_path",
    "aat.training.optimizer.init_args",
    "aat.training.metric.init_args",
    "aat.training.num_threads",
    "aat.compression.round_to",
    "aat.export.objective",
}
# Parameters that differ from the defaults of their settings classes.
NOT_DEFAULT = {
    "aat.budget.max_drop": 0.01,  # the budget has no default
    "aat.compression.round_to": 8,
    "aat.search.maximal_total_epochs": 50,
    "aat.second_stage.search.maximal_total_epochs": 10,
    "aat.training.optimizer": Imported(class_path="torch.optim.AdamW", init_args={"lr": 1e-3}),
    "aat.training.metric": Imported(
        class_path="torchmetrics.classification.MulticlassAccuracy", init_args={"num_classes": 10, "average": "micro"}
    ),
    "aat.certificate": None,  # a first trial does not use up the test split
    "aat.export.objective": "latency",
}


def _loaded(text: str) -> dict[str, Any]:
    loaded = OmegaConf.to_container(OmegaConf.create(text), resolve=True)
    assert isinstance(loaded, dict)
    return {str(key): value for key, value in loaded.items()}


def _own(name: str) -> dict[str, Any]:
    return _loaded((ROOT / "conf/base" / name).read_text())


def _leaves(part: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in part.items():
        if isinstance(value, dict) and key != "init_args":
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _not_default(settings: Settings, written: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """The written values that differ from the defaults of their class."""
    for key, value in written.items():
        nested = getattr(settings, key)
        if isinstance(nested, Settings) and not isinstance(nested, Imported):
            yield from _not_default(nested, value, f"{prefix}{key}.")
        elif nested != type(settings).model_fields[key].get_default(call_default_factory=True):
            yield f"{prefix}{key}", nested


def test_parameters_are_defaults_unless_stated() -> None:
    written = _loaded(template("parameters_aat.yml"))["aat"]
    settings = AatSettings.model_validate(written)  # which refuses unknown keys
    assert dict(_not_default(settings, written, "aat.")) == NOT_DEFAULT


def test_parameters_are_those_of_this_repository() -> None:
    ours = dict(_leaves({"aat": _own("parameters.yml")["aat"]}))
    theirs = dict(_leaves(_loaded(template("parameters_aat.yml"))))
    ours = {key: value for key, value in ours.items() if not key.startswith("aat.certificate.")}
    assert theirs.pop("aat.certificate") is None
    assert theirs.keys() == ours.keys()
    assert {key for key in ours if ours[key] != theirs[key]} == DIFFERENT


def test_catalog_is_that_of_this_repository() -> None:
    ours = _own("catalog.yml")
    theirs = _loaded(template("catalog_aat.yml"))
    outputs = set(theirs) - YOURS
    assert {name: theirs[name] for name in outputs} == {name: ours[name] for name in outputs}
    assert set(theirs) == {name for name in create_pipeline().datasets() if not name.startswith("params:")}


def test_every_alternative_in_the_catalog_can_be_created(tmp_path: Path) -> None:
    text = template("catalog_aat.yml")
    alternatives = [block for block in text.split("\n\n") if "\n# " in block and "#   type:" in block]
    assert len(alternatives) == 4
    for block in alternatives:
        lines = [line.removeprefix("# ") for line in block.splitlines() if line.startswith("# ")]
        start = next(number for number, line in enumerate(lines) if line.endswith(":") and " " not in line)
        catalog = DataCatalog.from_config(_loaded("\n".join(lines[start:])))
        (name,) = catalog.keys()
        assert name in YOURS
        assert catalog[name] is not None


def test_namespace_prefixes_all_names() -> None:
    pipeline = create_pipeline(namespace="small")
    entries = _loaded(template("catalog_aat.yml", "small"))
    assert {name for name in pipeline.datasets() if not name.startswith("params:")} == set(entries)
    assert {name for name in pipeline.inputs() if name.startswith("params:")} == {"params:small.aat"}
    paths = [entry["filepath"] for entry in entries.values()]
    assert all("/small/" in path for path in paths)
    assert len(set(paths)) == len(paths)
    parameters = _loaded(template("parameters_aat.yml", "small"))
    assert parameters["small"] == _loaded(template("parameters_aat.yml"))
    assert not parameter_mistakes(pipeline, parameters)
    assert "\n# small.train_data:" in template("catalog_aat.yml", "small")


def test_two_models_share_nothing() -> None:
    small, large = create_pipeline(namespace="small"), create_pipeline(namespace="large")
    both = small + large
    assert len(both.nodes) == len(small.nodes) + len(large.nodes)
    assert small.datasets().isdisjoint(large.datasets())
    assert both.inputs() == small.inputs() | large.inputs()
    assert {node.namespace for node in both.nodes} == {"small", "large"}
    assert "small.finetune_adaptively" in {node.name for node in both.nodes}


def test_missing_parameters() -> None:
    (mistake,) = parameter_mistakes(create_pipeline(namespace="small"), {"aat": {}})
    assert mistake == "small.aat: these parameters are missing; `kedro aat init` writes them"


def test_namespace_must_be_a_name() -> None:
    with pytest.raises(ValueError, match="must be a name such as small_model, but got 'a b'"):
        template("catalog_aat.yml", "a b")


def test_module_for_find_pipelines() -> None:
    for namespace in (None, "small"):
        names: dict[str, Any] = {}
        exec(pipeline_module(namespace), names)
        assert names["create_pipeline"]().datasets() == create_pipeline(namespace).datasets()


def test_all_templates_are_packaged() -> None:
    pattern = "adoption/templates/*.yml"
    assert pattern in (ROOT / "pyproject.toml").read_text()
    assert {path.name for path in (ROOT / "src/kedro_aat").glob(pattern)} == set(TEMPLATES)


NNCF = {
    "ignored_scopes": ["{re}.*head.*"],
    "accuracy_aware_training": {
        "mode": "adaptive_compression_level",
        "params": {
            "maximal_relative_accuracy_degradation": 1.5,
            "patience_epochs": 2,
            "maximal_total_epochs": 70,
        },
    },
    "compression": [
        {"algorithm": "filter_pruning", "params": {"filter_importance": "L1", "pruning_target": 0.3}},
        {"algorithm": "quantization", "preset": "performance"},
        {"algorithm": "knowledge_distillation", "type": "softmax", "temperature": 2.0},
    ],
}


def _converted(folder: Path, config: dict[str, Any]) -> tuple[str, AatSettings, list[str]]:
    (folder / "config.json").write_text(json.dumps(config))
    text, notes = parameters_from_nncf(folder / "config.json", template("parameters_aat.yml"))
    return text, AatSettings.model_validate(_loaded(text)["aat"]), notes


def test_nncf_file_becomes_parameters(tmp_path: Path) -> None:
    from kedro_aat.nncf.config import AccuracyAwareSettings, NNCFConfig

    text, settings, notes = _converted(tmp_path, NNCF)
    config = NNCFConfig.from_dict(NNCF)
    assert settings.budget.max_relative_drop == 0.015
    assert settings.search == AccuracyAwareSettings.from_config(config).search
    assert settings.compression.algorithm == "composite"
    expected = [part.to_settings(("{re}.*head.*",)) for part in config.parsed.compression]
    assert list(settings.compression.algorithms) == expected
    assert settings.second_stage is None
    assert settings.training.distillation is None
    assert settings.maximal_rate == 0.95
    assert any("prune_first_conv is false" in note for note in notes)
    assert any("preset: performance" in note for note in notes)
    for note in notes:
        assert note in " ".join(text.replace("\n#  ", " ").split())
    assert "    loss: torch.nn.CrossEntropyLoss\n" in text  # what the file does not have stays as in the template


def test_one_algorithm_early_exit_and_a_falling_metric(tmp_path: Path) -> None:
    params = {"maximal_absolute_accuracy_degradation": 0.2, "maximal_total_epochs": 9, "higher_is_better": False}
    config = {
        "accuracy_aware_training": {"mode": "early_exit", "params": params},
        "compression": {"algorithm": "magnitude_sparsity", "params": {"schedule": "exponential"}},
    }
    _, settings, notes = _converted(tmp_path, config)
    assert settings.search.kind == "early_exit"
    assert settings.search.maximal_total_epochs == 9
    assert settings.budget.max_drop == 0.2
    assert settings.compression.algorithm == "magnitude_sparsity"
    assert settings.compression.importance == "normed_abs"
    assert settings.compression.schedule.kind == "exponential"
    assert settings.training.higher_is_better is False
    (note,) = notes
    assert note.startswith(
        "magnitude_sparsity compresses recurrent layers, attention and parameters outside of layers, too"
    )


@pytest.mark.parametrize("scope", ["${head}", "${", r"{re}head\${x}", r"a\\${b}\\", r"{re}\d+$", "$${seed}"])
def test_what_kedro_would_read_as_an_interpolation_is_escaped(scope: str, tmp_path: Path) -> None:
    settings = _converted(tmp_path, {**NNCF, "ignored_scopes": [scope]})[1]
    assert isinstance(settings.compression, Composite)
    assert {part.ignored_scopes[-1] for part in settings.compression.compressing} == {scope}


def test_nncf_file_without_a_budget(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"compression": NNCF["compression"]}))
    with pytest.raises(ValueError, match="this section is required"):
        parameters_from_nncf(tmp_path / "config.json", template("parameters_aat.yml"))
