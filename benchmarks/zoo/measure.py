"""What each algorithm makes of one model: seconds, sizes, and the differences between masked, cut and exported."""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from benchmarks.zoo.models import Entry
from benchmarks.zoo.rival import pruned_by_torch_pruning
from kedro_aat.compression.build import build_controller
from kedro_aat.compression.controller import ModelController
from kedro_aat.compression.filters.controller import FilterPruningController
from kedro_aat.compression.filters.groups import producing_layers
from kedro_aat.compression.scopes import prunable_weights
from kedro_aat.compression.settings import parse_compression
from kedro_aat.errors import ExportError
from kedro_aat.export.onnx_file import to_onnx
from kedro_aat.export.verify import verify_onnx
from kedro_aat.model_inputs import ModelInputs, call_model, map_tensors, tensors_in

RATE = 0.5
# Of the largest output. int8 is compared by the same rule, but only has to be near.
EXACT, NEAR = 1e-5, 0.1
Fact = float | str | None  # None for not measured
Facts = dict[str, Fact]


def prepared(entry: Entry) -> tuple[nn.Module, ModelInputs]:
    """A model of which no result is right only because something is zero, and a batch.

    Biases and scales are random, and statistics of normalizations are those of random batches, as after training.
    """
    torch.manual_seed(0)
    model = entry.make()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1 and parameter.is_floating_point():
                parameter.add_(0.1 * torch.randn_like(parameter))
        norms = [module for module in model.modules() if isinstance(module, _NormBase) and module.track_running_stats]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean of all batches
        model.train()
        for _ in range(4 if norms else 0):
            call_model(model, entry.inputs())
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            if norm.running_var is not None:
                norm.running_var.clamp_(min=0.01)  # places of a single pixel have next to no variance in two images
    return model.eval(), entry.inputs()


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def outputs_of(model: nn.Module, batch: ModelInputs) -> list[Tensor]:
    return [tensor for tensor in tensors_in(call_model(model.eval(), batch)) if tensor.is_floating_point()]


def largest_difference(left: list[Tensor], right: list[Tensor]) -> float:
    """Relative to the largest number of each output; infinite if the shapes differ."""
    if [tensor.shape for tensor in left] != [tensor.shape for tensor in right]:
        return float("inf")
    pairs = [(a, b, float(a.abs().max())) for a, b in zip(left, right, strict=True) if a.numel()]
    return max(float((a - b).abs().max()) / max(largest, 1e-12) for a, b, largest in pairs)


def _controller(model: nn.Module, batch: ModelInputs, **settings: Any) -> ModelController:
    controller = build_controller(model, parse_compression(settings), example_input=batch)
    controller.disable_scheduler()
    return controller


def filters(entry: Entry) -> Facts:
    """Filter pruning at half of the filters."""
    model, batch = prepared(entry)
    before, weights = num_parameters(model), [weight.layer for weight in prunable_weights(model)]
    started = time.process_time()
    controller = _controller(model, batch, algorithm="filter_pruning", rate_of="filters", ranking="local")
    facts: Facts = {"seconds": time.process_time() - started}
    assert isinstance(controller, FilterPruningController)
    reached = producing_layers(controller.groups)
    whole = {layer: why for layer, why in controller.not_cut.items() if layer not in reached}
    facts |= {
        "layers": len(weights),
        "layers_whole": len(whole),
        "unnamed": len(set(weights) - reached - set(controller.not_cut)),
        "reasons": "; ".join(f"{why} ({n})" for why, n in Counter(map(_in_general, whole.values())).most_common(4)),
    }
    controller.compression_rate = min(RATE, controller.maximal_compression_rate)
    facts["rate"] = controller.achieved_rate
    cut = controller.strip()
    facts["removed"] = 1 - num_parameters(cut) / before
    others = [batch, entry.inputs()]
    difference = max(largest_difference(outputs_of(model, x), outputs_of(cut, x)) for x in others)
    facts["difference"] = difference
    if difference > EXACT:  # rounding errors of float32, or a wrong cut?
        model, exact = copy.deepcopy(model).double(), copy.deepcopy(cut).double()
        doubled = [_in_double(x) for x in others]
        facts["difference_in_double"] = max(
            largest_difference(outputs_of(model, x), outputs_of(exact, x)) for x in doubled
        )
    try:
        facts["onnx"] = verify_onnx(to_onnx(cut, batch), cut, batch, tolerance=float("inf")).difference
    except ExportError as error:
        facts["error"] = f"cut, but {error}"
    return facts


def sparse(entry: Entry) -> Facts:
    """Half of the weights zero."""
    model, batch = prepared(entry)
    started = time.process_time()
    controller = _controller(model, batch, algorithm="magnitude_sparsity")
    controller.compression_rate = min(RATE, controller.maximal_compression_rate)
    facts: Facts = {"seconds": time.process_time() - started, "rate": controller.achieved_rate}
    stripped = controller.strip()
    zeros = sum(int((parameter == 0).sum()) for parameter in stripped.parameters())
    facts["zeros"] = zeros / num_parameters(stripped)
    facts["difference"] = largest_difference(outputs_of(model, batch), outputs_of(stripped, batch))
    return facts


def int8(entry: Entry) -> Facts:
    """All weights that can be in 8 bits, after two steps of training mode; exported, and run by onnxruntime."""
    model, batch = prepared(entry)
    started = time.process_time()
    controller = _controller(model, batch, algorithm="quantization")
    facts: Facts = {"seconds": time.process_time() - started}
    model.train()
    for _ in range(2):
        controller.scheduler.step()
        with torch.no_grad():
            call_model(model, entry.inputs())
    model.eval()
    facts["rate"] = controller.achieved_rate
    stripped = controller.strip()
    facts["difference"] = largest_difference(outputs_of(model, batch), outputs_of(stripped, batch))
    file = to_onnx(stripped, batch)
    facts["bytes"] = file.ByteSize() / (4 * num_parameters(model))
    facts["onnx"] = verify_onnx(file, stripped, batch, tolerance=float("inf")).difference
    return facts


def torch_pruning(entry: Entry) -> Facts:
    """Torch-Pruning at the same ratio."""
    model, batch = prepared(entry)
    before = num_parameters(model)
    seconds, cut = pruned_by_torch_pruning(model, batch, RATE)
    facts: Facts = {"seconds": seconds}
    outputs_of(cut, batch)  # or it does not run
    facts["removed"] = 1 - num_parameters(cut) / before
    return facts


def _in_double(inputs: ModelInputs) -> ModelInputs:
    return map_tensors(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor, inputs)


def _in_general(reason: str) -> str:
    """A reason without the names of layers, so that equal reasons are counted together."""
    parts = reason.split("'")
    return "'...'".join(parts[::2]) if len(parts) % 2 else reason


PARTS: dict[str, Callable[[Entry], Facts]] = {
    "torch_pruning": torch_pruning,
    "filters": filters,
    "sparse": sparse,
    "int8": int8,
}
