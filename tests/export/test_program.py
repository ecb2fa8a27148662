from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

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


def test_the_program_is_that_of_the_users_inputs_without_inputs_paths_or_source(tmp_path: Path) -> None:
    model, inputs = residual_net().eval(), torch.randn(64, 1, 8, 8)
    program = to_program(model, inputs)
    with torch.no_grad():
        usual = torch.export.export(model, (inputs[:2],), dynamic_shapes=({0: Dim("batch")},))
    assert program.graph_module.code == usual.graph_module.code
    assert program.graph_signature == usual.graph_signature
    (kept,), _ = program.example_inputs
    assert kept.untyped_storage().nbytes() == kept.nbytes == 2 * 64 * 4
    assert not torch.isin(kept, inputs).any()

    def contents(program: ExportedProgram) -> bytes:
        torch.export.save(program, tmp_path / "model.pt2")
        return (tmp_path / "model.pt2").read_bytes()  # nothing in it is compressed

    assert b"nets.py" in contents(usual)
    assert b"self.stem(x)" in contents(usual)
    assert b".py" not in contents(program)
    assert b"self.stem(x)" not in contents(program)


class Branching(nn.Module):
    """Its branch is a graph inside the graph."""

    def forward(self, x: Tensor) -> Tensor:
        branches = (lambda x: x.sin(), lambda x: x.cos())
        chosen: Tensor = torch.cond(x.sum() > 0, *branches, (x,))
        return chosen


def test_branches_have_no_stack_traces_either(tmp_path: Path) -> None:
    torch.export.save(to_program(Branching(), torch.randn(3, 4)), tmp_path / "model.pt2")
    assert b"test_program.py" not in (tmp_path / "model.pt2").read_bytes()
