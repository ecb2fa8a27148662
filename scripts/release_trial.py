"""A new Kedro project in the environment of a wheel: from `kedro new` to a compressed ONNX file.

python scripts/release_trial.py path/to/environment/bin/python folder
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

_MODEL = """
from torch import nn


class Net(nn.Sequential):
    def __init__(self, width):
        super().__init__(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2))
"""
_PREPARE = """
from pathlib import Path

import torch
from demo.models import Net
from safetensors.torch import save_file

for folder in ("05_model_input", "06_models"):
    Path("data", folder).mkdir(parents=True, exist_ok=True)
torch.manual_seed(0)
splits = {}
for split in ("train", "validation", "test"):
    inputs = torch.randn(256, 4)
    splits[split] = {"inputs": inputs, "targets": (inputs.sum(1) > 0).long()}
    save_file(splits[split], f"data/05_model_input/{split}.safetensors")
net = Net(32)
optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
for _ in range(60):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(net(splits["train"]["inputs"]), splits["train"]["targets"]).backward()
    optimizer.step()
save_file(net.state_dict(), "data/06_models/net.safetensors")
"""
_USE = """
import onnxruntime

session = onnxruntime.InferenceSession("data/06_models/compressed_model.onnx")
(put,) = session.get_inputs()
(got,) = session.run(None, {put.name: [[1.0, 1.0, 1.0, 1.0]]})
assert got.shape == (1, 2), got.shape
"""
_INIT = ("--model", "Net", "--init-args", "width: 32", "--weights", "data/06_models/net.safetensors")
_TASK = ("--data", "tensors", "--task", "classification", "--outputs", "2")
_SHORT = (
    "aat.budget.max_drop=0.1,aat.compression.round_to=1,aat.search.maximal_total_epochs=3,"
    "aat.second_stage.search.maximal_total_epochs=1,aat.export.latency_seconds=0.1"
)


def environment() -> dict[str, str]:
    """The variables of the commands: no package from elsewhere, and no telemetry."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    return kept | {"KEDRO_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}


def try_project(python: Path, folder: Path) -> None:
    """Runs the commands of the tutorial, and the file that they make.

    Args:
        python: Python of an environment with the package.
        folder: A folder that does not exist, for the project.

    Raises:
        SystemExit: What was found is not as expected.
        subprocess.CalledProcessError: A command fails.
    """
    folder.mkdir()

    def kedro(*arguments: str, cwd: Path = folder / "demo") -> str:
        print("+ kedro", *arguments, flush=True)
        command = [str(python), "-m", "kedro", *arguments]
        done = subprocess.run(command, cwd=cwd, env=environment(), stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            print(done.stdout)
            raise subprocess.CalledProcessError(done.returncode, command)
        return done.stdout

    kedro("new", "--name", "demo", "--tools", "none", "--example", "n", "--telemetry", "no", cwd=folder)
    project = folder / "demo"
    if "Project specific commands from kedro-aat" not in kedro("--help"):
        raise SystemExit("`kedro --help` does not name the plugin")
    if "validate" not in kedro("aat", "--help"):
        raise SystemExit("`kedro aat --help` does not list its commands")
    (project / "src/demo/models.py").write_text(_MODEL)
    for name, code in {"prepare.py": _PREPARE, "use.py": _USE}.items():
        (project / name).write_text(code)
    with_sources = environment() | {"PYTHONPATH": "src"}
    subprocess.run([python, "prepare.py"], cwd=project, env=with_sources, check=True)
    kedro("aat", "init", *_INIT, *_TASK)
    kedro("aat", "validate")
    kedro("run", "--pipelines", "aat", "--params", _SHORT)
    summary = json.loads((project / "data/08_reporting/aat_summary.json").read_text())
    if summary["outcome"] != "within_budget":
        raise SystemExit(f"The run ended as {summary['outcome']}, not within_budget")
    subprocess.run([python, "use.py"], cwd=project, env=with_sources, check=True)


if __name__ == "__main__":
    try_project(Path(sys.argv[1]), Path(sys.argv[2]))
