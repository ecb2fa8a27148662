"""Composites beyond the contract: whose rate they have, how they are stripped, and what they refuse."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from kedro_aat import CompressionStage
from kedro_aat.compression.build import build_controller
from kedro_aat.compression.filters.controller import FilterPruningController
from kedro_aat.compression.filters.costs import num_parameters
from kedro_aat.compression.quantization.controller import QuantizationController
from kedro_aat.compression.schedule import ScheduleSettings
from kedro_aat.compression.settings import (
    Composite,
    FilterPruning,
    MagnitudeSparsity,
    Quantization,
    parse_compression,
)
from kedro_aat.compression.sparsity.controller import MagnitudeSparsityController
from kedro_aat.errors import ConfigurationError, ModelError
from kedro_aat.export.onnx_file import to_onnx
from kedro_aat.export.session import open_session, run_session
from kedro_aat.pipelines.digits.model import ResidualCNN
from kedro_aat.testing.training import assert_same_bits, sgd, small_net, train
from tests.compression.architectures import ARCHITECTURES, make
from tests.compression.composites import INPUTS, INT8, PRUNING, SOFTMAX, SPARSITY, at_rate, compose
from tests.compression.quantization.quantized import optimized_operators, run, settled

RISING = ScheduleSettings(kind="polynomial", target_rate=0.5, target_epoch=2, power=1.0)
HALF = ScheduleSettings(initial_rate=0.5)


def zeros(parameter: Tensor) -> float:
    return float((parameter == 0).double().mean())


# --- settings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algorithms", "adaptive"),
    [
        ((PRUNING, INT8), "filter_pruning"),
        ((INT8, PRUNING), "filter_pruning"),
        ((SPARSITY, INT8), "magnitude_sparsity"),
        ((SPARSITY, PRUNING), "filter_pruning"),
        ((INT8, SPARSITY, PRUNING), "filter_pruning"),
        ((SOFTMAX, INT8), "quantization"),
        ((SPARSITY, SOFTMAX, INT8), "magnitude_sparsity"),
    ],
)
def test_rate_is_that_of_the_adaptive_algorithm(algorithms: tuple[Any, ...], adaptive: str) -> None:
    controller = compose(*algorithms)
    assert controller.adaptive.name == adaptive
    controller.compression_rate = 0.4
    assert controller.report() == controller.adaptive.report()
    assert controller.report().requested_rate == 0.4
    assert controller.maximal_compression_rate == controller.adaptive.maximal_compression_rate
    others = [child for child in controller.children if child is not controller.adaptive]
    assert all(child.report().requested_rate == child.settings.schedule.initial_rate for child in others)


def test_list_of_settings_is_a_composite() -> None:
    data = [{"algorithm": "filter_pruning", "rate_of": "macs"}, {"algorithm": "quantization"}]
    expected = Composite(algorithms=(FilterPruning(rate_of="macs"), Quantization()))
    assert parse_compression(data) == expected
    assert parse_compression({"algorithm": "composite", "algorithms": data}) == expected
    assert parse_compression(data[:1]) == FilterPruning(rate_of="macs")
    assert parse_compression(expected.model_dump(mode="json")) == expected


@pytest.mark.parametrize(
    ("data", "mistake"),
    [
        ([], "compression: algorithms must be at least two, but got 0; one alone needs no composite"),
        (
            [{"algorithm": "quantization"}, {"algorithm": "quantization"}],
            "compression: algorithms must be of different kinds, but quantization is there more than once",
        ),
        (
            [{"algorithm": "quantization"}, {"algorithm": "filter_pruning", "round_two": 8}],
            "compression.1.round_two: unknown key (its value is 8). Did you mean 'round_to'?",
        ),
        (
            {"algorithm": "composite", "algorithms": [{"algorithm": "quantization"}, {"algorithm": "pruning"}]},
            "compression.algorithms.1.algorithm: must be one of magnitude_sparsity, filter_pruning, quantization, "
            "knowledge_distillation, but got 'pruning'. Did you mean 'filter_pruning'?",
        ),
    ],
)
def test_mistakes_in_a_list_are_named_by_position(data: Any, mistake: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_compression(data)
    assert caught.value.mistakes == [mistake]


def test_distillation_alone_is_not_a_compression() -> None:
    with pytest.raises(ConfigurationError, match="must be one of magnitude_sparsity, filter_pruning, quantization"):
        parse_compression({"algorithm": "knowledge_distillation", "type": "mse"})


# --- schedules and stages --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pruning", "sparsity", "expected"),
    [
        (HALF, HALF, "FFFF"),
        (RISING, HALF, "PPPF"),
        (HALF, RISING, "PPPF"),
        (RISING, RISING, "UUPF"),
        (ScheduleSettings(), RISING, "PPPF"),
    ],
)
def test_stages_are_added_up(pruning: ScheduleSettings, sparsity: ScheduleSettings, expected: str) -> None:
    controller = compose(FilterPruning(schedule=pruning), MagnitudeSparsity(schedule=sparsity), SOFTMAX)
    stages = [controller.compression_stage()]
    for _ in range(3):
        controller.scheduler.epoch_step()
        stages.append(controller.compression_stage())
    assert "".join(stage.name[0] for stage in stages) == expected


def test_other_algorithms_follow_their_schedules_during_a_search() -> None:
    controller = compose(PRUNING, MagnitudeSparsity(schedule=RISING))
    controller.disable_scheduler()
    controller.compression_rate = 0.3
    requested = []
    for _ in range(3):
        controller.scheduler.epoch_step()
        controller.scheduler.step()
        requested.append(tuple(child.report().requested_rate for child in controller.children))
    assert requested == [(0.3, 0.0), (0.3, 0.25), (0.3, 0.5)]
    assert controller.compression_stage() is CompressionStage.FULLY_COMPRESSED


def test_rate_path_changes_only_the_adaptive_rate() -> None:
    controller = compose(PRUNING, INT8)
    controller.steps_per_epoch = 2
    controller.disable_scheduler()
    controller.scheduler.follow_rate_path((0.2, 0.4))
    controller.scheduler.epoch_step()
    rates = []
    for _ in range(2):
        controller.scheduler.step()
        rates.append(controller.report().requested_rate)
    assert rates == [0.2, 0.4]
    assert controller.children[1].compression_rate == 1


def test_state_of_other_algorithms_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="the state is of"):
        compose(PRUNING, INT8).load_state(compose(SPARSITY, INT8).get_state())


def test_statistics_contain_the_tables_of_all_algorithms() -> None:
    controller = at_rate(PRUNING, SPARSITY, INT8)
    text = controller.statistics().to_str()
    assert [text.count(word) for word in ("filter_pruning", "magnitude_sparsity", "of the weights are int8")] == [1] * 3
    assert controller.statistics().rate == controller.compression_rate


# --- filters and quantization ----------------------------------------------------------------------------------


def residual() -> nn.Module:
    """A model in which the layers that read the least important channels have the largest weights."""
    torch.manual_seed(0)
    model = settled(ResidualCNN((8, 16)), INPUTS)
    with torch.no_grad():
        model.get_submodule("blocks.0.conv1").get_parameter("weight")[:3] *= 0.01
        model.get_submodule("blocks.0.conv2").get_parameter("weight")[:, :3] *= 4
    return model


@pytest.mark.parametrize(
    ("rate", "overflow_fix"),
    [
        *((rate, False) for rate in (0.0, 0.3, 0.6)),
        (0.6, True),
        *(pytest.param(rate, True, marks=pytest.mark.slow) for rate in (0.0, 0.3)),  # these are exported as well
    ],
)
def test_cut_and_quantized_model_computes_what_the_masked_model_does(
    rate: float, overflow_fix: bool, tmp_path: Path
) -> None:
    controller = at_rate(PRUNING, Quantization(overflow_fix=overflow_fix), rate=rate, model=residual())
    train(controller.model, torch.optim.SGD(controller.model.parameters(), lr=0.01))
    expected = run(controller.model, INPUTS)
    small = controller.strip()
    step = (expected.max() - expected.min()) / 255
    assert (run(small, INPUTS) - expected).abs().max() <= step
    assert small.state_dict()["blocks.0.conv2.weight"].dtype == torch.int8
    channels = small.get_parameter("blocks.0.conv1.weight").shape[0]
    assert channels == 8 if rate == 0 else channels < 8
    if not overflow_fix:  # onnxruntime is wrong on some CPUs without the fix
        return
    file = to_onnx(small, INPUTS, search=False)
    labels = run_session(open_session(file.SerializeToString()), INPUTS).argmax(1)
    assert torch.equal(labels, run(small, INPUTS).argmax(1))
    operators = optimized_operators(file, tmp_path)
    assert operators["QLinearConv"] == 6
    assert not operators["Conv"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures_are_cut_and_quantized(name: str) -> None:
    model, inputs = make(name)
    controller = compose(PRUNING, INT8, model=model, inputs=inputs)
    controller.calibrate([inputs])
    controller.compression_rate = 0.4
    expected = run(controller.model, inputs)
    small = controller.strip()
    assert num_parameters(small) < num_parameters(controller.model)
    assert (run(small, inputs) - expected).abs().max() < 0.03 * expected.abs().max()


@pytest.mark.parametrize("name", ["convnext", "vision_transformer"])
def test_masked_normalizations_have_the_steps_and_ranges_of_the_cut_ones(name: str) -> None:
    model, inputs = make(name)
    twin = copy.deepcopy(model)
    masked, pruned = (
        compose(PRUNING, INT8, model=model, inputs=inputs),
        FilterPruningController(twin, PRUNING, example_input=inputs),
    )
    masked.compression_rate = pruned.compression_rate = 0.4
    cut = QuantizationController(pruned.strip(), INT8)
    for controller in (masked, cut):
        controller.calibrate([inputs])
    states = [controller.get_state()["placement"] for controller in (masked.children[1], cut)]
    assert states[0] == states[1]
    ranges = [controller.model.get_buffer("_activation_ranges") for controller in (masked, cut)]
    torch.testing.assert_close(*ranges)


@pytest.mark.parametrize("adaptive", [PRUNING, SPARSITY], ids=lambda settings: settings.algorithm)
def test_post_training_quantization_does_not_change_training(adaptive: Any) -> None:
    alone = build_controller(settled(small_net(), INPUTS), adaptive, example_input=INPUTS)
    both = compose(adaptive, Quantization(calibration_only=True))
    for controller in (alone, both):
        controller.disable_scheduler()
        controller.compression_rate = 0.5
        train(controller.model, sgd(controller.model))
    outputs = [run(controller.model, INPUTS) for controller in (alone, both)]
    for name, parameter in alone.model.named_parameters():
        assert torch.equal(both.model.get_parameter(name), parameter), name
    assert both.report() == alone.report()
    largest = float(outputs[0].abs().max())
    assert 0 < float((outputs[1] - outputs[0]).abs().max()) < 0.1 * largest
    small = both.strip()
    torch.testing.assert_close(run(small, INPUTS), outputs[1], rtol=0, atol=0.02 * largest)
    assert small.state_dict()["conv.weight"].dtype == torch.int8
    assert small.get_parameter("conv.weight").shape == alone.strip().get_parameter("conv.weight").shape


def test_cut_and_quantized_model_can_be_copied() -> None:
    small = at_rate(PRUNING, INT8).strip()
    assert torch.equal(run(copy.deepcopy(small), INPUTS), run(small, INPUTS))


def test_calibration_measures_the_masked_model() -> None:
    controller = compose(PRUNING, INT8)
    controller.compression_rate = 0.6
    with torch.no_grad():  # as momentum changes masked weights
        for parameter in controller.model.parameters():
            parameter.add_(100.0)
    controller.calibrate([INPUTS])
    twin = copy.deepcopy(controller)
    run(twin.model, INPUTS)
    twin.calibrate([INPUTS])
    assert_same_bits(dict(controller.model.named_buffers()), dict(twin.model.named_buffers()))


# --- sparsity --------------------------------------------------------------------------------------------------


def test_zeros_stay_zero_in_integers() -> None:
    controller = at_rate(SPARSITY, INT8, rate=0.7)
    train(controller.model, sgd(controller.model))
    run(controller.model, INPUTS)
    small = controller.strip()
    for name in ("stem.0.weight", "conv.weight", "classifier.weight"):
        integers, masked = small.state_dict()[name], controller.model.get_parameter(name)
        assert integers.dtype == torch.int8
        assert not integers[masked == 0].any()
    assert zeros(small.state_dict()["conv.weight"]) > 0.6
    assert controller.weight_names == []


def test_weight_under_two_masks_returns_when_neither_masks_it() -> None:
    dense = settled(small_net(), INPUTS)
    pruned, sparse = (copy.deepcopy(dense) for _ in range(2))
    controller = compose(PRUNING, SPARSITY, model=pruned)
    filters, weights = controller.children
    before = {name: tensor.clone() for name, tensor in dense.named_parameters()}
    for first, second in ((0.6, 0.8), (0.2, 0.8), (0.2, 0.1), (0.7, 0.5)):
        filters.compression_rate = first
        weights.compression_rate = second
    alone = MagnitudeSparsityController(sparse, SPARSITY)
    alone.compression_rate = 0.5
    filters.compression_rate = 0.0
    assert_same_bits(dict(pruned.named_parameters()), dict(sparse.named_parameters()))
    filters.compression_rate = 0.6
    weights.compression_rate = 0.0
    filters.compression_rate = 0.0
    assert_same_bits(dict(pruned.named_parameters()), before)


def test_all_three_algorithms_are_stripped_together() -> None:
    controller = at_rate(PRUNING, MagnitudeSparsity(schedule=HALF), INT8, rate=0.4)
    train(controller.model, sgd(controller.model))
    expected = run(controller.model, INPUTS)
    small = controller.strip()
    torch.testing.assert_close(run(small, INPUTS), expected, rtol=0, atol=5e-3)
    weight = small.state_dict()["conv.weight"]
    assert weight.dtype == torch.int8
    assert weight.shape[0] < 8
    assert zeros(weight) > 0.2
    assert onnx.load_from_string(to_onnx(small, INPUTS, search=False).SerializeToString()).graph.node


# --- mistakes ---------------------------------------------------------------------------------------------------


def test_mistake_in_one_algorithm_leaves_the_model_unchanged() -> None:
    model = settled(small_net(), INPUTS)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    halves = FilterPruning(schedule=HALF), MagnitudeSparsity(schedule=HALF)
    with pytest.raises(ConfigurationError, match="'head' matches no layer"):
        compose(*halves, Quantization(ignored_scopes=("head",)), SOFTMAX, model=model)
    assert_same_bits(dict(model.state_dict()), before)
    assert not any(value for name, value in vars(model).items() if name.endswith("_hooks"))
    compose(*halves, Quantization(ignored_scopes=("classifier",)), SOFTMAX, model=model)


def test_filter_pruning_needs_an_example_input() -> None:
    with pytest.raises(ModelError, match="example_input"):
        build_controller(small_net(), Composite(algorithms=(INT8, PRUNING)))


@pytest.mark.parametrize("first", [MagnitudeSparsityController, FilterPruningController, QuantizationController])
@pytest.mark.parametrize("second", [MagnitudeSparsityController, FilterPruningController, QuantizationController])
def test_second_controller_on_a_model_is_refused(first: Any, second: Any) -> None:
    model = small_net()
    first(model, example_input=INPUTS)
    with pytest.raises(ModelError, match=r"carries masks|is under quantization already"):
        second(model, example_input=INPUTS)


@pytest.mark.parametrize("algorithms", [(PRUNING, INT8), (SPARSITY, INT8), (INT8, SOFTMAX)])
def test_composite_on_a_compressed_model_is_refused(algorithms: tuple[Any, ...]) -> None:
    model = MagnitudeSparsityController(small_net()).model
    before = list(model.state_dict())
    with pytest.raises(ModelError, match="carries masks already"):
        compose(*algorithms, model=model)
    assert list(model.state_dict()) == before
