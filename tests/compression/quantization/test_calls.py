"""A forward pass must take the recorded steps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kedro_aat.errors import ModelError
from tests.compression.quantization.quantized import quantized, run


def test_forward_with_other_steps_than_recorded_is_refused() -> None:
    class Changing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
            self.is_short = False
            self.is_new = False

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            x = torch.tanh(x) if self.is_new else torch.relu(x)
            out: Tensor = x if self.is_short else self.second(x)
            return out

    model = Changing()
    quantized(model, torch.randn(2, 6))
    model.is_new = True
    with pytest.raises(ModelError, match="was relu when it was recorded, but is tanh now"):
        run(model, torch.randn(2, 6))
    model.is_new, model.is_short = False, True
    with pytest.raises(ModelError, match="ended after 2 steps"):
        run(model, torch.randn(2, 6))
    model.is_short = False
    run(model, torch.randn(2, 6))
