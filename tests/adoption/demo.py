"""A project as Kedro's own template makes it, with a model and data that are not ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).parents[2]

MODEL = '''"""The project's own model."""

import torch
from torch import nn


class WineNet(nn.Module):
    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(13, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3)
        )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layers(inputs)
'''


class Demo:
    """The project `demo` in its folder, driven through the command line.

    Args:
        folder: Where it is made.
        packages: A folder in which kedro-aat is installed.
    """

    def __init__(self, folder: Path, packages: Path) -> None:
        self.folder = folder / "demo"
        self._environment = os.environ | {
            "PYTHONPATH": str(packages),
            "DO_NOT_TRACK": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONWARNINGS": "ignore",
        }
        self.kedro("new", "--name", "demo", "--tools", "none", "--example", "n", "--telemetry", "no", cwd=folder)

    def kedro(self, *arguments: str, cwd: Path | None = None, code: int = 0) -> str:
        """Runs a `kedro` command to its end, and returns what it printed."""
        command = [sys.executable, "-m", "kedro", *arguments]
        done = subprocess.run(
            command,
            cwd=cwd or self.folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=280,
            check=False,
        )
        assert done.returncode == code, done.stdout
        return done.stdout

    @property
    def base(self) -> Path:
        return self.folder / "conf" / "base"

    def write_registry(self, *lines: str) -> None:
        """A handwritten registry, with the two lines that `kedro aat init` tells."""
        first, *others = lines
        text = [first, "def register_pipelines():", "    pipelines = {}", *(f"    {line}" for line in others)]
        (self.folder / "src/demo/pipeline_registry.py").write_text("\n".join([*text, "    return pipelines\n"]))

    def add_model(self) -> None:
        """A model of the project's own and its weights, as the project's people would have trained it."""
        (self.folder / "src/demo/models.py").write_text(MODEL)
        namespace: dict[str, Any] = {}
        exec(MODEL, namespace)
        torch.manual_seed(0)
        model = namespace["WineNet"]()
        inputs, targets = wine()["train"].values()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(60):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
        folder = self.folder / "data/06_models"
        folder.mkdir(parents=True)
        torch.save(model.state_dict(), folder / "my_model.pt")

    def add_tensors(self) -> None:
        """The data as the template's catalog expects them."""
        folder = self.folder / "data/05_model_input"
        folder.mkdir(parents=True)
        for split, tensors in wine().items():
            save_file(tensors, folder / f"{split}.safetensors")

    def edit(self, name: str, *changes: tuple[str, str]) -> None:
        """Replaces texts in a file of `conf/base`; each must be there."""
        path = self.base / name
        text = path.read_text()
        for old, new in changes:
            assert old in text, old
            text = text.replace(old, new)
        path.write_text(text)

    @property
    def summary(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.folder / "data/08_reporting/aat_summary.json").read_text())
        return loaded


def wine() -> dict[str, dict[str, torch.Tensor]]:
    """The wine data that scikit-learn carries, standardised, in three splits."""
    from sklearn.datasets import load_wine

    inputs, targets = load_wine(return_X_y=True)
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(inputs, dtype=torch.float32)[order]
    x, y = (x - x.mean(0)) / x.std(0), torch.tensor(targets)[order]
    bounds = {"train": slice(0, 90), "validation": slice(90, 134), "test": slice(134, 178)}
    return {split: {"inputs": x[part].contiguous(), "targets": y[part].contiguous()} for split, part in bounds.items()}
