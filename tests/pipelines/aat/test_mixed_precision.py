"""Where int8 in all layers breaks the budget, the search of the stage leaves the layer that breaks it in float32."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kedro_aat.config import AatSettings
from kedro_aat.datasets.handles import TensorBoardLog
from kedro_aat.delivery.results import SearchResult
from kedro_aat.pipelines.aat.baseline import evaluate_baseline
from kedro_aat.pipelines.aat.search import (
    build_controller,
    finetune_adaptively,
    finetune_later_stage,
)
from kedro_aat.training.checkpoints import CheckpointStore

# Of one column, such as a distance in meters beside others in kilometers. Were the model given such a column, its first
# layer would read it in float32; a tensor that it computes is rounded as a whole.
LARGE_UNIT = 100.0


def table(num_rows: int, seed: int) -> dict[str, Tensor]:
    """Columns in [-1, 1], and a function of four."""
    columns = torch.rand(num_rows, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    targets = columns[:, 0] * columns[:, 1] + columns[:, 2].abs() + torch.sin(3 * columns[:, 3])
    return {"inputs": columns, "targets": targets[:, None]}


class Regression(nn.Module):
    """Converts the last column to a much smaller unit, and so to larger numbers, before its first layer."""

    units: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("units", torch.tensor([1.0] * 7 + [LARGE_UNIT]))
        widths = [8, 32, 32, 32]
        layers = [nn.Sequential(nn.Linear(*pair), nn.ReLU()) for pair in itertools.pairwise(widths)]
        self.layers = nn.Sequential(*layers, nn.Linear(32, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.layers(inputs * self.units)
        return result


@pytest.fixture(scope="module")
def trained() -> Regression:
    torch.manual_seed(0)
    model, data = Regression(), table(1024, seed=0)
    with torch.no_grad():
        model.layers[0][0].weight[:, 7] /= LARGE_UNIT  # type: ignore[index]
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        for rows in torch.randperm(1024).split(64):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(data["inputs"][rows]), data["targets"][rows]).backward()
            optimizer.step()
    return model


def int8_stage(model: nn.Module, folder: Path, epochs: int) -> tuple[Any, SearchResult, float]:
    """Runs a first stage that finds nothing, and then int8; returns the controller, the result and the budget."""
    settings = AatSettings.model_validate(
        {
            "budget": {"max_relative_drop": 0.1},
            "minimal_rate": 0.99,
            "search": {"kind": "frontier", "maximal_total_epochs": 1},
            "second_stage": {
                "compression": {"algorithm": "quantization"},
                "search": {"kind": "frontier", "maximal_total_epochs": epochs},
                "learning_rate_factor": 1,
                "skip_without_gain": False,
            },
            "training": {
                "batch_size": 64,
                "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 1e-4}},
                "loss": "torch.nn.MSELoss",
                "metric": {"class_path": "torchmetrics.MeanSquaredError", "init_args": {"squared": False}},
                "distillation": None,
                "device": "cpu",
                "num_threads": 1,
            },
        }
    )
    data = (table(1024, seed=0), table(512, seed=1))
    evaluation, scores = evaluate_baseline(model, *data, settings)
    shared = (model, *data, evaluation, scores)
    store, log = CheckpointStore(folder / "checkpoints"), TensorBoardLog(folder / "tensorboard")
    first, result, trajectory = finetune_adaptively(
        build_controller(model, evaluation, settings), *shared, store, log, settings
    )
    assert result.outcome == "infeasible"
    controller, second, _ = finetune_later_stage(first, *shared, result, trajectory, store, log, settings)
    assert isinstance(second, SearchResult)
    return controller, second, evaluation.budget.lowest_tolerated


@pytest.mark.parametrize("epochs", [8, 40])
def test_the_layer_that_breaks_the_budget_stays_in_float(trained: Regression, tmp_path: Path, epochs: int) -> None:
    controller, result, lowest_tolerated = int8_stage(trained, tmp_path, epochs)
    assert result.outcome == "within_budget"
    assert result.validation <= lowest_tolerated
    bits = controller.statistics().as_frame().set_index("layer")["bits"].to_dict()
    assert bits == {"layers.0.0.weight": 32, "layers.1.0.weight": 8, "layers.2.0.weight": 8, "layers.3.weight": 8}
    data = table(512, seed=1)
    with torch.no_grad():
        error = nn.functional.mse_loss(controller.strip()(data["inputs"]), data["targets"]).sqrt()
    assert error.item() == pytest.approx(result.validation, rel=0.01)
