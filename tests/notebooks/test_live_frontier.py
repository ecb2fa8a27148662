"""In a notebook, a search is one output that is replaced after each epoch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.projects import SMALL, Project

SCRIPT = """
import torch
from torch import nn
from kedro_aat import create_accuracy_aware_training_loop, create_compressed_model

config = {
    "compression": {"algorithm": "magnitude_sparsity"},
    "accuracy_aware_training": {"mode": "adaptive_compression_level", "params": {
        "maximal_absolute_accuracy_degradation": 0.1, "maximal_total_epochs": 5, "search": {"kind": "frontier"}}},
}
controller, model = create_compressed_model(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)), config)
loop = create_accuracy_aware_training_loop(config, controller, 0.9)

def train(controller, model, **more):
    controller.scheduler.step()
    return 0.5

model = loop.run(model, train, lambda model: 0.9 - 0.3 * (controller.compression_rate > 0.8), log_dir="runs")
[(row.epoch, row.margin >= 0, row.achieved_rate) for row in loop.history]
"""

SESSION = """
from pathlib import Path
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project

bootstrap_project(Path.cwd())
with KedroSession.create(Path.cwd(), runtime_params={parameters}) as session:
    session.run(pipeline_names=["aat"])
"""


def outputs_of(code: str, folder: Path) -> list[Any]:
    """What a notebook with one cell shows."""
    cell = nbformat.v4.new_code_cell(code)  # type: ignore[no-untyped-call]
    notebook = nbformat.v4.new_notebook(cells=[cell])  # type: ignore[no-untyped-call]
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    outputs: list[Any] = notebook.cells[0].outputs
    return outputs


def frontiers_in(outputs: list[Any]) -> list[dict[str, str]]:
    """The outputs with a picture."""
    shown = [output.get("data", {}) for output in outputs]
    return [data for data in shown if "<svg" in data.get("text/html", "")]


def test_frontier_of_a_script_is_one_output_that_is_replaced(tmp_path: Path) -> None:
    *outputs, result = outputs_of(SCRIPT, tmp_path)
    history = eval(result["data"]["text/plain"])
    (shown,) = frontiers_in(outputs)
    page, text = shown["text/html"], shown["text/plain"]
    assert "5 of 5 epochs" in page
    assert "left" not in text  # nothing is left
    points = re.findall(r'<circle [^>]*fill="(#\w+|none)"[^>]*><title>epoch (\d+): ', page)
    assert [(int(epoch), fill != "none") for fill, epoch in points] == [(row[0], row[1]) for row in history]
    best = max(rate for _, is_within, rate in history if is_within)
    assert f"best so far: rate {best:.4f}" in text
    lines = "".join(output.get("data", {}).get("text/plain", "") for output in outputs)
    assert "epoch 1  rate" not in lines  # the picture shows the epochs
    assert "per epoch: up to" in lines


@pytest.mark.slow
def test_frontier_of_a_session(project: Project) -> None:
    nested: dict[str, Any] = {}
    for key, value in SMALL.items():
        *groups, last = key.split(".")
        group = nested
        for name in groups:
            group = group.setdefault(name, {})
        group[last] = False if value == "false" else value
    first, second = frontiers_in(outputs_of(SESSION.format(parameters=nested), project.folder))
    assert "Filter pruning" in first["text/html"]
    assert "of 5 epochs" in first["text/html"]
    assert "share of the weights in 8 bits" in second["text/html"]
