"""Quantized models as files: which operators onnxruntime fuses, and that its outputs equal those of torch."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import onnx
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from kedro_aat.compression.quantization.controller import QuantizationController
from kedro_aat.compression.quantization.layers import quantized_spec
from kedro_aat.export.onnx_file import to_onnx
from kedro_aat.export.program import to_program
from kedro_aat.export.session import open_session, run_session
from kedro_aat.export.settings import FileSettings
from kedro_aat.export.subject import Subject
from kedro_aat.export.verify import verify_onnx, verify_program
from kedro_aat.pipelines.digits.model import ResidualCNN
from kedro_aat.pipelines.digits.nodes import SplitSettings, split_digits
from tests.compression.quantization.quantized import (
    Branching,
    Separable,
    Sequence,
    optimized_operators,
    quantized,
    run,
    settled,
)
from tests.nets import Perceptron

DIGITS = Path(__file__).parents[2] / "data/01_raw/digits.csv"
# PT2E's operators, and layers that they surround.
DECOMPOSED = torch.ops.quantized_decomposed
LAYERS = (torch.ops.aten.conv2d.default, torch.ops.aten.linear.default)
FLOAT_LAYERS = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul")
# Fraction of the largest output. Float32 sums differ between CPUs and runtimes in their last bits, and each such
# difference can round a few integers the other way. Saturation would cost more; the 7-bit weights prevent it.
ROUNDING = 0.03


def stripped(model: nn.Module, inputs: Tensor, rate: float = 0.999, **settings: object) -> nn.Module:
    return quantized(settled(model, inputs), inputs, rate, **settings).strip()


def residual_cnn() -> nn.Module:
    return ResidualCNN((8, 16))


def perceptron() -> nn.Module:
    return Perceptron([20, 64, 32, 4])


# Models are made in the test, after the seed: how many integers differ depends on their weights.
@pytest.mark.parametrize(
    ("make", "shape", "integer_layers", "search"),
    [
        (residual_cnn, (1, 8, 8), {"QLinearConv": 6, "QGemm": 1, "QLinearAdd": 1}, True),
        pytest.param(perceptron, (20,), {"QGemm": 3}, True, marks=pytest.mark.slow),
        pytest.param(Separable, (3, 16, 16), {"QLinearConv": 3, "QGemm": 1}, True, marks=pytest.mark.slow),
        pytest.param(
            *(Branching, (3, 16, 16), {"QLinearConv": 4, "QLinearAdd": 1, "QLinearConcat": 1}, True),
            marks=pytest.mark.slow,
        ),
        (Sequence, (6, 32), {"MatMulIntegerToFloat": 2, "QGemm": 1}, False),
        pytest.param(Sequence, (6, 32), {"MatMulIntegerToFloat": 2, "QGemm": 1}, True, marks=pytest.mark.slow),
    ],
)
def test_onnxruntime_computes_layers_in_integers(
    make: Callable[[], nn.Module], shape: tuple[int, ...], integer_layers: dict[str, int], search: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = make()
    inputs = torch.randn(32, *shape)
    small = stripped(model, inputs)
    file = to_onnx(small, inputs, search=search)
    operators = optimized_operators(file, tmp_path)
    assert {name: operators[name] for name in integer_layers} == integer_layers, operators
    # The model output and the convolutions that compute it stay in full precision; attention is not a layer.
    allowed = {Branching: 1, Sequence: 4}.get(type(model), 0)
    assert sum(operators[name] for name in FLOAT_LAYERS) <= allowed, operators
    assert verify_onnx(file, small, inputs, tolerance=ROUNDING).difference <= ROUNDING
    assert verify_program(to_program(small, inputs), small, inputs).difference <= 1e-6


def test_file_is_a_quarter_of_the_size() -> None:
    inputs = torch.rand(4, 64)
    model = settled(Perceptron([64, 256, 256, 10]), inputs)
    before = len(to_onnx(model, inputs).SerializeToString())
    after = len(to_onnx(stripped(model, inputs), inputs).SerializeToString())
    assert before / after > 3.6


def test_weights_of_the_file_are_int8_under_their_names() -> None:
    inputs = torch.rand(4, 1, 8, 8)
    file = to_onnx(stripped(ResidualCNN((4, 8)), inputs), inputs, search=False)
    types = {tensor.name: tensor.data_type for tensor in file.graph.initializer}
    assert types["stem.0.weight"] == types["classifier.weight"] == onnx.TensorProto.INT8
    assert types["stem.0.bias"] == types["classifier.bias"] == onnx.TensorProto.INT32


@pytest.mark.parametrize("rate", [pytest.param(0.1, marks=pytest.mark.slow), 0.6])
def test_layers_left_in_full_precision_agree_too(rate: float) -> None:
    torch.manual_seed(1)
    inputs = torch.rand(32, 1, 8, 8)
    small = stripped(ResidualCNN((8, 16)), inputs, rate)
    verify_onnx(to_onnx(small, inputs, search=False), small, inputs, tolerance=ROUNDING)


def test_inputs_can_be_left_in_full_precision(tmp_path: Path) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(32, 3, 16, 16)
    small = stripped(Separable(), inputs, quantize_inputs=False)
    file = to_onnx(small, inputs, search=False)
    verify_onnx(file, small, inputs, tolerance=ROUNDING)
    assert optimized_operators(file, tmp_path)["QLinearConv"] == 2  # the stem reads the input


def test_digits_trained_in_int8_keep_their_accuracy(tmp_path: Path) -> None:
    train, validation, _ = split_digits(pd.read_csv(DIGITS), SplitSettings())
    torch.manual_seed(0)
    model = ResidualCNN((8, 16, 32))
    fit(model, train, num_epochs=6, lr=0.05)
    dense = run(model, validation["inputs"]).argmax(1)

    controller = QuantizationController(model)
    controller.calibrate(train["inputs"].split(64)[:4])
    fit(model, train, num_epochs=2, lr=0.01)
    controller.disable_scheduler()

    small = controller.strip()
    labels = run(small, validation["inputs"]).argmax(1)
    assert_agree(labels, run(controller.model, validation["inputs"]).argmax(1), 0.995)
    session = open_session(to_onnx(small, validation["inputs"]).SerializeToString())
    assert_agree(run_session(session, validation["inputs"]).argmax(1), labels, 0.995)
    correct = [float((given == validation["targets"]).double().mean()) for given in (dense, labels)]
    assert correct[0] > 0.95
    assert correct[1] > correct[0] - 0.01


def assert_agree(left: Tensor, right: Tensor, share: float) -> None:
    assert float((left == right).double().mean()) >= share


def fit(model: nn.Module, data: dict[str, Tensor], *, num_epochs: int, lr: float) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    model.train()
    for _, batch in itertools.product(range(num_epochs), torch.randperm(len(data["inputs"])).split(32)):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data["inputs"][batch]), data["targets"][batch]).backward()
        optimizer.step()


@pytest.mark.parametrize(("make", "shape"), [(residual_cnn, (1, 8, 8)), (Sequence, (6, 32))])
def test_operators_of_pt2e_compute_what_was_trained(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = make()
    inputs = torch.randn(16, *shape)
    small = stripped(model, inputs)
    before = small.state_dict()
    subject = Subject(small, inputs, FileSettings())
    programs = [
        subject.trace(free={}, kind=Dim.DYNAMIC, operators="decomposed", most=16),
        subject.trace_batch(16, "decomposed"),
    ]
    expected = run(small, inputs)
    for program in programs:
        with torch.no_grad():
            torch.testing.assert_close(program.module()(inputs), expected, rtol=0, atol=1e-6)
    spec = quantized_spec(small)
    assert spec is not None
    rounded = [node for node in programs[0].graph.nodes if node.target == DECOMPOSED.quantize_per_tensor.default]
    assert sorted((node.args[1], node.args[2] + 128) for node in rounded) == sorted(
        (tensor.scale, tensor.zero_point) for tensor in spec.tensors
    )
    weights = [node for node in programs[0].graph.nodes if node.target == DECOMPOSED.dequantize_per_channel.default]
    # Whoever fuses a layer wants its integers, scales, zero points and bias as constants.
    assert {part.op for node in weights for part in node.all_input_nodes} == {"placeholder"}
    layers = [node for node in programs[0].graph.nodes if node.target in LAYERS and node.args[1] in weights]
    assert len(layers) >= len([layer for layer in spec.layers if layer.has_integer_bias])
    assert {node.args[2].op for node in layers} == {"placeholder"}
    after = small.state_dict()
    assert {name: tensor.dtype for name, tensor in after.items()} == {
        name: tensor.dtype for name, tensor in before.items()
    }
