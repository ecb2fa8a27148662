from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from kedro_aat.errors import ExportError
from kedro_aat.export.program import to_program
from kedro_aat.export.verify import verify_program
from tests.export.nets import residual_net


def test_a_program_saved_from_one_example_runs_a_new_batch_size(tmp_path: Path) -> None:
    model = residual_net()
    torch.export.save(to_program(model, torch.randn(1, 1, 8, 8)), tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    model.eval()
    with torch.no_grad():
        for batch_size in (1, 2, 33):
            batch = torch.randn(batch_size, 1, 8, 8)
            torch.testing.assert_close(loaded(batch), model(batch))


def test_the_models_mode_is_restored_and_dropout_is_off() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    model.train()
    program = to_program(model, torch.randn(3, 4))
    assert model.training
    assert model[1].training
    batch = torch.randn(5, 4)
    assert torch.equal(program.module()(batch), model[0](batch))


def test_the_mode_is_restored_after_a_failure() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    model.train()
    with pytest.raises(ExportError, match="Sequential cannot be exported"):
        to_program(model, torch.randn(2, 5))
    assert model[0].training


def test_verify_program_agrees_and_notices_other_weights() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3))
    inputs = torch.randn(6, 1, 8, 8)
    program = to_program(model, inputs)
    agreement = verify_program(program, model, inputs)
    assert agreement.difference < 1e-6
    assert agreement.same_labels == 1.0
    assert agreement.batch_sizes == (6, 1)
    assert model.training

    torch.manual_seed(1)
    other = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3))
    with pytest.raises(ExportError, match="the exported program differs from its model by"):
        verify_program(program, other, inputs)
