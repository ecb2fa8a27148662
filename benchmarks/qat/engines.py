"""The ways to train in int8 that `beside_torchao.py` compares: ours, and the two of torchao's documentation.

torchao is imported when one of its engines is used, so that everything else runs without it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from benchmarks.resnet import processor_flags
from kedro_aat.compression.build import build_controller
from kedro_aat.compression.settings import Quantization

Split = Mapping[str, Tensor]  # inputs (N, 1, 8, 8) and targets (N,)

TRAINING_BATCH = 32
QAT_RATE = 0.005  # learning rate of the second stage in conf/base/parameters.yml


@dataclass
class Prepared:
    """A model that an engine has prepared for training.

    Attributes:
        model: What the optimizer trains, in training mode.
        finish: Makes the model that is exported, in evaluation mode; leaves `model` as it is.
    """

    model: nn.Module
    finish: Callable[[], nn.Module]


Engine = Callable[[nn.Module, Tensor], Prepared]  # from a model, which it may change, and a batch for it


def unquantized(model: nn.Module, example: Tensor) -> Prepared:
    """What the same epochs do to the baseline in full precision."""
    return Prepared(model.train(), lambda: copy.deepcopy(model).eval())


def kedro_aat(model: nn.Module, example: Tensor) -> Prepared:
    """Ours with its defaults: weights use 7 bits, so that the file is right on CPUs without VNNI, too."""
    controller = build_controller(model.train(), Quantization(), example_input=example)
    return Prepared(controller.model, lambda: controller.strip().eval())


def torchao_pt2e(model: nn.Module, example: Tensor) -> Prepared:
    """The tutorials "PyTorch 2 Export QAT" and "Quantization with X86 Backend through Inductor"."""
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
    from torchao.quantization.pt2e import allow_exported_model_train_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_qat_pt2e

    # Its documentation asks for `reduce_range` on CPUs without VNNI.
    has_vnni = "vnni" in processor_flags()
    config = x86.get_default_x86_inductor_quantization_config(is_qat=True, reduce_range=not has_vnni)
    # Without `strict`, its quantizer refuses the residual CNN: "Input partition has more than one output node".
    program = torch.export.export(model.train(), (example,), dynamic_shapes=({0: Dim("batch")},), strict=True)
    prepared = prepare_qat_pt2e(program.module(), x86.X86InductorQuantizer().set_global(config))
    allow_exported_model_train_eval(prepared)

    def finish() -> nn.Module:
        converted: nn.Module = convert_pt2e(copy.deepcopy(prepared))
        allow_exported_model_train_eval(converted)
        converted.eval()  # rewrites the graph, and returns nothing
        return converted

    return Prepared(prepared, finish)


def torchao_linear(model: nn.Module, example: Tensor) -> Prepared:
    """The README on QAT, with the only scheme of 8-bit integers that `QATConfig` accepts: `nn.Linear` alone."""
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, quantize_
    from torchao.quantization.granularity import PerAxis
    from torchao.quantization.qat import QATConfig

    scheme = Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int8, weight_granularity=PerAxis(0))
    quantize_(model.train(), QATConfig(scheme, step="prepare"))

    def finish() -> nn.Module:
        converted = copy.deepcopy(model)
        quantize_(converted, QATConfig(scheme, step="convert"))
        return converted.eval()

    return Prepared(model, finish)


FLOAT = "float32"
ENGINES: dict[str, Engine] = {
    FLOAT: unquantized,
    "kedro-aat": kedro_aat,
    "torchao PT2E": torchao_pt2e,
    "torchao quantize_": torchao_linear,
}


def training_step(model: nn.Module, call: Callable[[Tensor], Tensor], rate: float) -> Callable[[Tensor, Tensor], None]:
    """A step of SGD on a batch; `call` is the model or what it was compiled to."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4, nesterov=True)

    def step(inputs: Tensor, targets: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(call(inputs), targets).backward()
        optimizer.step()

    return step


def fit(model: nn.Module, data: Split, num_epochs: int, rate: float, seed: int) -> None:
    """Trains in place; the order of the examples depends on the seed alone."""
    torch.manual_seed(seed)
    step = training_step(model, model, rate)
    for _ in range(num_epochs):
        for rows in torch.randperm(len(data["targets"])).split(TRAINING_BATCH):
            step(data["inputs"][rows], data["targets"][rows])
