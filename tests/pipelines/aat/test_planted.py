"""Files that a stranger planted in a finished project run nothing, whatever command reads them."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from onnx.external_data_helper import set_external_data

from tests.projects import Project, small_parameters

COMMANDS = {
    ("run", "--from-nodes", "finetune_adaptively"): "class_path: planted.Net",
    ("run", "--from-nodes", "report_run"): "refers to other files for 1 of its tensors",
    ("aat", "choose", "--max-drop", "0.3"): "class_path: planted.Net",
    ("aat", "choose"): "",
    ("aat", "validate"): "The recipe names planted.Net, but its catalog entry trusts only",  # it rehearses the model
}


@pytest.fixture(scope="module")
def planted(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose model folders name a module beside the configuration, which creates the file `marker`."""
    project = finished.copy(tmp_path_factory.mktemp("planted"))
    code = f"import torch\nopen({str(project.folder / 'marker')!r}, 'w')\nclass Net(torch.nn.Module): pass\n"
    (project.folder / "planted.py").write_text(code)
    for recipe in project.models.glob("*/recipe.json"):
        recipe.write_text(json.dumps({"class_path": "planted.Net", "init_args": {}}))
    model = onnx.load(str(project.models / "compressed_model.onnx"))
    set_external_data(model.graph.initializer[0], "../../conf/base/catalog.yml")
    model.graph.initializer[0].ClearField("raw_data")
    (project.models / "compressed_model.onnx").write_bytes(model.SerializeToString())
    return project


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_command_runs_nothing(planted: Project, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    project = planted.copy(tmp_path)
    command = project.kedro(*arguments, "--params", small_parameters({}))
    assert (command.wait() > 0) == bool(COMMANDS[arguments]), command.output
    assert COMMANDS[arguments] in " ".join(command.output.split())
    assert not (planted.folder / "marker").exists()
