"""Networks to quantize, and the operators that onnxruntime runs for them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from kedro_aat.compression.quantization.controller import QuantizationController
from kedro_aat.compression.settings import Quantization


class Separable(nn.Module):
    """Depthwise and pointwise convolutions, ReLU6 and average pooling: (B, 3, 16, 16) -> (B, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(inplace=True))
        self.depthwise = nn.Sequential(
            nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU6()
        )
        self.pointwise = nn.Sequential(nn.Conv2d(16, 64, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU6())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.pointwise(self.depthwise(self.stem(x))))
        logits: Tensor = self.head(x.flatten(1))
        return logits


class Branching(nn.Module):
    """Two branches after max pooling, concatenated, and an in-place sum: (B, 3, 16, 16) -> (B, 4, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.left, self.right = nn.Conv2d(16, 32, 1), nn.Conv2d(16, 32, 3, padding="same")
        self.join = nn.Conv2d(64, 64, 1, bias=False)
        self.last = nn.Conv2d(64, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(self.stem(x).relu_(), 2)
        y = torch.cat([self.left(x).relu(), self.right(x).relu()], dim=1)
        out = self.join(y)
        out += y
        logits: Tensor = self.last(out)
        return logits


class Sequence(nn.Module):
    """Attention, LayerNorm and linear layers over a sequence: (B, 6, 32) -> (B, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(x).mean(1))
        return logits


def settled(model: nn.Module, inputs: Tensor) -> nn.Module:
    """The model in evaluation mode, with BatchNorms as after training: their statistics are far from 0 and 1."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -1.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    model.train()
    with torch.no_grad():
        for _ in range(20):
            model(inputs)
    return model.eval()


def quantized(model: nn.Module, inputs: Tensor, rate: float = 0.999, **settings: object) -> QuantizationController:
    """A controller of the model, calibrated on the inputs."""
    controller = QuantizationController(model, Quantization.model_validate(settings))
    controller.compression_rate = rate
    controller.calibrate([inputs])
    return controller


def run(model: nn.Module, inputs: Tensor) -> Tensor:
    model.eval()
    with torch.no_grad():
        result: Tensor = model(inputs)
    return result


def optimized_operators(model: onnx.ModelProto, folder: Path) -> Counter[str]:
    """Counts the operators that are left after onnxruntime has fused what it can."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
