from __future__ import annotations

import gzip
import logging
import math
import warnings
from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from kedro_aat.errors import ExportError
from kedro_aat.export.onnx_file import to_onnx
from kedro_aat.export.verify import count_zeros, verify_onnx
from tests.export.nets import Pooled, Recurrent, TiedLanguageModel, residual_net


@pytest.fixture(scope="module")
def sparse_net() -> nn.Module:
    return residual_net(sparsity=0.9)


@pytest.fixture(scope="module")
def sparse_file(sparse_net: nn.Module) -> onnx.ModelProto:
    return to_onnx(sparse_net, torch.randn(1, 1, 8, 8))


def payload(file: onnx.ModelProto) -> int:
    """Bytes of the numbers in the initializers."""
    return sum(numpy_helper.to_array(tensor).nbytes for tensor in file.graph.initializer)


def weight_names(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.ndim >= 2]


def test_a_batch_of_one_exports_to_any_batch_size(sparse_net: nn.Module, sparse_file: onnx.ModelProto) -> None:
    (given,), (result,) = sparse_file.graph.input, sparse_file.graph.output

    def dims(value: onnx.ValueInfoProto) -> list[str | int]:
        return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]

    assert (given.name, dims(given)) == ("input", ["batch", 1, "height", "width"])
    assert (result.name, dims(result)) == ("output", ["batch", 10])
    agreement = verify_onnx(sparse_file, sparse_net, torch.randn(17, 1, 8, 8), tolerance=1e-5)
    assert agreement.batch_sizes == (17, 1)


def test_the_file_contains_its_numbers_and_little_else(sparse_file: onnx.ModelProto) -> None:
    assert sparse_file.ByteSize() - payload(sparse_file) <= 2_500  # the exporter alone: about 34,000
    assert payload(sparse_file) <= 4 * 173_842
    assert Counter(node.op_type for node in sparse_file.graph.node) == {
        "Conv": 9,
        "Relu": 7,
        "Add": 3,
        "ReduceMean": 1,
        "Gemm": 1,
    }


def test_no_metadata_of_the_exporter_is_left(sparse_file: onnx.ModelProto) -> None:
    graph = sparse_file.graph
    for message in (sparse_file, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        assert not message.metadata_props
        assert not message.doc_string
    assert not graph.value_info
    assert not sparse_file.functions
    assert not sparse_file.producer_name
    assert not sparse_file.producer_version


def test_masked_weights_are_positive_zeros(sparse_net: nn.Module, sparse_file: onnx.ModelProto) -> None:
    weights = [p for name, p in sparse_net.named_parameters() if name in weight_names(sparse_net)]
    assert any(bool((torch.signbit(w) & (w == 0)).any()) for w in weights), "the test needs negative zeros"
    for tensor in sparse_file.graph.initializer:
        numbers = numpy_helper.to_array(tensor)
        assert not (np.signbit(numbers) & (numbers == 0)).any(), tensor.name


def test_zeros_are_counted_by_name_although_batch_normalization_is_folded(
    sparse_net: nn.Module, sparse_file: onnx.ModelProto
) -> None:
    weights = [p for p in sparse_net.parameters() if p.ndim >= 2]
    zeros, numbers = count_zeros(sparse_file, weight_names(sparse_net))
    assert numbers == sum(w.numel() for w in weights)
    assert zeros == sum(int((w == 0).sum()) for w in weights)
    assert zeros / numbers == pytest.approx(0.9, abs=0.01)


def test_zeros_compress(sparse_file: onnx.ModelProto) -> None:
    compressed = len(gzip.compress(sparse_file.SerializeToString()))
    assert compressed < 0.2 * sparse_file.ByteSize()


@pytest.mark.parametrize(
    ("flatten", "features"),
    [
        pytest.param(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), 4, id="pool-flatten"),
        pytest.param(lambda x: x.view(x.size(0), -1), 256, id="view"),
        pytest.param(lambda x: x.flatten(1), 256, id="flatten"),
        pytest.param(lambda x: x.mean((2, 3)), 4, id="mean"),
    ],
)
def test_no_shape_arithmetic_is_left(flatten: nn.Module, features: int) -> None:
    model = Pooled(flatten, features)
    file = to_onnx(model, torch.randn(4, 1, 8, 8))
    operators = {node.op_type for node in file.graph.node}
    assert operators <= {"Conv", "ReduceMean", "Reshape", "Gemm"}
    verify_onnx(file, model, torch.randn(7, 1, 8, 8), tolerance=1e-5)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        pytest.param(nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.ReLU()), (3, 9), id="conv1d"),
        pytest.param(nn.Sequential(nn.ConvTranspose2d(2, 4, 3), nn.BatchNorm2d(4)), (2, 5, 5), id="transposed"),
        pytest.param(nn.Sequential(nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 4)), (5, 8), id="linear-3d"),
        pytest.param(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), (5, 8), id="attention"),
        pytest.param(Recurrent(nn.GRU(8, 6, batch_first=True)), (5, 8), id="gru"),
        pytest.param(Recurrent(nn.LSTM(8, 6, batch_first=True, bidirectional=True)), (5, 8), id="lstm"),
    ],
)
def test_weights_keep_their_names_and_zeros(model: nn.Module, shape: tuple[int, ...]) -> None:
    names = weight_names(model)
    for name, parameter in model.named_parameters():
        if name in names:
            parameter.data *= torch.rand_like(parameter) > 0.5
    file = to_onnx(model, torch.randn(1, *shape))
    weights = [model.get_parameter(name) for name in names]
    assert count_zeros(file, names) == (
        sum(int((w == 0).sum()) for w in weights),
        sum(w.numel() for w in weights),
    )
    verify_onnx(file, model, torch.randn(3, *shape), tolerance=1e-5)


def test_weights_of_equal_content_stay_apart() -> None:
    """Two layers emptied by masks stay two layers in the file."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    for name in ("0.weight", "2.weight"):
        nn.init.zeros_(model.get_parameter(name))
    assert count_zeros(to_onnx(model, torch.randn(2, 4)), ["0.weight", "2.weight"]) == (32, 32)


def test_a_shared_weight_is_stored_once_under_its_first_name() -> None:
    model = TiedLanguageModel()
    tokens = torch.randint(0, 20, (3, 7))
    file = to_onnx(model, tokens)
    assert count_zeros(file, ["embedding.weight"]) == (0, 160)
    assert payload(file) < 2 * 4 * 160
    verify_onnx(file, model, tokens, tolerance=1e-5)

    layer = nn.Linear(4, 4)
    assert count_zeros(to_onnx(nn.Sequential(layer, layer), torch.randn(2, 4)), ["0.weight"]) == (0, 16)


def test_a_computed_weight_is_reported_as_missing() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), weight_norm(nn.Conv2d(2, 2, 3)))
    file = to_onnx(model, torch.randn(2, 1, 8, 8))
    with pytest.raises(ExportError, match=r"no weight named 1\.weight is in the ONNX model"):
        count_zeros(file, ["0.weight", "1.weight"])


def test_each_module_keeps_its_mode_and_weights() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout())
    model.train()
    model[1].eval()  # a frozen layer
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    to_onnx(model, torch.randn(2, 1, 8, 8))
    assert [module.training for module in model] == [True, False, True]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_exporter_is_silent(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    level = logging.getLogger("torch.onnx").level
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        to_onnx(nn.Linear(4, 3), torch.randn(2, 4))
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert logging.getLogger("torch.onnx").level == level


class OneBatchSize(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(2, 16)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class NoTensor(nn.Module):
    def forward(self, x: Tensor) -> None:
        return None


class NotInOnnx(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (OneBatchSize(), "OneBatchSize cannot be exported for any batch size.*batch"),
        (Branching(), "Branching cannot be exported for any batch size.*branch on the values"),
        (NoTensor(), "must return at least one tensor.*but got a NoneType"),
        (NotInOnnx(), "NotInOnnx cannot be written in ONNX.*No ONNX function found.*bessel_j0"),
        (nn.Conv2d(1, 2, 3).bfloat16(), r"not valid.*export `model\.float\(\)`"),
        (nn.Linear(4, 4, device="meta"), r"from the CPU, but got one on meta: pass `model\.cpu\(\)`"),
    ],
)
def test_what_cannot_be_exported_says_why(model: nn.Module, message: str) -> None:
    kind = next((p.dtype for p in model.parameters()), torch.float32)
    with pytest.raises(ExportError, match=f"(?s){message}"):
        to_onnx(model, torch.randn(2, 1, 4, 4, dtype=kind))


def test_no_example_is_an_error() -> None:
    with pytest.raises(ExportError, match=r"at least one example.*\(0, 4\)"):
        to_onnx(nn.Linear(4, 3), torch.empty(0, 4))


def test_sizes_add_up_for_a_channels_last_model() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    file = to_onnx(model, torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last))
    assert payload(file) == 4 * sum(math.prod(p.shape) for p in model.parameters())
    verify_onnx(file, model, torch.randn(2, 3, 8, 8), tolerance=1e-5)
