"""Models and controllers that an older version saved are loaded, and compute what they computed then.

`tests/saved_by/<version>/<algorithm>/` holds a controller that was searched to a requested rate of 0.5 and the model
that it was stripped to, of a small residual network; `expected.safetensors` holds inputs and the outputs of both.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from kedro_aat.compression.controller import CompressionStage
from kedro_aat.datasets.model import ControllerDataset, ModelDataset
from kedro_aat.pipelines.digits.model import ResidualCNN
from kedro_aat.tensors import load_tensors
from kedro_aat.testing.training import num_zeros

SAVED = sorted(path.parent for path in Path(__file__).parents[1].glob("saved_by/*/*/expected.safetensors"))
QUANTIZED = ("quantization", "composite")

# Without AVX the outputs differ by 3e-8.
TOLERANCE = 1e-6
# Sums are rounded in another order on other CPUs, so that an activation may be rounded to the next integer. One step of
# the activations before the classifier is 0.00107, and its largest weight 0.347. A model with no layer quantized or
# with all of them would differ by at least 0.0006.
ONE_STEP = 0.00107 * 0.347


@pytest.fixture(params=SAVED, ids=lambda folder: "-".join(folder.parts[-2:]))
def saved(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.param
    return folder


def tolerance(saved: Path) -> float:
    return ONE_STEP if saved.name in QUANTIZED else TOLERANCE


def difference(model: torch.nn.Module, expected: dict[str, Tensor], outputs: str) -> float:
    with torch.no_grad():
        return float((model.eval()(expected["inputs"]) - expected[outputs]).abs().max())


def weights_of(state: dict[str, Tensor]) -> list[Tensor]:
    return [tensor for name, tensor in state.items() if name.endswith(".weight") and tensor.dim() > 1]


def rate_of(saved: Path) -> float:
    """The achieved rate, counted on the model's saved tensors."""
    state = load_tensors(saved / "model" / "model.safetensors")
    weights = weights_of(state)
    size = sum(weight.numel() for weight in weights)
    match saved.name:
        case "magnitude_sparsity":
            return num_zeros(weights) / size
        case "quantization":
            return sum(weight.numel() for weight in weights if weight.dtype == torch.int8) / size
        case "filter_pruning":
            network = ResidualCNN((4, 8), num_classes=3)
            kept = sum(state[name].numel() for name, _ in network.named_parameters())
            return 1 - kept / sum(parameter.numel() for parameter in network.parameters())
        case _:  # a composite's rate is that of its filters; their cut was the same as without quantization
            assert all(weight.dtype == torch.int8 for weight in weights)
            return rate_of(saved.with_name("filter_pruning"))


def test_there_are_files_of_every_algorithm() -> None:
    assert {folder.name for folder in SAVED} == {"magnitude_sparsity", "filter_pruning", *QUANTIZED}


def test_controller_goes_on_where_it_was(saved: Path) -> None:
    expected = load_tensors(saved / "expected.safetensors")
    controller = ControllerDataset(filepath=str(saved / "controller")).load()
    assert difference(controller.model, expected, "controller_outputs") <= tolerance(saved)
    assert controller.report().requested_rate == 0.5
    assert controller.compression_rate == rate_of(saved)
    assert controller.compression_stage() is CompressionStage.FULLY_COMPRESSED
    assert difference(controller.strip(), expected, "model_outputs") <= tolerance(saved)


def test_model_computes_what_it_did(saved: Path) -> None:
    expected = load_tensors(saved / "expected.safetensors")
    model = ModelDataset(filepath=str(saved / "model")).load()
    assert difference(model, expected, "model_outputs") <= tolerance(saved)
    stored = load_tensors(saved / "model" / "model.safetensors")
    assert model.state_dict().keys() == stored.keys()
    assert all(torch.equal(tensor, stored[name]) for name, tensor in model.state_dict().items())
