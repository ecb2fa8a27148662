"""Small networks to export."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = (
            nn.Sequential()
            if stride == 1
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResidualNet(nn.Module):
    """The network of the digits pipeline: (B, 1, 8, 8) -> (B, 10), 173,842 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 24, 3, 1, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
        self.blocks = nn.Sequential(Block(24, 24, 1), Block(24, 48, 2), Block(48, 96, 2))
        self.head = nn.Linear(96, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))  # type: ignore[no-any-return]


def residual_net(sparsity: float = 0.0) -> ResidualNet:
    """The network as after training: its statistics are not 0 and 1, and some masked weights are -0.0."""
    torch.manual_seed(0)
    model = ResidualNet()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.data *= torch.rand_like(module.weight) >= sparsity
    return model


class Pooled(nn.Module):
    """A convolution, a function that flattens each example, and a linear layer: (B, 1, 8, 8) -> (B, 3)."""

    def __init__(self, flatten: Callable[[Tensor], Tensor], features: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.flatten = flatten
        self.head = nn.Linear(features, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.flatten(self.conv(x)))  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    """(B, 5, 8) -> (B, 3)."""

    def __init__(self, layer: nn.GRU | nn.LSTM) -> None:
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(layer.hidden_size * (2 if layer.bidirectional else 1), 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])  # type: ignore[no-any-return]


class TiedLanguageModel(nn.Module):
    """Embedding and output layer share one weight: (B, T) of token numbers -> (B, T, 20)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.output = nn.Linear(8, 20, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.output(self.embedding(tokens))  # type: ignore[no-any-return]


def _convolutions(kind: type[nn.Conv1d] | type[nn.Conv2d], groups: int) -> list[nn.Module]:
    return [kind(2, 6, 3, padding=1), kind(6, 6, 3, padding=1, groups=groups), kind(6, 7, 3, padding=1)]


DEAD: dict[str, Callable[[], tuple[list[nn.Module], tuple[int, ...]]]] = {
    "conv1d": lambda: (_convolutions(nn.Conv1d, 1), (2, 16)),
    "conv2d": lambda: (_convolutions(nn.Conv2d, 1), (2, 6, 6)),
    "depthwise": lambda: (_convolutions(nn.Conv2d, 6), (2, 6, 6)),
    "pooled": lambda: (_convolutions(nn.Conv2d, 1), (2, 6, 6)),
}


def dead(name: str) -> tuple[nn.Module, Tensor]:
    """A network whose second layer always gives zero, while the layer after it has large biases; and its inputs.

    Some channels of the last convolution are zero as well.
    """
    torch.manual_seed(0)
    (first, second, third), shape = DEAD[name]()
    pool = [nn.MaxPool2d(2)] if name == "pooled" else []
    with torch.no_grad():
        second.get_parameter("bias").fill_(-50)
        third.get_parameter("bias").normal_()
        third.get_parameter("weight")[::3] = 0
    size = 7 * torch.Size(shape[1:]).numel() // (4 if pool else 1)
    last = nn.Linear(size, 3)
    layers = first, nn.ReLU(), second, nn.ReLU(), *pool, third, nn.ReLU(), nn.Flatten(), last
    return nn.Sequential(*layers).eval(), torch.randn(32, *shape)
