"""Weights that are held in int8: trained, stripped, saved and exported with the same numbers."""

from __future__ import annotations

import copy

import onnx
import pytest
import torch
from torch import Tensor, nn

from kedro_aat.compression.filters.costs import num_parameters
from kedro_aat.compression.quantization.layers import make_quantized, quantized_spec
from kedro_aat.export.onnx_file import to_onnx
from kedro_aat.export.program import to_program
from kedro_aat.export.verify import verify_onnx, verify_program
from tests.compression.quantization.held_models import HELD, Table, Text, table
from tests.compression.quantization.quantized import quantized, run

# Of the largest output: an integer may be rounded the other way.
ROUNDING = 0.03


# Others of the same kind are in the default tests.
SLOW = {"narrow text", "LSTM in both directions", "attributes", "decoder", "text", "table", "bags"}


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in HELD])
def test_training_stripped_model_and_files_compute_the_same(name: str) -> None:
    torch.manual_seed(0)
    make, batch = HELD[name]
    model, inputs = make(), batch()
    plain = run(model, inputs)
    num_weights, before = num_parameters(model), len(to_onnx(model, inputs, search=False).SerializeToString())
    controller = quantized(model, inputs)
    assert controller.compression_rate == 1
    expected = run(model, inputs)
    assert not torch.equal(expected, plain)
    assert (expected - plain).abs().max() < 0.2 * plain.abs().max()
    weights = {id(layer.parameter) for layer in controller._layers}
    model.train()
    model(inputs).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters() if id(p) in weights)
    expected = run(model, inputs)

    small = controller.strip().eval()
    assert (run(small, inputs) - expected).abs().max() < ROUNDING * expected.abs().max()
    assert all(p.is_floating_point() for p in small.parameters())
    held = [tensor for tensor in small.state_dict().values() if tensor.dtype == torch.int8]
    assert sum(tensor.numel() for tensor in held) >= controller._choice.total
    if not any(isinstance(module, nn.BatchNorm2d) for module in make().modules()):
        assert num_parameters(small) == num_weights

    file = to_onnx(small, inputs, search=False)
    assert verify_onnx(file, small, inputs, tolerance=ROUNDING).difference <= ROUNDING
    assert verify_program(to_program(small, inputs), small, inputs).difference <= 1e-5
    sizes = {tensor.name: len(tensor.raw_data) for tensor in file.graph.initializer}
    integers = [tensor.name for tensor in file.graph.initializer if tensor.data_type == onnx.TensorProto.INT8]
    assert sum(sizes[name] for name in integers) >= controller._choice.total
    assert len(file.SerializeToString()) < 0.75 * before

    rebuilt = make().eval()
    spec = quantized_spec(small)
    assert spec is not None
    make_quantized(rebuilt, type(spec).model_validate_json(spec.model_dump_json()))
    rebuilt.load_state_dict(small.state_dict())
    for again in (rebuilt, copy.deepcopy(small)):
        assert torch.equal(run(again, inputs), run(small, inputs))


def test_layers_keep_class_and_attributes() -> None:
    torch.manual_seed(0)
    for make, batch in HELD.values():
        model = make()
        small = quantized(copy.deepcopy(model), batch()).strip()
        for name, module in model.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                continue
            after = small.get_submodule(name)
            assert isinstance(after, type(module))
            for attribute, value in vars(module).items():
                if not attribute.startswith("_"):
                    assert getattr(after, attribute) == value or value is None, (name, attribute)
            for attribute, parameter in module.named_parameters(recurse=False):
                read = getattr(after, attribute)
                assert read.shape == parameter.shape
                assert read.dtype == parameter.dtype
                assert (read - parameter).abs().max() <= parameter.abs().max() / 63


def test_part_of_a_table_that_no_layer_reads_stays_exact() -> None:
    torch.manual_seed(0)
    model, inputs = Table(), table(256)
    looked_up: list[Tensor] = []
    model.category.register_forward_pre_hook(lambda module, args: looked_up.append(args[0]))
    controller = quantized(model, inputs)
    run(controller.model, inputs)
    run(controller.strip(), inputs)
    assert all(torch.equal(ids, inputs[:, number % 2 + 5].long()) for number, ids in enumerate(looked_up))
    spec = quantized_spec(controller.strip())
    assert spec is not None
    features = next(tensor for tensor in spec.tensors if tensor.place is not None and tensor.place.name == "getitem")
    assert features.scale < 8 / 255  # the range of the features, not that of the numbers of categories


def test_columns_whose_scales_are_far_apart_are_not_rounded_together() -> None:
    torch.manual_seed(0)
    scales = torch.tensor([1.0, 1.0, 1.0, 1.0, 20000.0])
    model = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 2)).eval()
    with torch.no_grad():
        model[0].get_parameter("weight")[:, 4] /= 20000
    inputs = torch.randn(512, 5) * scales
    before = run(model, inputs)
    controller = quantized(model, inputs)
    expected = run(controller.model, inputs)
    assert (expected - before).abs().max() < 0.05 * before.abs().max()
    torch.testing.assert_close(run(controller.strip(), inputs), expected, rtol=0, atol=0.01)


def test_tied_weights_stay_tied_in_files() -> None:
    torch.manual_seed(0)
    inputs = torch.randint(50, (4, 9))
    small = quantized(Text(), inputs).strip()
    names = {tensor.name for tensor in to_onnx(small, inputs, search=False).graph.initializer}
    assert "words.weight" in names
    assert "head.weight" not in names
