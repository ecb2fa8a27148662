"""Filter pruning of many small models, one per way in which channels are connected: right, or said to be left whole."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from kedro_aat.compression.filters.controller import FilterPruningController
from kedro_aat.compression.filters.groups import producing_layers
from kedro_aat.compression.scopes import prunable_weights
from kedro_aat.compression.settings import FilterPruning
from kedro_aat.errors import ModelError
from kedro_aat.export.onnx_file import to_onnx
from kedro_aat.export.verify import verify_onnx
from kedro_aat.model_inputs import ModelInputs, call_model, tensors_in
from tests.compression.patterns.attentions import ATTENTIONS
from tests.compression.patterns.branches import BRANCHES
from tests.compression.patterns.gates import GATES
from tests.compression.patterns.outputs import OUTPUTS
from tests.compression.patterns.recurrences import RECURRENCES
from tests.compression.patterns.registry import made
from tests.compression.patterns.scales import SCALES
from tests.compression.patterns.shuffles import SHUFFLES

KINDS = (GATES, BRANCHES, SHUFFLES, SCALES, ATTENTIONS, RECURRENCES, OUTPUTS)
PATTERNS = {name: pattern for kind in KINDS for name, pattern in kind.items()}
RATES = (0.2, 0.3, 0.5)
TOLERANCE = 1e-5  # of the largest output


@torch.no_grad()
def outputs_of(model: nn.Module, batch: ModelInputs) -> list[torch.Tensor]:
    return [tensor.double() for tensor in tensors_in(call_model(model.eval(), batch)) if tensor.is_floating_point()]


def largest_difference(left: list[torch.Tensor], right: list[torch.Tensor]) -> float:
    """Relative to the largest number of each output."""
    assert [tensor.shape for tensor in left] == [tensor.shape for tensor in right]
    pairs = zip(left, right, strict=True)
    return max(float((a - b).abs().max() / a.abs().max().clamp_min(1e-6)) for a, b in pairs)


def size(layer: nn.Module, names: tuple[str, ...]) -> int:
    """The number of a layer's outputs or inputs, under whichever name its class has for it."""
    return next(int(number) for name in names if isinstance(number := getattr(layer, name, None), int))


OUTPUT_NAMES = ("out_channels", "out_features", "embedding_dim", "hidden_size", "num_heads")
INPUT_NAMES = ("in_channels", "in_features", "input_size")


def train_a_step(model: nn.Module, batch: ModelInputs) -> None:
    model.train()
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=1e-3)
    losses = [tensor.square().mean() for tensor in tensors_in(call_model(model, batch)) if tensor.is_floating_point()]
    torch.stack(losses).sum().backward()
    optimizer.step()
    assert all(tensor.isfinite().all() for tensor in outputs_of(model, batch))


# Every third pattern of each kind in the default tests, and all of them in the slow ones.
EVERYDAY = {name for kind in KINDS for name in list(kind)[::3]}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in EVERYDAY else pytest.mark.slow) for name in PATTERNS]
)
def test_cut_as_masked_or_said_to_be_whole(name: str) -> None:
    pattern = PATTERNS[name]
    model, batch = made(pattern)
    whole = copy.deepcopy(model)
    try:
        controller = FilterPruningController(model, FilterPruning(), example_input=batch)
    except ModelError:
        if pattern.cut:
            raise
        return
    controller.disable_scheduler()
    torch.manual_seed(1)
    others = [pattern.inputs() for _ in range(2)]
    assert largest_difference(outputs_of(whole, batch), outputs_of(model, batch)) <= TOLERANCE  # nothing masked yet
    cut: nn.Module = model
    limit = controller.maximal_compression_rate
    for rate in (*(min(rate, limit) for rate in RATES), limit):
        controller.compression_rate = rate
        cut = controller.strip()
        for other in (batch, *others):
            assert largest_difference(outputs_of(model, other), outputs_of(cut, other)) <= TOLERANCE
        train_a_step(copy.deepcopy(cut), batch)
    assert_smaller(whole, cut, pattern.cut, OUTPUT_NAMES)
    assert_smaller(whole, cut, pattern.narrowed, INPUT_NAMES)
    known: set[str] = producing_layers(controller.groups) | set(controller.not_cut)
    layers = {weight.layer for weight in prunable_weights(whole)}
    assert layers <= known, f"neither cut nor named: {layers - known}"


@pytest.mark.slow
@pytest.mark.parametrize("name", PATTERNS)
def test_the_file_computes_what_the_cut_model_does(name: str) -> None:
    pattern = PATTERNS[name]
    model, batch = made(pattern)
    try:
        controller = FilterPruningController(model, FilterPruning(), example_input=batch)
    except ModelError:
        pytest.skip("it has nothing to cut, as the test above shows")
    controller.disable_scheduler()
    controller.compression_rate = 0.5
    cut = controller.strip().eval()
    assert verify_onnx(to_onnx(cut, batch, search=False), cut, batch, tolerance=TOLERANCE).difference <= TOLERANCE


def assert_smaller(whole: nn.Module, cut: nn.Module, layers: tuple[str, ...], names: tuple[str, ...]) -> None:
    sizes: dict[str, tuple[Any, Any]] = {
        layer: (size(whole.get_submodule(layer), names), size(cut.get_submodule(layer), names)) for layer in layers
    }
    still_whole = [f"{layer}: {after}" for layer, (before, after) in sizes.items() if after >= before]
    assert not still_whole, f"still whole: {still_whole}"
