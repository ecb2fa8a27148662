"""`input_info` describes one tensor or several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from kedro_aat import NNCFConfig, create_compressed_model, register_default_init_args
from kedro_aat.errors import ConfigurationError
from kedro_aat.model_inputs import call_model
from kedro_aat.nncf.config import InputInfo
from kedro_aat.nncf.inputs import described_inputs
from kedro_aat.nncf.registered import callables_of
from tests.export.structured import Encoder, TwoInputs


def entries(*values: dict[str, Any]) -> list[InputInfo]:
    return [InputInfo.model_validate(value) for value in values]


class Mixed(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)

    def forward(self, image: Any, ids: Any = None, mask: Any = None) -> Any:
        return self.layer(image) + ids.sum() + mask.sum()


MODEL = Mixed()


@pytest.mark.parametrize("type_name", [None, "float", "int32"])
def test_one_entry_is_a_tensor_of_ones(type_name: str | None) -> None:
    made = described_inputs(entries({"sample_size": [2, 3], "type": type_name}), MODEL)
    assert torch.equal(made, torch.ones(2, 3))


def test_entries_with_and_without_a_keyword_are_mixed() -> None:
    info: list[dict[str, Any]] = [
        {"sample_size": [2, 4]},
        {"sample_size": [3], "type": "long", "filler": "zeros", "keyword": "mask"},
    ]
    info.insert(1, {"sample_size": [5], "type": "long"})
    made = described_inputs(entries(*info), MODEL)
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in made.items()} == {
        "image": (torch.float32, (2, 4)),
        "ids": (torch.int64, (5,)),
        "mask": (torch.int64, (3,)),
    }
    assert call_model(MODEL, made).shape == (2, 2)


def test_entries_are_positional_or_named() -> None:
    described = entries({"sample_size": [2], "filler": "ones"}, {"sample_size": [3], "type": "long"})
    first, second = described_inputs(described, MODEL)
    assert (first.tolist(), second.dtype) == ([1.0, 1.0], torch.int64)
    only = entries({"sample_size": [50], "type": "long", "filler": "random", "keyword": "ids"})
    named = described_inputs(only, MODEL)
    assert set(named["ids"].tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([{"sample_size": [1], "filler": "fives"}], "filler must be zeros, ones, random, but got 'fives'"),
        (
            [{"sample_size": [1], "keyword": "a"}, {"sample_size": [1]}],
            "Mixed does not take these inputs: got an unexpected keyword argument 'a'",
        ),
    ],
)
def test_mistakes_are_told(values: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        described_inputs(entries(*values), MODEL)


@pytest.mark.parametrize(
    ("model", "info", "names"),
    [
        (TwoInputs(), [{"sample_size": [2, 6]}, {"sample_size": [2, 4]}], ["image", "numbers"]),
        (
            Encoder(),
            [
                {"sample_size": [2, 5], "type": "long", "keyword": "input_ids"},
                {"sample_size": [2, 5], "type": "long", "filler": "ones", "keyword": "attention_mask"},
            ],
            ["input_ids", "attention_mask"],
        ),
    ],
)
@pytest.mark.parametrize("algorithm", ["magnitude_sparsity", "quantization"])
def test_export_model_writes_a_file_with_all_inputs(
    model: torch.nn.Module, info: list[dict[str, Any]], names: list[str], algorithm: str, tmp_path: Path
) -> None:
    config = {"input_info": info, "compression": {"algorithm": algorithm}}
    controller, _ = create_compressed_model(type(model)(), config)
    controller.export_model(tmp_path / "model.onnx", output_names=["result"])
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert [value.name for value in graph.input] == names
    assert [value.name for value in graph.output] == ["result"]


class TwoImages(nn.Module):
    """Takes two images, by position or by keyword, and has a BatchNorm and channels to cut behind each."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 1))
        self.right = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 1))
        self.head = nn.Linear(16, 3)

    def forward(self, photo: Tensor, depth: Tensor) -> Tensor:
        return self.head(torch.relu(self.left(photo) + self.right(depth)).mean((2, 3)))  # type: ignore[no-any-return]


RANDOM = torch.Generator().manual_seed(0)
IMAGES = {
    "photo": 5 + torch.randn(8, 3, 6, 6, generator=RANDOM),
    "depth": torch.rand(8, 1, 6, 6, generator=RANDOM) - 7,
}
TARGETS = torch.arange(8) % 3
ROUNDING = 0.03  # of the largest output, as for other int8 models
BY_POSITION: list[dict[str, str]] = [{}, {}]
BY_KEYWORD = [{"keyword": "photo"}, {"keyword": "depth"}]
BATCHES: dict[str, tuple[Any, list[dict[str, str]]]] = {
    "positions": ((tuple(IMAGES.values()), TARGETS), BY_POSITION),
    "a list": ([list(IMAGES.values()), TARGETS], BY_POSITION),
    "keywords": ((IMAGES, TARGETS), BY_KEYWORD),
    "one mapping": (IMAGES | {"labels": TARGETS}, BY_KEYWORD),
}


ALGORITHMS: list[dict[str, Any]] = [
    {
        "algorithm": "filter_pruning",
        "pruning_init": 0.5,
        "params": {"prune_first_conv": True, "schedule": "baseline"},
    },
    {"algorithm": "magnitude_sparsity", "sparsity_init": 0.5},
    {"algorithm": "quantization"},
]


@pytest.mark.parametrize(
    ("algorithm", "batch", "keywords"),
    [
        pytest.param(
            algorithm,
            *batch,
            id=f"{algorithm['algorithm']}-{name}",
            marks=() if name == "keywords" or (name, number) == ("positions", 0) else pytest.mark.slow,
        )
        for number, algorithm in enumerate(ALGORITHMS)
        for name, batch in BATCHES.items()
    ],
)
def test_two_inputs_initialize_each_algorithm(
    algorithm: dict[str, Any], batch: Any, keywords: list[dict[str, str]], tmp_path: Path
) -> None:
    sizes: list[dict[str, Any]] = [{"sample_size": [2, 3, 6, 6]}, {"sample_size": [2, 1, 6, 6]}]
    config = NNCFConfig.from_dict(
        {
            "input_info": [size | keyword for size, keyword in zip(sizes, keywords, strict=True)],
            "compression": [algorithm],
        }
    )
    torch.manual_seed(0)
    model = TwoImages()
    register_default_init_args(config, [batch] * 2, nn.CrossEntropyLoss())
    controller, model = create_compressed_model(model, config)  # type: ignore[assignment]  # the same object
    if algorithm["algorithm"] == "quantization":
        first = controller.report()
        call_model(model, IMAGES)
        assert controller.report() == first
    else:
        # Statistics of the registered data: BatchNorms had 0 before.
        for name, image in zip(("left", "right"), IMAGES.values(), strict=True):
            convolution, norm = (model.get_submodule(f"{name}.{number}") for number in (0, 1))
            expected = convolution(image).mean((0, 2, 3))
            assert torch.allclose(norm.running_mean, expected, atol=1e-5)  # type: ignore[arg-type]  # it has one
        assert controller.report().requested_rate == 0.5
    model.eval()
    expected = call_model(model, IMAGES)
    stripped = controller.strip()
    difference = (call_model(stripped.eval(), IMAGES) - expected).abs()
    if algorithm["algorithm"] == "quantization":  # BatchNorms are folded, so a number can be rounded the other way
        assert difference.max() < ROUNDING * expected.abs().max()
        assert (difference > 1e-4).float().mean() < 0.3
    else:
        assert difference.max() < 1e-4
    controller.export_model(tmp_path / "model.onnx")
    assert [value.name for value in onnx.load(tmp_path / "model.onnx").graph.input] == ["photo", "depth"]


@pytest.mark.parametrize(("batch", "keywords"), BATCHES.values(), ids=BATCHES)
def test_gradients_of_registered_batches_with_two_inputs(batch: Any, keywords: list[dict[str, str]]) -> None:
    config = NNCFConfig.from_dict({"compression": {"algorithm": "magnitude_sparsity"}})
    register_default_init_args(config, [batch], nn.CrossEntropyLoss())
    controller, model = create_compressed_model(TwoImages(), config)
    seen = []
    callables_of(config, controller)["sample_gradients"](lambda: seen.append(model.head.weight.grad.clone()))  # type: ignore[operator,union-attr]
    assert [bool(gradient.any()) for gradient in seen] == [True]
