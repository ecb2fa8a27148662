"""Rates that a model cannot have: a schedule warns and stays at the highest one, and setting one is an error."""

from __future__ import annotations

import itertools
import logging
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from kedro_aat import create_compressed_model
from kedro_aat.compression.build import build_controller
from kedro_aat.compression.controller import CompressionStage, ModelController
from kedro_aat.compression.layer_table import LayerTable
from kedro_aat.compression.settings import parse_compression
from kedro_aat.errors import ConfigurationError

# At most 24 of 34 filters, .7059; with `round_to`, 16 of them, .4706.
SIZES = (16, 16, 2)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    widths = (1, *SIZES)
    convs = [nn.Conv2d(inputs, outputs, 3) for inputs, outputs in itertools.pairwise(widths)]
    return nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2])


def compressed(schedule: dict[str, Any], **options: Any) -> ModelController:
    settings = {"algorithm": "filter_pruning", "rate_of": "filters", "schedule": schedule, **options}
    return build_controller(net(), parse_compression(settings), example_input=torch.randn(2, 1, 8, 8))


EIGHT = {"minimal_channels": 4}
RISING = {"kind": "polynomial", "target_rate": 0.9, "target_epoch": 2, "power": 1.0}


def test_a_schedule_stays_at_the_maximum_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    controller = compressed(RISING, **EIGHT)
    assert controller.maximal_compression_rate == pytest.approx(24 / 34)
    (warning,) = caplog.messages
    assert "The schedule asks for a rate of 0.9000, but at most 0.7058 can be reached" in warning
    assert "minimal_channels" in warning
    stages = []
    for _ in range(3):
        controller.scheduler.epoch_step()
        stages.append(controller.compression_stage())
    assert controller.report().requested_rate == controller.report().achieved_rate == pytest.approx(24 / 34)
    assert stages == [0, CompressionStage.PARTIALLY_COMPRESSED, CompressionStage.FULLY_COMPRESSED]


def test_a_rate_above_the_maximum_cannot_be_set() -> None:
    controller = compressed({}, **EIGHT)
    controller.compression_rate = 0.5
    before = controller.report()
    with pytest.raises(ValueError, match=r"compression_rate is 0\.8, but at most 0\.7058 can be reached"):
        controller.compression_rate = 0.8
    assert controller.report() == before
    controller.compression_rate = controller.maximal_compression_rate
    assert controller.report().achieved_rate == pytest.approx(24 / 34)


def test_layers_with_a_single_filter_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    controller = compressed({})
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            controller.compression_rate = controller.maximal_compression_rate
    (warning,) = caplog.messages
    assert warning.startswith("2 layers have a single filter left: 0, 2. Lower the rate")
    caplog.clear()
    searched = compressed({})
    searched.disable_scheduler()  # from now on, a search judges what it sets
    searched.compression_rate = searched.maximal_compression_rate
    assert not caplog.messages


CONFIG: dict[str, Any] = {"input_info": {"sample_size": [1, 1, 8, 8]}}


def nncf(params: dict[str, Any], model: nn.Module | None = None) -> ModelController:
    section = {"algorithm": "filter_pruning", "params": {"prune_first_conv": True, **params}}
    return create_compressed_model(net() if model is None else model, {**CONFIG, "compression": section})[0]


def test_more_macs_than_nncf_can_remove_are_an_error_that_leaves_the_model_as_it_was() -> None:
    model, names = net(), set(net().state_dict())
    with pytest.raises(ConfigurationError, match=r"asks for a rate of 0\.9950, but at most 0\.\d{4} can be reached"):
        nncf({"pruning_flops_target": 0.995, "prune_first_conv": False}, model)
    assert set(model.state_dict()) == names
    nncf({"pruning_flops_target": 0.3}, model)


def test_a_layer_that_nncf_would_remove_keeps_a_filter_and_is_named(caplog: pytest.LogCaptureFixture) -> None:
    model = net()
    with torch.no_grad():
        weight = model.get_parameter("2.weight")
        weight[0] *= 1e3  # so that its other filters are nothing beside it
        weight[1:] *= 1e-3
    controller = nncf({"all_weights": True, "pruning_target": 0.4, "schedule": "baseline"}, model)
    controller.compression_rate = 15 / 32
    assert controller.report().achieved_rate == 15 / 32
    assert "1 layers have a single filter left: 2." in caplog.text


def test_layers_of_eight_filters_or_fewer_stay_as_in_nncf(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    controller = nncf({"pruning_target": 0.5}, model)
    assert "No filter will be removed at any rate: 8 or a multiple of it remain in each layer" in caplog.text
    controller.compression_rate = 0.5
    assert controller.report().requested_rate == 0.5
    assert controller.report().achieved_rate == 0
    assert controller.compression_stage() == CompressionStage.FULLY_COMPRESSED


def test_what_nncf_leaves_alone() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.grouped = nn.Conv2d(1, 16, 3, 1, 1), nn.Conv2d(16, 16, 3, 1, 1, groups=4)
            self.strided, self.up = nn.Conv2d(16, 16, 3, 2, 1), nn.ConvTranspose2d(16, 16, 2, 2)
            self.plain, self.batched = nn.Conv2d(16, 16, 3, 1, 1), nn.Linear(16, 16)
            self.flat, self.last = nn.Linear(16, 16), nn.Linear(16, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.plain(self.up(self.strided(self.grouped(self.first(x)))))
            x = torch.relu(self.batched(x.flatten(2).transpose(1, 2))).mean(1)
            return self.last(torch.relu(self.flat(x)))  # type: ignore[no-any-return]

    def pruned_layers(**params: Any) -> set[str]:
        controller = nncf({"pruning_target": 0.5, "prune_first_conv": False, **params}, Net())
        controller.compression_rate = 0.5
        statistics = controller.statistics()
        assert isinstance(statistics, LayerTable)
        frame = statistics.as_frame()
        changed = frame[frame["shape"].str.split("x").str[0] != frame["shape_before"].str.split("x").str[0]]
        return set(changed["layer"])

    # A transposed convolution's filters are its second axis: `up` is pruned, too, as its readers show.
    assert {"plain", "flat"} <= pruned_layers() <= {"plain", "flat", "up"}
    assert "strided" in pruned_layers(prune_downsample_convs=True)
    assert not {"grouped", "batched", "last"} & pruned_layers(prune_first_conv=True, prune_downsample_convs=True)


def test_a_controller_with_the_rates_of_nncf_can_be_stored() -> None:
    controller = nncf({"pruning_flops_target": 0.2})
    copied = pickle.loads(pickle.dumps(controller))
    for each in (controller, copied):
        each.compression_rate = 0.3
    assert copied.report() == controller.report()


def test_the_highest_share_of_macs_can_be_set() -> None:
    model = nn.Sequential(nn.Conv2d(1, 32, 3), nn.Conv2d(32, 4, 3))
    controller = nncf({"pruning_flops_target": 0.3, "all_weights": True}, model)
    controller.disable_scheduler()
    controller.compression_rate = controller.maximal_compression_rate
    assert controller.report().achieved_rate == pytest.approx(controller.maximal_compression_rate)
