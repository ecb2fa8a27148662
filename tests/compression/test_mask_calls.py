"""Masks act however a model is called: as a whole, by a method of its own, or by a module in it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kedro_aat.compression.build import build_controller
from kedro_aat.compression.masks import WeightMasks
from kedro_aat.compression.settings import (
    CompressionSettings,
    FilterPruning,
    MagnitudeSparsity,
    Quantization,
    keeping_zeros,
)
from tests.compression.called_in_parts import WAYS, Parts

MASK_WAYS = WAYS | {
    "model.backbone(x)": lambda model, x: model.backbone(x).square().mean(),
    "a weight that is read": lambda model, x: model.functional(x),
}
ALGORITHMS: dict[str, CompressionSettings] = {
    "magnitude_sparsity": MagnitudeSparsity(),
    "filter_pruning": FilterPruning(),
    "quantization": keeping_zeros(Quantization()),
}


class Watched(nn.Linear):
    """Notes how many of its weights are zero whenever it computes."""

    zeros: list[float]

    def forward(self, input: Tensor) -> Tensor:
        self.zeros.append(float((self.weight == 0).double().mean()))
        return super().forward(input)


@pytest.mark.parametrize("way", MASK_WAYS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_masked_weights_are_zero_in_every_step(algorithm: str, way: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 12)
    model: Any = Parts()
    if algorithm == "quantization":
        sparse = build_controller(model, MagnitudeSparsity())
        sparse.compression_rate = 0.8
        model = sparse.strip()
    layer = model.backbone[0]
    controller = build_controller(model, ALGORITHMS[algorithm], example_input=x)
    controller.compression_rate = 0.8
    layer.__class__, layer.zeros = Watched, []
    # Momentum and weight decay move the masked weights in every step, too.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        MASK_WAYS[way](model, x).backward()
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter) if parameter.grad is None else parameter.grad + 1
        optimizer.step()
    assert len(layer.zeros) >= 3
    assert layer.zeros[0] > 0.5
    assert layer.zeros[-3:] == layer.zeros[:1] * 3


def test_weight_that_is_read_after_the_call_of_another_module_is_masked() -> None:
    torch.manual_seed(0)
    model: Any = Parts()
    x = torch.randn(4, 12)
    controller = build_controller(model, MagnitudeSparsity())
    controller.compression_rate = 0.8
    zeros = model.head.weight == 0
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    model.backbone(x)
    assert torch.equal(model.head.weight == 0, zeros)


def test_masks_are_applied_once_per_optimizer_step(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model: Any = Parts()
    x = torch.randn(4, 12)
    controller = build_controller(model, MagnitudeSparsity())
    controller.compression_rate = 0.8
    applied: list[int] = []
    apply = WeightMasks.apply

    def counted(masks: WeightMasks) -> None:
        applied.append(1)
        apply(masks)

    monkeypatch.setattr(WeightMasks, "apply", counted)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        for _ in range(2):  # two batches are accumulated
            model.loss(x).backward()
        optimizer.step()
    assert len(applied) == 3


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "Adagrad"])
def test_masks_follow_fused_steps(name: str) -> None:
    """They change weights without a new version."""
    torch.manual_seed(0)
    model: Any = Parts()
    controller = build_controller(model, MagnitudeSparsity())
    controller.compression_rate = 0.8
    layer, x = model.backbone[0], torch.randn(16, 12)
    zeros = layer.weight == 0
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.1, fused=True)
    for _ in range(3):
        model.loss(x).backward()
        assert torch.equal(layer.weight == 0, zeros)
        optimizer.step()
        assert not torch.equal(layer.weight == 0, zeros)
        optimizer.zero_grad()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda controller: pickle.loads(pickle.dumps(controller))])
def test_copies_mask_their_own_model(copied: Callable[[Any], Any]) -> None:
    torch.manual_seed(0)
    controller: Any = build_controller(Parts(), MagnitudeSparsity())
    controller.compression_rate = 0.8
    controller.model.backbone(torch.randn(4, 12))
    twin = copied(controller)
    zeros = twin.model.backbone[0].weight == 0
    with torch.no_grad():
        twin.model.backbone[0].weight.add_(1.0)
    twin.model.backbone(torch.randn(4, 12))
    assert torch.equal(twin.model.backbone[0].weight == 0, zeros)
    assert controller.model.backbone[0].weight is not twin.model.backbone[0].weight


def test_part_that_is_compiled_is_masked() -> None:
    torch.manual_seed(0)
    model: Any = Parts()
    x = torch.randn(4, 12)
    controller = build_controller(model, MagnitudeSparsity())
    controller.compression_rate = 0.8
    zeros = model.backbone[0].weight == 0
    compiled: Any = torch.compile(model.backbone, backend="eager", fullgraph=True)
    compiled(x)
    with torch.no_grad():
        model.backbone[0].weight.add_(1.0)
    compiled(x)
    assert torch.equal(model.backbone[0].weight == 0, zeros)
