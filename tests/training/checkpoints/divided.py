"""Training steps on divided weights, whose state ranks write, and other numbers of ranks read."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor, nn

from kedro_aat.compression.build import build_controller
from kedro_aat.compression.controller import ModelController
from kedro_aat.compression.settings import MagnitudeSparsity
from kedro_aat.ranks import group
from kedro_aat.ranks.shards import is_sharded, whole
from kedro_aat.tensors import load_tensors, save_tensors
from kedro_aat.training.checkpoints.parts import (
    open_parts,
    optimizer_placed_as,
    placed_as,
    with_divided,
    without_rows,
    write_parts,
)
from kedro_aat.training.ranks.divided_model import divided_copy

MINUTE = timedelta(minutes=1)


def divided() -> tuple[ModelController, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 50), nn.BatchNorm1d(50), nn.ReLU(), nn.Linear(50, 30), nn.ReLU(), nn.Linear(30, 2)
    )
    controller = build_controller(model, MagnitudeSparsity())
    controller.disable_scheduler()
    made = divided_copy(controller, torch.device("cpu"))
    return made, torch.optim.AdamW(made.model.parameters(), lr=0.01)


def state_of(controller: ModelController, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All tensors, whole."""
    named = dict(controller.model.state_dict())
    for number, state in optimizer.state_dict()["state"].items():
        named |= {f"optimizer.{number}.{key}": value for key, value in state.items()}
    return {name: whole(tensor) for name, tensor in named.items()}


def write(folder: Path) -> None:
    with group.joined(torch.device("cpu"), MINUTE, MINUTE):
        controller, optimizer = divided()
        controller.compression_rate = 0.7
        for _ in range(3):
            optimizer.zero_grad()
            controller.model(torch.randn(8, 6)).square().sum().backward()
            optimizer.step()
        written = write_parts(folder, controller.model, [optimizer])
        state = state_of(controller, optimizer)
        if group.is_main():
            assert sorted(written) == sorted(path.name for path in folder.glob("*-of-*.safetensors"))
            save_tensors(state, folder / "whole")
            others = {name: tensor for name, tensor in controller.model.state_dict().items() if not is_sharded(tensor)}
            torch.save((others, without_rows(optimizer.state_dict(), {})), folder / "others")


def compare(folder: Path) -> None:
    """Reads the state, and goes on with it."""
    with group.joined(torch.device("cpu"), MINUTE, MINUTE):
        controller, optimizer = divided()
        others, optimizer_state = torch.load(folder / "others", weights_only=True)
        names = [path.name for path in folder.glob("*-of-*.safetensors")]
        controller.model.load_state_dict(placed_as(others | open_parts(folder, names, "model"), controller.model))
        saved = with_divided(optimizer_state, open_parts(folder, names, "optimizers"))
        optimizer.load_state_dict(optimizer_placed_as(saved, optimizer))
        found, expected = state_of(controller, optimizer), load_tensors(folder / "whole")
        assert found.keys() == expected.keys()
        assert any(name.endswith("exp_avg_sq") for name in found)
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)
        optimizer.zero_grad()
        controller.model(torch.randn(8, 6)).square().sum().backward()
        optimizer.step()
        print("the same state")
