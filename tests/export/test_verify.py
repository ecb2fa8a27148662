from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from kedro_aat.errors import ExportError
from kedro_aat.export.onnx_file import to_onnx
from kedro_aat.export.verify import count_zeros, verify_onnx
from tests.export.nets import residual_net

INPUTS = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return residual_net()


@pytest.fixture(scope="module")
def file(model: nn.Module) -> onnx.ModelProto:
    return to_onnx(model, INPUTS)


def disturbed(file: onnx.ModelProto, name: str, by: float) -> onnx.ModelProto:
    """A copy with one element of one weight increased."""
    copy = onnx.ModelProto()
    copy.CopyFrom(file)
    (tensor,) = (t for t in copy.graph.initializer if t.name == name)
    numbers = numpy_helper.to_array(tensor).copy()
    numbers.flat[0] += by
    tensor.CopyFrom(numpy_helper.from_array(numbers, name))
    return copy


def test_an_exported_model_agrees_and_stays_in_its_mode(model: nn.Module, file: onnx.ModelProto) -> None:
    model.train()
    agreement = verify_onnx(file, model, INPUTS)
    assert 0 < agreement.difference < 1e-5
    assert agreement.same_labels == 1.0
    assert agreement.batch_sizes == (40, 1)
    assert all(module.training for module in model.modules())


def test_one_disturbed_weight_is_noticed(model: nn.Module, file: onnx.ModelProto) -> None:
    with pytest.raises(ExportError) as caught:
        verify_onnx(disturbed(file, "head.weight", by=0.5), model, INPUTS)
    message = str(caught.value)
    assert re.search(r"differs from its model by \d.* more than the tolerance of 0\.0001", message)
    assert re.search(r"\d+\.\d% of the labels are equal", message)


def test_the_tolerance_is_relative_to_the_largest_output(model: nn.Module, file: onnx.ModelProto) -> None:
    other = disturbed(file, "head.bias", by=0.1)
    model.eval()
    with torch.no_grad():
        # The worse of the whole batch and the first example alone.
        expected = max(0.1 / float(model(batch).abs().max()) for batch in (INPUTS, INPUTS[:1]))
    assert verify_onnx(other, model, INPUTS, tolerance=1.0).difference == pytest.approx(expected, rel=1e-2)


def test_a_nan_never_passes(model: nn.Module, file: onnx.ModelProto) -> None:
    with pytest.raises(ExportError, match="not finite"):
        verify_onnx(disturbed(file, "head.bias", by=float("nan")), model, INPUTS, tolerance=1e9)


def test_a_single_input_is_run_as_two_batch_sizes(model: nn.Module, file: onnx.ModelProto) -> None:
    assert verify_onnx(file, model, INPUTS[:1]).batch_sizes == (2, 1)


def test_a_file_for_one_batch_size_is_noticed(model: nn.Module, file: onnx.ModelProto) -> None:
    fixed = onnx.ModelProto()
    fixed.CopyFrom(file)
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 40
    with pytest.raises(ExportError, match="ONNX file does not run with a batch of 1"):
        verify_onnx(fixed, model, INPUTS)


def test_another_shape_of_output_is_an_error(file: onnx.ModelProto) -> None:
    with pytest.raises(ExportError, match=r"shape of \(40, 10\), but the model gives \(40, 64\)"):
        verify_onnx(file, nn.Flatten(), INPUTS)


def test_a_broken_file_is_an_error(model: nn.Module, file: onnx.ModelProto) -> None:
    broken = onnx.ModelProto()
    broken.CopyFrom(file)
    del broken.graph.initializer[0]
    with pytest.raises(ExportError, match="onnxruntime cannot load"):
        verify_onnx(broken, model, INPUTS)


def test_outputs_without_classes_have_no_labels() -> None:
    model = nn.Linear(4, 1)
    inputs = torch.randn(3, 4)
    assert verify_onnx(to_onnx(model, inputs), model, inputs).same_labels is None


def test_count_zeros_lists_every_missing_name(file: onnx.ModelProto) -> None:
    with pytest.raises(ExportError, match=r"no weight named head\.wait, steam is"):
        count_zeros(file, ["head.weight", "head.wait", "steam"])


def test_count_zeros_counts_only_the_named(file: onnx.ModelProto) -> None:
    emptied = onnx.ModelProto()
    emptied.CopyFrom(file)
    (tensor,) = (t for t in emptied.graph.initializer if t.name == "head.weight")
    tensor.CopyFrom(numpy_helper.from_array(np.zeros((10, 96), np.float32), "head.weight"))
    assert count_zeros(emptied, ["head.weight", "stem.0.weight"]) == (960, 960 + 216)
    assert count_zeros(emptied, ["stem.0.weight"]) == (0, 216)
