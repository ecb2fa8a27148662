"""The distillation loss and its gradients, as NNCF 2.19 computed them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kedro_aat import create_compressed_model
from tests.nncf.conformance.recorded import ManyOutputs, fill, recorded


@pytest.mark.parametrize(
    "situation",
    recorded("distillation"),
    ids=lambda each: f"{each['kind']}-{'-'.join(map(str, each['section'].values()))}",
)
def test_loss_and_gradients(situation: dict[str, Any]) -> None:
    sparsity = {"algorithm": "magnitude_sparsity", "sparsity_init": 0.5}
    config = {"input_info": {"sample_size": [5, 6]}, "compression": [sparsity, situation["section"]]}
    controller, model = create_compressed_model(fill(ManyOutputs(situation["kind"])), config)
    model.train()
    model(torch.sin(torch.arange(30.0)).reshape(5, 6))
    loss = controller.loss()
    assert loss.item() == pytest.approx(situation["loss"], rel=1e-5)
    loss.backward()
    gradients = {  # of what is not masked
        name: (each.grad * (each != 0)).norm().item()
        for name, each in model.named_parameters()
        if each.grad is not None
    }
    assert gradients == pytest.approx(situation["grad"], rel=1e-4)


def test_pixels_are_compared_too_where_nncf_has_no_loss() -> None:
    section = {"algorithm": "knowledge_distillation", "type": "softmax"}
    sparsity = {"algorithm": "magnitude_sparsity", "sparsity_init": 0.5}
    controller, model = create_compressed_model(fill(ManyOutputs("pixels")), {"compression": [sparsity, section]})
    x = torch.sin(torch.arange(30.0)).reshape(5, 6)
    teacher = torch.softmax(fill(ManyOutputs("pixels"))(x), 1)
    expected = -(torch.log_softmax(model.train()(x), 1) * teacher).sum(1).mean()
    torch.testing.assert_close(controller.loss(), expected)
