"""kedro-aat in a project made from Kedro's own template, with a model and data of the tutorial."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.adoption.demo import Demo
from tests.documents import TUTORIAL, blocks, titled_blocks

SHORT = (
    "aat.search.maximal_total_epochs=3,aat.second_stage.search.maximal_total_epochs=1,aat.export.latency_seconds=0.1"
)


def _words(output: str) -> str:
    return " ".join(output.split())


def _require_messages(output: str) -> None:
    """The lines of a run that a user must see, and nothing that says nothing to a user."""
    words = _words(output)
    for line in ("Certificate: a model whose true drop is", "epoch 1 rate 0.", "s per epoch: up to 3 epochs take"):
        assert line in re.sub(r"\w+\.py:\d+ ", "", words)  # Kedro puts the place of the call into the first line
    assert "register_new_resolver" not in words
    last = re.sub(r"\w+\.py:\d+ ", "", words[words.rindex("Pipeline execution completed") :])
    assert re.search(r"Outcome: \w+\.", last)
    assert last.replace(" ", "").endswith("aat_report.html")


def test_two_lines_in_a_handwritten_registry(demo: Demo) -> None:
    demo.write_registry("")
    output = demo.kedro("aat", "init", "--namespace", "small").splitlines()
    lines = (next(line.strip() for line in output if start in line) for start in ("from kedro_aat", "pipelines["))
    assert "no pipeline is called 'aat_small'" in _words(
        demo.kedro("aat", "validate", "--pipeline", "aat_small", code=1)
    )
    demo.write_registry(*lines)
    missing = _words(demo.kedro("aat", "validate", "--pipeline", "aat_small", code=1))
    assert "small.train_data: " in missing
    assert "data/05_model_input/small/train.safetensors is missing" in missing
    assert "small.aat" not in missing  # its parameters are found under the namespace
    nothing = _words(demo.kedro("aat", "choose", "--namespace", "small", code=1))
    assert "There is no search to choose from" in nothing
    assert "`kedro run --pipelines aat_small` creates them" in nothing


def test_from_an_empty_project_to_a_summary(demo: Demo) -> None:
    output = demo.kedro("aat", "init")
    assert "Wrote conf/base/parameters_aat.yml" in output
    assert "Wrote conf/base/catalog_aat.yml" in output
    assert "Wrote src/demo/pipelines/aat/__init__.py" in output

    demo.edit(
        "parameters_aat.yml", ("num_classes: 10", "num_clases: 3"), ("certificate: null", "certificate: { alpha: 5 }")
    )
    mistaken = _words(demo.kedro("aat", "validate", code=1))
    for words in (
        "aat.certificate.alpha: should be less than 0.5, but got 5",
        "baseline_model:",
        "data/06_models/my_model.safetensors is missing",
        "train_data:",
        "data/05_model_input/test.safetensors is missing",
    ):
        assert words in mistaken
    demo.edit("parameters_aat.yml", ("certificate: { alpha: 5 }", "certificate: null"))
    assert "MulticlassAccuracy refuses its init_args: Unexpected keyword arguments: `num_clases`" in _words(
        demo.kedro("aat", "validate", code=1)
    )

    demo.edit("parameters_aat.yml", ("num_clases: 3", "num_classes: 10"))
    for name, text in titled_blocks(TUTORIAL, "python").items():
        demo.write(name, text)
    demo.python("prepare.py")
    (command,) = (
        line for _, text in blocks(TUTORIAL) for line in text.splitlines() if line.startswith("kedro aat init")
    )
    assert "Now run:" in demo.kedro(*command.split()[1:], "--force")
    for name, changes in titled_blocks(TUTORIAL, "yaml").items():
        demo.change(Path(name).name, changes)
    validated = demo.kedro("aat", "validate", cwd=demo.base)  # from any folder of the project
    assert "no mistakes in parameters" in validated
    assert "rehearse: passed in " in validated

    early = demo.kedro("aat", "certify", "--params", SHORT, code=1)
    assert "compressed_onnx, which certify_model reads: finish a run first" in " ".join(early.split())

    output = demo.kedro("run", "--pipelines", "aat", "--params", SHORT)
    assert "Finished steps are not repeated" in _words(output)  # the rehearsal
    _require_messages(output)
    summary = demo.summary
    assert summary["outcome"] in ("within_budget", "infeasible")
    assert summary["baseline"]["test"] is None  # the first trial leaves the test split unread
    assert summary["epochs"]["used"] >= 3
    demo.kedro("aat", "certify", "--params", SHORT)
    assert (demo.summary["certificate"]["examples"] is None) == (summary["outcome"] == "infeasible")
    metrics = json.loads((demo.folder / "data/08_reporting/aat_metrics.json").read_text())
    assert metrics["baseline.validation"] == summary["baseline"]["validation"]


@pytest.mark.slow
def test_messages_arrive_from_other_processes(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEDRO_MP_CONTEXT", "spawn")
    demo.kedro("aat", "init")
    for name, text in titled_blocks(TUTORIAL, "python").items():
        demo.write(name, text)
    demo.python("prepare.py")
    for name, changes in titled_blocks(TUTORIAL, "yaml").items():
        demo.change(Path(name).name, changes)
    run = ("run", "--pipelines", "aat", "--runner", "ParallelRunner", "--params", SHORT)
    _require_messages(demo.kedro(*run))


def test_an_error_of_kedro_in_the_catalog_is_reported_as_a_mistake(demo: Demo) -> None:
    demo.kedro("aat", "init")
    other = demo.base / "catalog_other.yml"
    other.write_text("train_data: { type: pickle.PickleDataset, filepath: data/train.pkl }\n")
    output = demo.kedro("aat", "validate", code=1)
    assert "catalog: ValueError: Duplicate keys found" in _words(output)
    assert "Traceback" not in output
    other.write_text("another: { filepath: data/train.pkl }\n")
    assert "catalog: " in _words(demo.kedro("aat", "validate", code=1))
    other.unlink()
    refused = demo.kedro("aat", "validate", "--params", "aat.seed:3", code=2)
    assert "--params takes key=value pairs separated by commas, but got aat.seed:3" in _words(refused)


def test_init_overwrites_only_with_force(demo: Demo) -> None:
    demo.kedro("aat", "init", "--env", "local")
    kept = demo.folder / "conf/local/parameters_aat.yml"
    kept.write_text("{}")
    (demo.folder / "conf/local/catalog_aat.yml").unlink()
    refused = _words(demo.kedro("aat", "init", "--env", "local", code=1))
    assert "parameters_aat.yml exists already" in refused
    assert kept.read_text() == "{}"
    assert not (demo.folder / "conf/local/catalog_aat.yml").exists()
    demo.kedro("aat", "init", "--env", "local", "--force")
    assert "budget:" in kept.read_text()


def test_nncf_file_of_a_project(demo: Demo) -> None:
    params = {"maximal_absolute_accuracy_degradation": 0.2}
    config = {
        "accuracy_aware_training": {"mode": "adaptive_compression_level", "params": params},
        "compression": {"algorithm": "magnitude_sparsity"},
    }
    demo.write("config.json", json.dumps(config))
    out = ("--out", "conf/local/parameters_aat.yml")
    assert "Wrote conf/local/parameters_aat.yml" in demo.kedro("aat", "from-nncf", "config.json", *out)
    assert "exists already" in demo.kedro("aat", "from-nncf", "config.json", *out, code=1)
    demo.kedro("aat", "from-nncf", "config.json", *out, "--force")
    assert "max_drop: 0.2" in (demo.folder / out[1]).read_text()


def test_model_of_another_library_is_named_once(demo: Demo) -> None:
    demo.kedro("aat", "init")
    demo.write("src/library.py", "from torch import nn\n\n\nclass Net(nn.Linear):\n    pass\n")
    demo.edit("catalog_aat.yml", ("my_project.models.MyModel #", "library.Net #"))
    demo.write(
        "load.py",
        """from pathlib import Path

from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project

from kedro_aat.datasets.recipe import build_module
from kedro_aat.imports import Imported

bootstrap_project(Path.cwd())
with KedroSession.create(Path.cwd()) as session:
    catalog = session.load_context().catalog
    arguments = {"in_features": 2, "out_features": 2}
    catalog.save("compressed_model", build_module(Imported(class_path="library.Net", init_args=arguments)))
    assert type(catalog.load("compressed_model")).__module__ == "library"
""",
    )
    demo.python("load.py")


def test_a_warning_about_kedros_own_code_is_silenced_and_one_about_the_projects_is_not(demo: Demo) -> None:
    own = 'from omegaconf import OmegaConf\n\nOmegaConf.register_new_resolver("own", lambda: 1, replace=True)\n'
    registry = demo.folder / "src/demo/pipeline_registry.py"
    registry.write_text(registry.read_text() + own)
    demo.kedro("aat", "init")
    output = _words(demo.kedro("aat", "validate", code=1))
    assert output.count("UserWarning: register_new_resolver()") == 1
    assert "omegaconf_config.py" not in output
