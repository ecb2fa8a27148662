"""Heads that are used or returned in training only are a part of what is cut, and later stages train with them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import kedro_aat
from kedro_aat.compression.build import build_controller
from kedro_aat.compression.settings import Quantization
from tests.compression.filters.pruned import difference, pruned

BATCH = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Auxiliary(nn.Module):
    """Two classifiers: (B, 1, 8, 8) -> (B, 3), or two of them in training."""

    def __init__(self, *, is_always_computed: bool) -> None:
        super().__init__()
        self.is_always_computed = is_always_computed
        self.first, self.second = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.head, self.auxiliary = nn.Linear(16, 3), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Any:
        hidden = F.relu(self.first(x))
        other = self.auxiliary(hidden.mean((2, 3))) if self.training or self.is_always_computed else None
        logits = self.head(F.relu(self.second(hidden)).mean((2, 3)))
        return (logits, other) if self.training else logits


@pytest.mark.parametrize("is_always_computed", [True, False])
def test_a_head_of_the_training_is_cut_along(is_always_computed: bool) -> None:
    torch.manual_seed(0)
    model = Auxiliary(is_always_computed=is_always_computed)
    controller = pruned(model, BATCH, 0.5)
    assert "auxiliary" in controller.not_cut  # its outputs are outputs in training
    cut: Any = controller.strip()
    assert cut.first.out_channels == cut.auxiliary.in_features < 16
    assert cut.second.out_channels == cut.head.in_features < 16
    assert difference(model, cut, BATCH) <= 1e-5
    for out, expected in zip(cut.train()(BATCH), model.train()(BATCH), strict=True):
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
    later = build_controller(cut.eval(), Quantization(ignored_scopes=("auxiliary",)), example_input=BATCH)
    later.disable_scheduler()
    later.compression_rate = 0.5
    assert [tuple(out.shape) for out in later.model.train()(BATCH)] == [(4, 3), (4, 3)]


class Halves(nn.Module):
    """The second half of one tensor and the first half of another: (B, 3, 8, 8) -> (B, 4, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3, bias=False), nn.Conv2d(3, 16, 3, bias=False), nn.Conv2d(16, 16, 3)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        second, first = self.a(x).chunk(2, 1)[1], self.b(x).chunk(2, 1)[0]
        out: Tensor = self.head(self.c(torch.cat([second, first], 1)).relu())
        return out


def test_without_an_example_input_the_cut_is_checked_on_random_numbers() -> None:
    """Zeros, which NNCF's files describe, pass through a wrong cut as through a right one: no layer has a bias."""
    torch.manual_seed(0)
    settings = {
        "input_info": {"sample_size": [1, 3, 8, 8]},
        "compression": {"algorithm": "filter_pruning", "params": {"prune_first_conv": True}},
    }
    controller, model = kedro_aat.create_compressed_model(Halves().eval(), copy.deepcopy(settings))
    controller.disable_scheduler()
    controller.compression_rate = 0.5  # so that 8 of 16 filters remain
    cut: Any = controller.strip()
    assert cut.a.out_channels < 16
    assert cut.b.out_channels < 16
    assert difference(model, cut, torch.randn(2, 3, 8, 8)) <= 1e-5
