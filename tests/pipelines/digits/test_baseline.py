"""A baseline is trained by the functions that train a model under compression."""

from __future__ import annotations

import torch
from torch import nn

from kedro_aat import CompressionStage
from kedro_aat.pipelines.digits.baseline import Uncompressed


def test_uncompressed_model_trains_under_the_same_functions() -> None:
    model = nn.Linear(3, 2)
    controller = Uncompressed(model)
    before = model.weight.clone()
    controller.scheduler.epoch_step()
    controller.scheduler.step()
    controller.disable_scheduler()
    assert controller.compression_rate == 0.0
    assert controller.compression_stage() is CompressionStage.UNCOMPRESSED
    assert float(controller.loss()) == 0.0
    controller.load_state(controller.get_state())
    assert controller.statistics().to_str().startswith("uncompressed: 0.0000 of the weights are zero")
    assert controller.strip() is model
    assert torch.equal(model.weight, before)
