"""Quantization to 8 bits beyond the contract: what is rounded, which layers, which ranges, and what is refused."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kedro_aat import CompressionStage
from kedro_aat.compression.build import build_controller
from kedro_aat.compression.quantization.arithmetic import (
    activation_scales,
    integer_weight,
    round_activation,
    round_weight,
    weight_scales,
)
from kedro_aat.compression.quantization.controller import QuantizationController
from kedro_aat.compression.quantization.layers import (
    QuantizedConv,
    QuantizedLinear,
    QuantizedModelSpec,
    make_quantized,
    quantized_spec,
)
from kedro_aat.compression.settings import MagnitudeSparsity, Quantization, parse_compression
from kedro_aat.errors import ConfigurationError, DataError, ModelError
from kedro_aat.pipelines.digits.model import ResidualCNN
from tests.compression.quantization.quantized import Branching, Separable, Sequence, quantized, run, settled
from tests.compression.training import BATCH, sgd, small_net, train
from tests.nets import Perceptron, SmallNet

INPUTS = BATCH["inputs"]


def steps_of(tensor: Tensor) -> int:
    """How many different numbers there are."""
    return len(tensor.unique())


# --- arithmetic ------------------------------------------------------------------------------------------------


def test_rounded_weight_is_its_integers_times_their_scales() -> None:
    weight = torch.randn(5, 3, 3, 3)
    scales = weight_scales(weight, 127)
    integers = integer_weight(weight, scales)
    assert integers.dtype == torch.int8
    assert (integers.flatten(1).abs().amax(1) == 127).all()
    assert torch.equal(round_weight(weight, 127), integers * scales.view(-1, 1, 1, 1))
    assert ((round_weight(weight, 127) - weight).abs() <= scales.view(-1, 1, 1, 1) / 2 * 1.0001).all()


def test_gradients_pass_the_rounding_but_not_the_clipping() -> None:
    weight = torch.randn(2, 3, requires_grad=True)
    round_weight(weight, 127).sum().backward()
    assert weight.grad is not None
    assert (weight.grad == 1).all()
    x = torch.tensor([-3.0, -0.9, 0.1, 1.9, 2.5], requires_grad=True)
    (scale,), (zero_point,) = activation_scales(torch.tensor([[-1.0, 2.0]]))
    round_activation(x, scale, zero_point).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


@pytest.mark.parametrize(("low", "high"), [(0.0, 6.0), (-1.3, 2.1), (0.5, 2.0), (-3.0, -1.0), (0.0, 0.0)])
def test_zero_is_exact(low: float, high: float) -> None:
    (scale,), (zero_point,) = activation_scales(torch.tensor([[low, high]]))
    rounded = round_activation(torch.tensor([0.0, low, high]), scale, zero_point)
    assert rounded[0] == 0
    assert torch.allclose(rounded[1:], torch.tensor([low, high]), atol=float(scale))


def test_channels_of_zeros_stay_zero() -> None:
    weight = torch.randn(3, 4)
    weight[1] = 0
    rounded = round_weight(weight, 127)
    assert rounded.isfinite().all()
    assert not rounded[1].any()


# --- what is rounded -------------------------------------------------------------------------------------------


def test_tensors_between_quantized_layers_are_rounded_once_for_all_who_read_them() -> None:
    seen: dict[str, Tensor] = {}
    model = settled(ResidualCNN((4, 8)), INPUTS)
    controller = quantized(model, INPUTS)
    for name in ("blocks.0", "blocks.0.conv1", "blocks.0.shortcut", "classifier"):
        model.get_submodule(name).register_forward_pre_hook(
            lambda module, args, name=name: seen.update({name: args[0].detach()})
        )
    run(controller.model, INPUTS)
    assert steps_of(seen["blocks.0.conv1"]) <= 256
    assert torch.equal(seen["blocks.0.conv1"], seen["blocks.0.shortcut"])
    assert steps_of(seen["classifier"]) <= 256
    assert steps_of(INPUTS) > 256


def test_a_layer_in_full_precision_reads_and_gives_full_precision() -> None:
    model = settled(SmallNet(), INPUTS)
    seen: list[Tensor] = []
    model.get_submodule("conv").register_forward_hook(lambda module, args, out: seen.append(out.detach()))
    controller = quantized(model, INPUTS, ignored_scopes=("conv", "classifier"))
    assert controller.compression_rate == 1
    run(model, INPUTS)
    expected = F.conv2d(
        run(model.get_submodule("stem"), controller_input(controller, INPUTS)),
        model.get_submodule("conv").get_parameter("weight"),
        model.get_submodule("conv").get_parameter("bias"),
        padding=1,
    )
    assert seen[-1].shape == expected.shape
    assert steps_of(seen[-1]) > 256


def controller_input(controller: QuantizationController, inputs: Tensor) -> Tensor:
    (scale,), (zero_point,) = activation_scales(controller._fake.ranges[:1])
    return round_activation(inputs, scale, zero_point)


def test_stripped_model_holds_integers() -> None:
    model = settled(ResidualCNN((4, 8)), INPUTS)
    expected = run(model, INPUTS)
    small = quantized(model, INPUTS).strip()
    assert type(small) is ResidualCNN
    assert isinstance(small.get_submodule("stem.0"), QuantizedConv)
    assert isinstance(small.get_submodule("stem.1"), nn.Identity)
    assert isinstance(small.get_submodule("classifier"), QuantizedLinear)
    assert small.get_parameter("stem.0.weight").dtype == torch.int8
    assert small.get_parameter("stem.0.bias").dtype == torch.int32
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    assert (run(small, INPUTS) - expected).abs().max() < 0.1 * expected.abs().max()


def test_integers_of_folded_weights_are_those_of_training() -> None:
    model = settled(SmallNet(), INPUTS)
    weight = model.get_submodule("stem.0").get_parameter("weight").detach().clone()
    factor = model.get_submodule("stem.1").get_parameter("weight").detach()
    assert (factor < 0).any()
    small = quantized(model, INPUTS, overflow_fix=False).strip()
    integers = integer_weight(weight, weight_scales(weight, 127))
    assert torch.equal(small.get_parameter("stem.0.weight"), integers * factor.sign().view(-1, 1, 1, 1).to(torch.int8))


@pytest.mark.parametrize("gamma", [0.0, 1e-30, 1e-9])
def test_channels_that_batchnorm_switches_off_are_sound(gamma: float) -> None:
    model = settled(SmallNet(), INPUTS)
    with torch.no_grad():
        model.get_submodule("stem.1").get_parameter("weight")[:3] = gamma
        model.get_submodule("conv").get_parameter("weight")[2:4] = 0
    controller = quantized(model, INPUTS)
    small = controller.strip()
    assert all(tensor.isfinite().all() for tensor in small.state_dict().values())
    torch.testing.assert_close(run(small, INPUTS), run(controller.model, INPUTS), rtol=1e-4, atol=0.01)
    train(controller.model, sgd(controller.model))
    assert all(tensor.isfinite().all() for tensor in controller.model.state_dict().values())


def test_dead_model_is_sound() -> None:
    model = settled(SmallNet(), INPUTS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    controller = quantized(model, INPUTS)
    assert torch.equal(run(controller.strip(), INPUTS), torch.zeros(16, 4))
    assert run(controller.model, torch.zeros(2, 1, 8, 8)).isfinite().all()


@pytest.mark.parametrize(("make", "shape"), [(Separable, (3, 16, 16)), (Branching, (3, 16, 16)), (Sequence, (6, 32))])
@pytest.mark.parametrize("rate", [0.5, 0.999])
def test_architectures_train_and_strip(make: type[nn.Module], shape: tuple[int, ...], rate: float) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(8, *shape)
    model = settled(make(), inputs)
    controller = build_controller(model, Quantization())
    controller.compression_rate = rate
    optimizer = sgd(model)
    model.train()
    for _ in range(2):
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()
    expected = run(model, inputs)
    assert (run(controller.strip(), inputs) - expected).abs().max() < 0.05 * expected.abs().max()


def test_layer_that_is_called_twice_keeps_one_range_around_both() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layer(10 * self.layer(x).relu())
            return out

    inputs = torch.randn(32, 6)
    model = Twice()
    before = run(model, inputs)
    controller = quantized(model, inputs)
    assert (run(controller.model, inputs) - before).abs().max() < 0.1 * before.abs().max()
    torch.testing.assert_close(run(controller.strip(), inputs), run(controller.model, inputs))


def test_masked_weights_stay_zero_in_int8() -> None:
    torch.manual_seed(0)
    sparse = build_controller(settled(SmallNet(), INPUTS), MagnitudeSparsity())
    sparse.compression_rate = 0.7
    small = quantized(sparse.strip(), INPUTS).strip()
    zeros = small.get_parameter("conv.weight") == 0
    assert float(zeros.double().mean()) > 0.5


def test_autocast_trains() -> None:
    controller = quantized(small_net(), INPUTS)
    controller.model.train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(controller.model(INPUTS), BATCH["targets"])
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in controller.model.parameters())


def test_compiled_model_trains_and_evaluates_as_it_would_without() -> None:
    controller = quantized(settled(small_net(), INPUTS), INPUTS)
    compiled = torch.compile(controller.model, backend="eager")
    expected = run(controller.model, INPUTS)
    with torch.no_grad():
        assert torch.equal(compiled(INPUTS), expected)
    controller.model.train()
    for _ in range(3):
        compiled(INPUTS).sum().backward()
    assert controller.get_state()["num_observed"] == 3
    small = controller.strip().eval()
    assert torch.equal(torch.compile(small, backend="eager")(INPUTS), run(small, INPUTS))


# --- models that are not as usual ------------------------------------------------------------------------------


class ScaledLinear(nn.Linear):
    """Does more than torch's own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 10


class PaddedConv(nn.Conv2d):
    """Likewise."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (1, 1, 1, 1)))


class ActivatedNorm(nn.BatchNorm2d):
    """Likewise."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class RenamedConv(nn.Conv2d):
    """Does what torch's own does."""


class WithNicknames(nn.Module):
    """Its BatchNorm has two names, and is called by the second."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3)
        self.norms = nn.ModuleList([self.norm])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.norms[0](self.first(x)).relu())
        return out


def around(*middle: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3), *middle, nn.ReLU(), nn.Conv2d(8, 8, 3))


UNUSUAL: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "scaled linear": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), ScaledLinear(8, 4)), {"1"}),
    "padded convolution": (lambda: around(PaddedConv(8, 8, 3)), {"0", "3"}),
    "activated norm": (lambda: nn.Sequential(nn.Conv2d(1, 8, 3), ActivatedNorm(8), nn.Conv2d(8, 8, 3)), {"0", "2"}),
    "norm that is activated, and last": (lambda: around(nn.Conv2d(8, 8, 1), ActivatedNorm(8)), {"0", "1", "4"}),
    "renamed convolution": (lambda: around(RenamedConv(8, 8, 3), nn.BatchNorm2d(8)), {"0", "1", "4"}),
    "reflected edges": (lambda: around(nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")), {"0", "1", "3"}),
    "edges from the other side": (
        lambda: around(nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular")),
        {"0", "1", "3"},
    ),
    "nicknames": (WithNicknames, {"first", "last"}),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_models_compute_the_same_in_integers(name: str) -> None:
    torch.manual_seed(0)
    make, in_integers = UNUSUAL[name]
    model = settled(make(), INPUTS)
    plain = run(model, INPUTS)
    controller = quantized(model, INPUTS)
    assert {name.removesuffix(".weight") for name in controller.statistics().as_frame()["layer"]} == in_integers
    expected = run(model, INPUTS)
    assert (expected - plain).abs().max() < 0.05 * plain.abs().max()
    small = controller.strip()
    assert (run(small, INPUTS) - expected).abs().max() < 0.02 * expected.abs().max()
    description = quantized_spec(small)
    assert description is not None
    assert {layer.layer for layer in description.layers} == in_integers


def test_hooks_on_layers_outlive_them() -> None:
    seen: list[str] = []
    model = settled(SmallNet(), INPUTS)
    conv, norm, classifier = (model.get_submodule(name) for name in ("stem.0", "stem.1", "classifier"))
    norm.register_forward_pre_hook(lambda module, args: seen.append("norm"))
    conv.register_forward_pre_hook(lambda module, args, kwargs: seen.append("conv"), with_kwargs=True)
    classifier.register_forward_hook(lambda module, args, out: 10 * out)
    conv.eval().requires_grad_(False)
    controller = quantized(model.train(), INPUTS)
    norm.eval()
    small = controller.strip()
    assert [module.training for module in small.modules()] == [module.training for module in model.modules()]
    expected = run(model, INPUTS)
    seen.clear()
    assert (run(small, INPUTS) - expected).abs().max() < 0.02 * expected.abs().max()
    assert seen == ["conv", "norm"]


# --- which layers ----------------------------------------------------------------------------------------------


def test_least_sensitive_layers_come_first() -> None:
    torch.manual_seed(0)
    model = Perceptron([8, 10, 10, 10])
    with torch.no_grad():
        model.layers[1].get_parameter("weight")[:, 0] *= 300  # one large weight leaves few steps to the others
    controller = QuantizationController(model)
    frame = controller.statistics().as_frame().set_index("layer")
    assert frame["sensitivity"].idxmax() == "layers.1.weight"
    controller.compression_rate = 0.6
    bits = controller.statistics().as_frame().set_index("layer")["bits"]
    assert bits.to_dict() == {"layers.0.weight": 8, "layers.1.weight": 32, "layers.2.weight": 8}


@pytest.mark.parametrize(
    ("requested", "achieved"), [(0.0, 0.0), (0.1, 0.0), (0.2, 0.25), (0.4, 0.5), (0.8, 0.75), (0.99, 1), (0.998, 1)]
)
def test_rate_is_the_share_nearest_to_the_request(requested: float, achieved: float) -> None:
    controller = QuantizationController(Perceptron([8, 8, 8, 8, 8]))
    controller.compression_rate = requested
    assert controller.compression_rate == achieved
    assert controller.statistics().rate == achieved


def test_a_tiny_last_layer_is_not_forgotten() -> None:
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
    assert list(frame) == ["layer", "shape", "bits", "weights", "sensitivity", "rate"]
    assert frame["layer"].tolist() == ["conv.weight", "classifier.weight"]
    assert frame["shape"].tolist() == ["8x8x3x3", "4x8"]
    assert "1.0000 of the weights are int8, in 2 of 2 layers; all weights take 608 bytes" in statistics.to_str()


# --- ranges ----------------------------------------------------------------------------------------------------


def test_calibration_takes_the_mean_range_of_batches() -> None:
    controller = QuantizationController(Perceptron([2, 2]))
    controller.calibrate([torch.tensor([[-1.0, 2.0]]), (torch.tensor([[-3.0, 6.0]]), torch.tensor([0]))])
    assert controller._fake.ranges[0].tolist() == [-2, 4]


def test_ranges_follow_training_for_as_long_as_they_are_told_to() -> None:
    settings = Quantization(range_momentum=0.5, observed_steps=2)
    controller = QuantizationController(Perceptron([2, 2]), settings)
    controller.calibrate([torch.tensor([[-1.0, 1.0]])])
    controller.model.train()
    highest = []
    for _ in range(4):
        controller.model(torch.tensor([[-1.0, 5.0]]))
        highest.append(float(controller._fake.ranges[0, 1]))
    assert highest == [3, 4, 4, 4]
    with torch.no_grad():  # renewing the statistics of BatchNorms is no training
        controller.model(torch.tensor([[-1.0, 9.0]]))
    controller.model.eval()
    controller.model(torch.tensor([[-1.0, 9.0]]))
    assert float(controller._fake.ranges[0, 1]) == 4


def test_first_batch_gives_the_ranges_where_there_was_no_calibration() -> None:
    model = settled(small_net(), INPUTS)
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    controller = QuantizationController(model)
    random = torch.get_rng_state()
    run(model, INPUTS)
    assert controller._fake.ranges[0].tolist() == [float(INPUTS.min()), float(INPUTS.max())]
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(model.get_buffer(name), before) for name, before in statistics.items())


def test_batch_that_is_not_finite_does_not_spoil_the_ranges_of_training() -> None:
    controller = quantized(small_net(), INPUTS)
    before = controller._fake.ranges.clone()
    controller.model.train()
    controller.model(INPUTS * torch.inf)
    assert torch.equal(controller._fake.ranges[0], before[0])
    assert controller._fake.ranges.isfinite().all()


def test_post_training_route_leaves_training_as_it_is() -> None:
    plain, watched = small_net(), small_net()
    controller = QuantizationController(watched, Quantization(calibration_only=True))
    for model in (plain, watched):
        train(model, torch.optim.SGD(model.parameters(), lr=0.05))
    for name, parameter in plain.named_parameters():
        assert torch.equal(watched.get_parameter(name), parameter), name
    assert not torch.equal(run(watched, INPUTS), run(plain, INPUTS))
    torch.testing.assert_close(run(controller.strip(), INPUTS), run(watched, INPUTS), rtol=0, atol=0.01)


# --- state -----------------------------------------------------------------------------------------------------


def test_loaded_controller_can_be_stripped_without_a_batch() -> None:
    old = quantized(settled(small_net(), INPUTS), INPUTS)
    new = QuantizationController(small_net(seed=3))
    new.model.load_state_dict(old.model.state_dict())
    new.load_state(json.loads(json.dumps(old.get_state())))
    assert torch.equal(run(new.strip(), INPUTS), run(old.strip(), INPUTS))


def test_stripped_model_is_built_again_from_its_description() -> None:
    small = quantized(settled(small_net(), INPUTS), INPUTS).strip()
    description = quantized_spec(small)
    assert description is not None
    again = small_net(seed=5)
    make_quantized(again, QuantizedModelSpec.model_validate(json.loads(description.model_dump_json())))
    again.load_state_dict(small.state_dict())
    assert torch.equal(run(again, INPUTS), run(small, INPUTS))
    assert torch.equal(run(copy.deepcopy(again), INPUTS), run(small, INPUTS))


def test_settings_are_told_apart_by_their_algorithm() -> None:
    assert parse_compression({"algorithm": "quantization", "calibration_only": True}).algorithm == "quantization"
    assert isinstance(parse_compression({"algorithm": "magnitude_sparsity"}), MagnitudeSparsity)
    with pytest.raises(ConfigurationError, match=r"must be one of .*quantization.* but got 'quantisation'"):
        parse_compression({"algorithm": "quantisation"})
    with pytest.raises(ConfigurationError, match="range_momentum"):
        parse_compression({"algorithm": "quantization", "range_momentum": 0})


# --- what is refused -------------------------------------------------------------------------------------------


def test_half_precision_is_refused() -> None:
    with pytest.raises(ModelError, match=r"float32 weights, but stem\.0\.weight.* torch\.float16: call\s+model\.float"):
        QuantizationController(small_net().half())


@pytest.mark.parametrize(
    "model", [nn.Sequential(nn.LayerNorm(3)), nn.LSTM(2, 2), nn.ConvTranspose2d(2, 2, 3), nn.Linear(2, 2)]
)
def test_model_without_layers_that_hold_int8_is_refused(model: nn.Module) -> None:
    with pytest.raises(ModelError, match="no layer that can be"):
        QuantizationController(model)


def test_layers_that_stay_in_full_precision_are_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        QuantizationController(Sequence())
    assert "self_attn.in_proj_weight, encoder.self_attn.out_proj.weight stay in full precision" in caplog.text


def test_weight_that_two_layers_share_stays_in_full_precision() -> None:
    model = Perceptron([4, 4, 4, 4])
    model.layers[2].weight = model.layers[0].weight
    assert QuantizationController(model).statistics().as_frame()["layer"].tolist() == ["layers.1.weight"]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_calibration_with_numbers_that_are_not_finite_is_refused(value: float) -> None:
    controller = QuantizationController(small_net())
    spoilt = INPUTS.clone()
    spoilt[0, 0, 0, 0] = value
    with pytest.raises(DataError, match=r"not finite at the input of stem\.0, .*check\s+the data"):
        controller.calibrate([spoilt])
    with pytest.raises(DataError, match="not finite"):
        run(controller.model, spoilt)
    run(controller.model, INPUTS)


def test_calibration_without_batches_is_refused() -> None:
    with pytest.raises(DataError, match="at least one batch"):
        QuantizationController(small_net()).calibrate([])


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


@pytest.mark.parametrize("way", ["scaled", "positional", "by keyword"])
def test_weight_that_is_not_used_as_a_layers_is_refused(way: str) -> None:
    class Borrowing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.lent = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            x = self.used.forward(x)
            if way == "scaled":
                return F.linear(x, 2 * self.lent.weight)
            return F.linear(x, self.lent.weight) if way == "positional" else F.linear(x, weight=self.lent.weight)

    controller = QuantizationController(Borrowing())
    with pytest.raises(ModelError, match=r"does not use the weights of lent .*ignored_scopes"):
        run(controller.model, torch.randn(2, 6))
    inputs = torch.randn(8, 6)
    controller = quantized(Borrowing(), inputs, ignored_scopes=("lent",))
    expected = run(controller.model, inputs)
    assert (run(controller.strip(), inputs) - expected).abs().max() < 0.02 * expected.abs().max()


def test_forward_that_takes_another_way_is_refused() -> None:
    class Moody(nn.Module):
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

    model = Moody()
    quantized(model, torch.randn(2, 6))
    model.is_new = True
    with pytest.raises(ModelError, match="was relu when it was recorded, and is now tanh"):
        run(model, torch.randn(2, 6))
    model.is_new, model.is_short = False, True
    with pytest.raises(ModelError, match="ended after 2 steps"):
        run(model, torch.randn(2, 6))
    model.is_short = False
    run(model, torch.randn(2, 6))


def test_description_of_another_model_is_refused() -> None:
    description = quantized_spec(quantized(small_net(), INPUTS).strip())
    assert description is not None
    with pytest.raises(ModelError, match=r"Perceptron has no layers classifier, conv, stem\.0"):
        make_quantized(Perceptron([2, 2]), description)
