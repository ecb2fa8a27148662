"""A model is the same with and without what is put around it."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from kedro_aat import create_compressed_model
from kedro_aat.compression.build import build_controller
from kedro_aat.compression.settings import parse_compression
from kedro_aat.datasets.imported import ImportedModelDataset
from kedro_aat.datasets.model import ModelDataset
from kedro_aat.errors import ModelError
from kedro_aat.export.onnx_file import to_onnx
from kedro_aat.export.program import to_program
from kedro_aat.export.verify import verify_onnx
from kedro_aat.wrapped import unwrapped, without_wrappers
from tests.datasets.saved import built, outputs
from tests.nets import SmallNet

WRAPPERS: dict[str, Callable[[nn.Module], Any]] = {
    "DataParallel": nn.DataParallel,
    "compiled": torch.compile,
    "averaged": AveragedModel,
    "both": lambda model: torch.compile(nn.DataParallel(model)),
}
IMAGES = torch.randn(4, 1, 8, 8)
ALGORITHMS = ["magnitude_sparsity", "filter_pruning", "quantization"]


@pytest.fixture(params=WRAPPERS)
def wrap(request: pytest.FixtureRequest) -> Callable[[nn.Module], Any]:
    return WRAPPERS[request.param]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_wrapped_model_is_compressed_as_the_bare_one(
    wrap: Callable[[nn.Module], Any], algorithm: str, caplog: pytest.LogCaptureFixture
) -> None:
    def compressed(model: nn.Module) -> nn.Module:
        controller = build_controller(model, parse_compression({"algorithm": algorithm}), example_input=IMAGES)
        controller.compression_rate = 0.5
        return controller.strip()

    model = SmallNet().eval()
    bare = compressed(copy.deepcopy(model))
    with caplog.at_level(logging.INFO):
        stripped = compressed(wrap(model))
    assert type(stripped) is SmallNet
    assert list(stripped.state_dict()) == list(bare.state_dict())
    assert torch.equal(stripped.eval()(IMAGES), bare.eval()(IMAGES))
    assert len([line for line in caplog.messages if "SmallNet is used without" in line]) == 1


def test_script_for_nncf_gets_the_bare_model_back(wrap: Callable[[nn.Module], Any]) -> None:
    config = {"compression": {"algorithm": "magnitude_sparsity"}}
    controller, model = create_compressed_model(wrap(SmallNet()), config)
    assert type(model) is SmallNet
    assert controller.model is model
    controller.compression_rate = 0.5
    again = nn.DataParallel(model)
    again(IMAGES).square().mean().backward()
    torch.optim.SGD(again.parameters(), lr=1.0).step()
    again(IMAGES)
    assert controller.compression_rate == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("name", ["DataParallel", "compiled"])
def test_submodules_are_unwrapped_too(name: str) -> None:
    model = nn.Sequential(WRAPPERS[name](nn.Sequential(nn.Linear(4, 4), WRAPPERS[name](nn.Linear(4, 4)))), nn.ReLU())
    names = [each for each, _ in unwrapped(model, inside=True).named_parameters()]
    assert names == ["0.0.weight", "0.0.bias", "0.1.weight", "0.1.bias"]


def test_wrapped_model_is_exported(wrap: Callable[[nn.Module], Any]) -> None:
    model = SmallNet().eval()
    file = to_onnx(wrap(copy.deepcopy(model)), IMAGES)
    verify_onnx(file, model, IMAGES, tolerance=1e-4)
    to_program(wrap(model), IMAGES)


def test_wrapped_model_is_saved_bare(wrap: Callable[[nn.Module], Any], tmp_path: Path) -> None:
    model = built()
    for dataset in (
        ModelDataset(filepath=str(tmp_path / "folder"), trusted=["tests"]),
        ImportedModelDataset(class_path="tests.nets.SmallNet", filepath=str(tmp_path / "weights.safetensors")),
    ):
        dataset.save(wrap(copy.deepcopy(model)))
        assert torch.equal(outputs(dataset.load()), outputs(model))


def test_weights_of_a_wrapped_model_are_loaded(wrap: Callable[[nn.Module], Any], tmp_path: Path) -> None:
    model = SmallNet()
    torch.save({"model": wrap(copy.deepcopy(model)).state_dict()}, tmp_path / "weights.pt")
    dataset = ImportedModelDataset(class_path="tests.nets.SmallNet", filepath=str(tmp_path / "weights.pt"), key="model")
    assert torch.equal(outputs(dataset.load()), outputs(model))


def test_names_that_only_look_like_a_wrapper_stay() -> None:
    assert without_wrappers({"module.weight": 1}, ["module.weight"]) == {"module.weight": 1}
    assert without_wrappers({"module.weight": 1}, ["other.bias"]) == {"module.weight": 1}
    assert without_wrappers({"a.module.weight": 1, "n_averaged": 2}, ["a.weight"]) == {"a.weight": 1}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_refused_with_the_way_to_mend_it(algorithm: str, inside: bool) -> None:
    scripted = torch.jit.script(nn.Linear(4, 4))
    model = nn.Sequential(scripted, nn.Linear(4, 4)) if inside else scripted
    with pytest.raises(ModelError, match=r"Linear is TorchScript.*load_state_dict\(scripted\.state_dict\(\)\)"):
        build_controller(model, parse_compression({"algorithm": algorithm}), example_input=torch.randn(2, 4))


def test_function_that_returns_a_wrapped_model(tmp_path: Path) -> None:
    dataset = ImportedModelDataset(class_path="tests.built_models.in_parallel", filepath=None)
    model = dataset.load()
    assert type(model) is SmallNet
    saved = ModelDataset(filepath=str(tmp_path), class_path="tests.built_models.in_parallel")
    saved.save(model)
    assert torch.equal(outputs(saved.load()), outputs(model))
