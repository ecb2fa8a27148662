"""The first things that a user meets: the import, the public names, the commands."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import kedro_aat
from kedro_aat.adoption.commands import aat
from tests.projects import Project

PUBLIC = {
    "EarlyExitCompressionTrainingLoop",
    "AdaptiveCompressionTrainingLoop",
    "BaseEarlyExitCompressionTrainingLoop",
    "TrainingRunner",
    "TrainingLoopStatistics",
    "CompressionStage",
    "Outcome",
    "NNCFConfig",
    "register_default_init_args",
    "create_accuracy_aware_training_loop",
    "create_compressed_model",
    "load_state",
    "nncf_model_input",
    "nncf_model_output",
    "prepare_for_tensorboard",
    "Evaluation",
    "compress",
    "CompressionResult",
}


def _python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_public_names() -> None:
    assert set(kedro_aat.__all__) == PUBLIC
    assert set(dir(kedro_aat)) >= PUBLIC
    for name in PUBLIC:
        assert getattr(kedro_aat, name).__name__ == name
    with pytest.raises(AttributeError, match="NoSuchName"):
        _ = kedro_aat.NoSuchName


@pytest.mark.parametrize("module", ["kedro_aat", "kedro_aat.pipeline_registry", "kedro_aat.config", "kedro_aat.plugin"])
def test_import_does_not_load_torch(module: str) -> None:
    assert _python(f"import sys, {module}; print('torch' in sys.modules)").strip() == "False"


def test_search_needs_neither_torch_nor_kedro() -> None:
    loaded = _python("import sys, kedro_aat.search; print([m for m in ('torch', 'kedro') if m in sys.modules])")
    assert loaded.strip() == "[]"


def test_signatures_are_those_of_nncf() -> None:
    import inspect

    from kedro_aat import AdaptiveCompressionTrainingLoop, EarlyExitCompressionTrainingLoop, create_compressed_model

    def arguments(function: object) -> dict[str, object]:
        parameters = inspect.signature(function).parameters.values()  # type: ignore[arg-type]
        return {parameter.name: parameter.default for parameter in parameters}

    empty = inspect.Parameter.empty
    first = {"nncf_config": empty, "compression_controller": empty, "uncompressed_model_accuracy": empty}
    flags: dict[str, object] = {"lr_updates_needed": True, "verbose": True}
    rates: dict[str, object] = {"minimal_compression_rate": 0.0, "maximal_compression_rate": 0.95}
    dump: dict[str, object] = {"dump_checkpoints": True}
    early, adaptive = arguments(EarlyExitCompressionTrainingLoop), arguments(AdaptiveCompressionTrainingLoop)
    assert list(early.items()) == list((first | flags | dump).items())
    assert list(adaptive.items()) == list((first | flags | rates | dump).items())
    optional = ("configure_optimizers", "dump_checkpoint", "load_checkpoint", "early_stopping")
    run: dict[str, object] = dict.fromkeys(("self", "model", "train_epoch_fn", "validate_fn"), empty)
    run |= {f"{name}_fn": None for name in optional}
    run |= {"tensorboard_writer": None, "log_dir": None, "update_learning_rate_fn": None}
    assert list(arguments(AdaptiveCompressionTrainingLoop.run).items()) == list(run.items())
    created: dict[str, object] = {"model": empty, "config": empty}
    created |= dict.fromkeys(("compression_state", "dummy_forward_fn", "wrap_inputs_fn", "wrap_outputs_fn"))
    created |= {"dump_graphs": False, "example_input": None}
    assert list(arguments(create_compressed_model).items()) == list(created.items())


def test_pipelines_are_registered(project: Project) -> None:
    command = [sys.executable, "-m", "kedro", "registry", "list"]
    listed = subprocess.run(command, cwd=project.folder, check=True, capture_output=True, text=True).stdout
    assert {"- __default__", "- aat", "- digits"} <= set(listed.splitlines())


def test_schema_command(project: Project) -> None:
    command = [sys.executable, "-m", "kedro", "aat", "schema", "schema.json"]
    subprocess.run(command, cwd=project.folder, check=True, capture_output=True)
    schema = json.loads((project.folder / "schema.json").read_text())
    assert {"budget", "search", "training", "compression"} <= set(schema["properties"])


@pytest.mark.parametrize(
    ("subject", "keys"),
    [
        ("settings", {"budget", "search", "training", "compression"}),
        ("summary", {"outcome", "metric", "budget", "baseline", "compressed", "certificate", "epochs", "versions"}),
    ],
)
def test_schema_of_settings_and_summary(subject: str, keys: set[str], tmp_path: Path) -> None:
    path = tmp_path / "folder" / "schema.json"
    done = CliRunner().invoke(aat, ["schema", str(path), "--of", subject])
    assert done.exit_code == 0, done.output
    assert keys <= set(json.loads(path.read_text())["properties"])
