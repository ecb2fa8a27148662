"""Whether masks of sparsity hold while a model is trained in int8."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.utils import parametrize

from benchmarks.qat.engines import QAT_RATE, TRAINING_BATCH, Split, fit, torchao_pt2e
from benchmarks.qat.files import Cells, int8_weights
from kedro_aat.compression.build import build_controller
from kedro_aat.compression.settings import Composite, MagnitudeSparsity, Quantization
from kedro_aat.export.onnx_file import to_onnx


def compare_masks(model: nn.Module, data: Split) -> Cells:
    """Whether a mask of half of the weights survives an epoch of training in int8.

    For torchao the mask is put on before the capture: in one attempt by forward hooks, as ours is, and in the other by
    a parametrization, which the captured graph contains.
    """
    example = data["inputs"][:TRAINING_BATCH]
    settings = Composite(algorithms=(MagnitudeSparsity(), Quantization()))
    controller = build_controller(copy.deepcopy(model), settings, example_input=example)
    controller.disable_scheduler()
    controller.compression_rate = 0.5
    fit(controller.model.train(), data, 1, QAT_RATE, seed=0)
    share = zeros(int8_weights(to_onnx(controller.strip().eval(), example)))
    cells: Cells = {
        "zeros, mask by hooks": {"kedro-aat": share},
        "zeros, mask in the graph": {"kedro-aat": "as above"},
    }
    hooked = copy.deepcopy(model)
    sparse = build_controller(hooked, MagnitudeSparsity())
    sparse.disable_scheduler()
    sparse.compression_rate = 0.5
    prepared = torchao_pt2e(hooked, example)
    fit(prepared.model, data, 1, QAT_RATE, seed=0)
    share = zeros([weight for weight in prepared.model.parameters() if weight.ndim > 1])
    cells["zeros, mask by hooks"]["torchao PT2E"] = share
    masked = copy.deepcopy(model)
    for layer in [each for each in masked.modules() if isinstance(each, nn.Conv2d | nn.Linear)]:
        parametrize.register_parametrization(layer, "weight", _Mask(layer.weight.detach()))
    try:
        share = zeros(int8_weights(to_onnx(torchao_pt2e(masked, example).finish(), example)))
        cells["zeros, mask in the graph"]["torchao PT2E"] = share
    except ValueError as error:
        cells["zeros, mask in the graph"]["torchao PT2E"] = f"convert_pt2e: {error}"
    return cells


class _Mask(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", (weight.abs() > weight.abs().median()).float())

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.get_buffer("mask")


def zeros(weights: Sequence[Tensor]) -> str:
    count = sum(weight.numel() for weight in weights)
    return f"{sum(int((weight == 0).sum()) for weight in weights) / count:.0%}" if count else "no int8 weights"
