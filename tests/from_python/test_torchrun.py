"""`compress` in a script that several processes run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.forks import script
from tests.ranks import Ranks

SCRIPT = """
import torch
from torch import nn

from kedro_aat import compress

torch.manual_seed(0)
inputs = torch.randn(200, 8)
targets = inputs[:, :3].argmax(1)
model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
for _ in range(100):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(inputs), targets).backward()
    optimizer.step()
data = inputs, targets
result = compress(model, data, data, budget=0.05, epochs=3, folder="compressed", second_stage=None)
print("outcome", result.outcome)
print("chosen", result.choose(max_drop=0.1).outcome)
"""


@pytest.mark.slow
@pytest.mark.slow
def test_compress_returns_on_rank_0_alone(tmp_path: Path) -> None:
    (tmp_path / "compress_it.py").write_text(SCRIPT)

    ranks = Ranks(script, "compress_it.py", folder=tmp_path)

    assert ranks.wait() == [0, 0], ranks.outputs
    first, second = ranks.outputs
    assert "outcome within_budget" in first
    assert "chosen within_budget" in first
    assert "outcome" not in second
    assert (tmp_path / "compressed/compressed_model.onnx").exists()
