"""Each task with each kind of data: what `kedro aat init` writes is run as it is, in a project of Kedro's template."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from kedro_aat.adoption.init.tasks import TASKS
from tests.adoption.demo import Demo

MODELS = """
from torch import nn


class Numbers(nn.Sequential):
    def __init__(self, outputs, width=16):
        super().__init__(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs))


class Picture(nn.Sequential):
    def __init__(self, outputs, channels=1):
        body = nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()
        super().__init__(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, outputs))


class Pixels(nn.Sequential):
    def __init__(self, outputs):
        body = nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()
        super().__init__(*body, nn.Conv2d(16, outputs, 1))
"""

# Inputs and targets of one split, (N, ...), in the form that the message of `kedro aat init` names.
DATA = """
import torch


def rows(task, outputs, ignored, seed, is_picture):
    generator = torch.Generator().manual_seed(seed)
    if task == "segmentation":
        images = torch.rand(48, 1, 8, 8, generator=generator)
        targets = (images[:, 0] * max(outputs, 2)).long()
        if ignored is not None:
            targets[:, 0] = ignored
        return images, targets
    numbers = torch.randn(48, 8, generator=generator)
    if task == "multilabel":
        return numbers, (numbers[:, :outputs] > 0).long()
    if task == "regression":
        return numbers, numbers[:, 0] - numbers[:, 1]
    if task == "forecasting":
        return numbers, numbers.cumsum(1)[:, -4:].clone()
    labels = torch.arange(48) % max(outputs, 2)
    if is_picture:
        return (0.2 + 0.6 * labels / labels.max())[:, None, None, None].expand(48, 1, 8, 8).clone(), labels
    return numbers + 3 * torch.nn.functional.one_hot(labels, 8), labels
"""

PREPARE = """
from pathlib import Path

import pandas as pd
import torch
from demo import models
from demo.data import rows
from safetensors.torch import save_file

task, data, outputs, ignored, model = {choices!r}
folder = Path("data/05_model_input")
folder.mkdir(parents=True)
for seed, split in enumerate(("train", "validation", "test")):
    inputs, targets = rows(task, outputs, ignored, seed, data == "images")
    if data == "tensors":
        save_file({{"inputs": inputs, "targets": targets}}, folder / f"{{split}}.safetensors")
    elif data == "table":
        pd.DataFrame(inputs.numpy()).assign(price=targets.numpy()).to_csv(folder / f"{{split}}.csv", index=False)
    elif data == "images":
        from PIL import Image

        for number, (image, label) in enumerate(zip(inputs, targets.tolist())):
            path = folder / split / f"class_{{label}}" / f"{{number}}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((image[0] * 255).byte().numpy()).save(path)

inputs, targets = rows(task, outputs, ignored, 0, data == "images")
torch.manual_seed(0)
net = getattr(models, model)(outputs=outputs)
optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
for _ in range(150):
    optimizer.zero_grad()
    answers = net(inputs)
    if task in ("classification", "segmentation") and outputs > 1:
        loss = torch.nn.functional.cross_entropy(answers, targets, ignore_index=-100 if ignored is None else ignored)
    elif task in ("regression", "forecasting"):
        loss = torch.nn.functional.mse_loss(answers.reshape(targets.shape), targets)
    else:
        wanted = targets.reshape(answers.shape).float()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(answers, wanted)
    loss.backward()
    optimizer.step()
Path("data/06_models").mkdir(parents=True)
torch.save(net.state_dict(), "data/06_models/net.pt")
"""

NODES = """
from demo.data import rows
from kedro.pipeline import Node, Pipeline
from torch.utils.data import TensorDataset


def split():
    return [TensorDataset(*rows({task!r}, {outputs}, {ignored}, seed, False)) for seed in range(3)]


def create_pipeline(**_):
    return Pipeline([Node(split, None, ["train_data", "validation_data", "test_data"], name="split")])
"""

OUTPUTS = {"classification": 3, "multilabel": 3, "segmentation": 3, "forecasting": 4}
COMBINATIONS: list[tuple[str, str, dict[str, Any]]] = [
    *((task, data, {}) for task, settings in TASKS.items() for data in settings.data),
    ("segmentation", "tensors", {"outputs": 1}),
    ("segmentation", "node", {"ignored": 255}),
]
SHORT = (
    "aat.search.maximal_total_epochs=2,aat.second_stage.search.maximal_total_epochs=1,aat.export.latency_seconds=0.05,"
    "aat.training.num_threads=1"
)


def prepared(demo: Demo, task: str, data: str, outputs: int | None = None, ignored: int | None = None) -> str:
    """Writes model, data and weights into a project, then the settings for them; returns what that prints."""
    given = outputs or OUTPUTS.get(task, 1)
    model = "Pixels" if task == "segmentation" else "Picture" if data == "images" else "Numbers"
    demo.write("src/demo/models.py", MODELS)
    demo.write("src/demo/data.py", DATA)
    demo.write("prepare.py", PREPARE.format(choices=(task, data, given, ignored, model)))
    demo.python("prepare.py")
    if data == "node":
        text = NODES.format(task=task, outputs=given, ignored=ignored)
        demo.write("src/demo/pipelines/prepare/__init__.py", text)
    options = ["--model", model, "--init-args", f"{{ outputs: {given} }}", "--weights", "data/06_models/net.pt"]
    options += ["--task", task, "--data", data]
    options += ["--outputs", str(given)] if TASKS[task].counted else []
    options += ["--ignore-index", str(ignored)] if ignored is not None else []
    options += ["--target", "price"] if data == "table" else []
    options += ["--size", "8", "--channels", "1"] if data == "images" else []
    return demo.kedro("aat", "init", *options)


def test_nothing_is_left_to_edit(demo: Demo) -> None:
    output = prepared(demo, "segmentation", "node", ignored=255)
    assert "Targets of segmentation: (N, H, W), integers from 0 to 2, for outputs (N, 3, H, W)." in output
    assert "Now run:" in output
    validated = " ".join(demo.kedro("aat", "validate", "--params", "aat.second_stage=null").split())
    assert "Running the node split of the pipeline prepare, because the rehearsal needs train_data" in validated
    assert "rehearse: passed in " in validated
    assert "register_new_resolver" not in validated


@pytest.mark.slow
@pytest.mark.parametrize(("task", "data", "more"), COMBINATIONS)
def test_what_is_written_runs_as_it_is(demo: Demo, task: str, data: str, more: dict[str, Any]) -> None:
    prepared(demo, task, data, **more)
    written = yaml.safe_load((demo.base / "parameters_aat.yml").read_text())["aat"]
    assert written["training"]["metric"]["class_path"].startswith("torchmetrics.")
    pipelines = "prepare,aat" if data == "node" else "aat"
    demo.kedro("run", "--pipelines", pipelines, "--params", SHORT)
    assert demo.summary["outcome"] in ("within_budget", "infeasible")
