"""Quantization beyond the contract: which layers are quantized, the controller's state, and what is refused."""

from __future__ import annotations

import copy
import json
import logging

import pytest
import torch
from torch import nn

from kedro_aat import CompressionStage
from kedro_aat.compression.build import build_controller
from kedro_aat.compression.filters.costs import num_parameters
from kedro_aat.compression.quantization.controller import QuantizationController
from kedro_aat.compression.settings import (
    Composite,
    KnowledgeDistillation,
    MagnitudeSparsity,
    Quantization,
    keeping_zeros,
    parse_compression,
)
from kedro_aat.errors import ConfigurationError, ModelError
from kedro_aat.testing.training import BATCH, small_net
from tests.compression.quantization.quantized import Sequence, quantized, run, settled
from tests.nets import Perceptron

INPUTS = BATCH["inputs"]


def test_least_sensitive_layers_come_first() -> None:
    torch.manual_seed(0)
    model = Perceptron([8, 10, 10, 10])
    with torch.no_grad():
        model.layers[1].get_parameter("weight")[:, 0] *= 300  # one large weight leaves few levels to the others
    controller = QuantizationController(model)
    frame = controller.statistics().as_frame().set_index("layer")
    assert frame["sensitivity"].idxmax() == "layers.1.weight"
    controller.compression_rate = 0.6
    bits = controller.statistics().as_frame().set_index("layer")["bits"]
    assert bits.to_dict() == {"layers.0.weight": 8, "layers.1.weight": 32, "layers.2.weight": 8}


@pytest.mark.parametrize(
    ("requested", "achieved"), [(0.0, 0.0), (0.1, 0.0), (0.2, 0.25), (0.4, 0.5), (0.8, 0.75), (0.99, 1), (0.998, 1)]
)
def test_achieved_rate_is_the_share_nearest_to_the_requested_rate(requested: float, achieved: float) -> None:
    controller = QuantizationController(Perceptron([8, 8, 8, 8, 8]))
    controller.compression_rate = requested
    assert controller.compression_rate == achieved
    assert controller.statistics().rate == achieved


def test_high_rate_includes_a_tiny_last_layer() -> None:
    controller = QuantizationController(Perceptron([500, 500, 2]))
    controller.compression_rate = 0.995
    assert controller.compression_rate == 1


def test_all_layers_are_quantized_from_the_start() -> None:
    controller = QuantizationController(small_net())
    assert controller.compression_rate == 1
    assert controller.compression_stage() is CompressionStage.FULLY_COMPRESSED


def test_statistics_list_every_layer() -> None:
    controller = QuantizationController(small_net(), Quantization(ignored_scopes=("stem",)))
    statistics = controller.statistics()
    frame = statistics.as_frame()
    assert list(frame) == ["layer", "shape", "bits", "computed in", "weights", "sensitivity", "rate"]
    assert frame["layer"].tolist() == ["conv.weight", "classifier.weight"]
    assert frame["shape"].tolist() == ["8x8x3x3", "4x8"]
    # 608 of 680 weights in int8, and 72 of 4 bytes in the stem.
    assert "0.8941 of the weights are int8, in 2 of 2 layers; all weights take 896 bytes" in statistics.to_str()
    assert "stem.0.weight stays in full precision: its layer is excluded by the scopes" in statistics.to_str()


def test_loaded_controller_can_be_stripped_without_a_batch() -> None:
    old = quantized(settled(small_net(), INPUTS), INPUTS)
    new = QuantizationController(small_net(seed=3))
    new.model.load_state_dict(old.model.state_dict())
    new.load_state(json.loads(json.dumps(old.get_state())))
    assert torch.equal(run(new.strip(), INPUTS), run(old.strip(), INPUTS))


def test_settings_are_distinguished_by_their_algorithm() -> None:
    assert parse_compression({"algorithm": "quantization", "calibration_only": True}).algorithm == "quantization"
    assert isinstance(parse_compression({"algorithm": "magnitude_sparsity"}), MagnitudeSparsity)
    with pytest.raises(ConfigurationError, match=r"must be one of .*quantization.* but got 'quantisation'"):
        parse_compression({"algorithm": "quantisation"})
    with pytest.raises(ConfigurationError, match="range_momentum"):
        parse_compression({"algorithm": "quantization", "range_momentum": 0})


def test_half_precision_is_refused() -> None:
    with pytest.raises(ModelError, match=r"float32 weights, but stem\.0\.weight.* torch\.float16: call\s+model\.float"):
        QuantizationController(small_net().half())


@pytest.mark.parametrize(
    "model", [nn.Sequential(nn.LayerNorm(3)), nn.LSTM(2, 2), nn.ConvTranspose2d(2, 2, 3), nn.Linear(2, 2)]
)
def test_model_without_layers_that_hold_int8_is_refused(model: nn.Module) -> None:
    with pytest.raises(ModelError, match="no layer that can be"):
        QuantizationController(model)


def test_model_of_computed_weights_alone_is_refused_with_what_makes_them_plain() -> None:
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 2)))
    call = r"remove_parametrizations\(model\.get_submodule\('0'\), 'weight'\)"
    with pytest.raises(ModelError, match=rf"0\.weight is computed by SpectralNorm .*{call}"):
        QuantizationController(model)


def test_weights_that_stay_in_full_precision_are_named_and_count(caplog: pytest.LogCaptureFixture) -> None:
    class Positions(Sequence):
        def __init__(self) -> None:
            super().__init__()
            self.positions = nn.Parameter(torch.zeros(6, 32))
            self.head = nn.utils.parametrizations.weight_norm(self.head)

    with caplog.at_level(logging.WARNING):
        controller = QuantizationController(Positions())
    assert "positions, because its module is no layer" in caplog.text
    assert "head.parametrizations.weight.original1, because it is parametrized" in caplog.text
    num_float, total = 6 * 32 + 3 * 32 + 3, sum(p.numel() for p in Positions().parameters() if p.ndim > 1)
    assert controller.compression_rate == controller.maximal_compression_rate == (total - num_float) / total


def test_weight_that_two_layers_share_is_held_once() -> None:
    inputs = torch.randn(16, 4)
    model = Perceptron([4, 4, 4, 4])
    model.layers[2].weight = model.layers[0].weight
    controller = quantized(model, inputs)
    frame = controller.statistics().as_frame().set_index("layer")
    assert frame["computed in"].to_dict() == {"layers.1.weight": "int8", "layers.0.weight": "float"}
    expected, small = run(model, inputs), controller.strip()
    torch.testing.assert_close(run(small, inputs), expected, rtol=0, atol=1e-3)  # the bias is int32
    held = dict(small.named_buffers(remove_duplicate=False))
    assert held["layers.0.weight"] is held["layers.2.weight"]
    assert num_parameters(small) == num_parameters(model)


def test_strip_before_the_first_batch_is_refused() -> None:
    with pytest.raises(ModelError, match=r"SmallNet was not called .*calibrate\(batches\)"):
        QuantizationController(small_net()).strip()
    QuantizationController(small_net(), example_input=INPUTS).strip()


def test_second_quantization_is_refused() -> None:
    controller = quantized(small_net(), INPUTS)
    with pytest.raises(ModelError, match="already"):
        QuantizationController(controller.model)
    with pytest.raises(ModelError, match="no layer"):
        QuantizationController(controller.strip())


def test_zeros_stay_zero_in_training_and_in_integers_if_they_are_kept() -> None:
    torch.manual_seed(0)
    model = Perceptron([8, 16, 16, 4])
    sparsity = build_controller(model, MagnitudeSparsity())
    sparsity.compression_rate = 0.75
    sparse = sparsity.strip()
    zeros = {name: parameter == 0 for name, parameter in sparse.named_parameters() if name.endswith("weight")}
    settings = keeping_zeros(parse_compression([{"algorithm": "quantization", "ignored_scopes": ["layers.2"]}]))
    for kept in (True, False):
        controller = build_controller(copy.deepcopy(sparse), settings if kept else Quantization())
        inputs = torch.randn(32, 8)
        controller.calibrate([inputs])  # type: ignore[attr-defined]
        optimizer = torch.optim.SGD(controller.model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            controller.model(inputs).square().sum().backward()
            optimizer.step()
        again = build_controller(Perceptron([8, 16, 16, 4]), controller.settings)  # as a dataset loads it
        again.model.load_state_dict(controller.model.state_dict())
        again.load_state(controller.get_state())
        for each in (controller, again):
            stripped = each.strip()
            held = stripped.state_dict()
            assert all(bool((held[name][mask] == 0).all()) for name, mask in zeros.items()) is kept
            assert not any("mask" in name or "shadow" in name for name in stripped.state_dict())
        torch.testing.assert_close(again.strip()(inputs), controller.strip()(inputs))


def test_kept_zeros_survive_in_a_list_of_algorithms() -> None:
    quantization, distillation = Quantization(), KnowledgeDistillation(type="mse")
    kept = keeping_zeros(Composite(algorithms=(quantization, distillation)))
    assert isinstance(kept, Composite)
    assert kept.algorithms == (Quantization(keep_zeros=True), distillation)
    assert keeping_zeros(MagnitudeSparsity()) == MagnitudeSparsity()
