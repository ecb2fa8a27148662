"""The networks that benchmarks measure, with BatchNorm statistics as after training, and a batch for each."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kedro_aat.pipelines.digits.model import BasicBlock, ResidualCNN

RESNET_SHAPE = (3, 64, 64)
DIGITS_SHAPE = (1, 8, 8)


class ResNet18(nn.Module):
    """ResNet-18 (He et al. 2016, table 1): two basic blocks each of 64, 128, 256 and 512 channels, 11.2M parameters.

    At 64x64 pixels it needs 148M multiplications. Its classifier has 10 classes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        inputs = [64, 64, 64, 128, 128, 256, 256, 512]
        widths = [64, 64, 128, 128, 256, 256, 512, 512]
        self.blocks = nn.Sequential(
            *(
                BasicBlock(before, width, stride=1 if before == width else 2)
                for before, width in zip(inputs, widths, strict=True)
            )
        )
        self.classifier = nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, 3, H, W) to logits (B, 10)."""
        logits: Tensor = self.classifier(self.blocks(self.stem(x)).mean((2, 3)))
        return logits


class Attention(nn.Module):
    """Self-attention, then a wide layer, each behind a LayerNorm and with a shortcut.

    Args:
        width: Numbers of a token.
        num_heads: Heads of the attention.
        times: How many times as wide the wide layer is.
        activation: Follows it.
    """

    def __init__(
        self, width: int, num_heads: int, times: int = 2, activation: Callable[[Tensor], Tensor] = F.relu
    ) -> None:
        super().__init__()
        self.num_heads, self.activation = num_heads, activation
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.output = nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, times * width), nn.Linear(times * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, tokens, width) to the same shape."""
        y = self.norm1(x)
        query, key, value = (
            layer(y).unflatten(2, (self.num_heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        x = x + self.output(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        out: Tensor = x + self.narrow(self.activation(self.wide(self.norm2(x))))
        return out


class RowAttention(nn.Module):
    """Two attention blocks over the 8 rows of a digit, from linear layers alone."""

    def __init__(self, width: int = 64, num_heads: int = 4) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(8, width), nn.Linear(width, 10)
        self.position = nn.Parameter(torch.zeros(8, width))
        self.blocks = nn.Sequential(Attention(width, num_heads), Attention(width, num_heads))

    def forward(self, images: Tensor) -> Tensor:
        """Maps images (B, 1, 8, 8) to logits (B, 10)."""
        logits: Tensor = self.head(self.blocks(self.embed(images.squeeze(1)) + self.position).mean(1))
        return logits


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "digits": (ResidualCNN, DIGITS_SHAPE),
    "resnet18": (ResNet18, RESNET_SHAPE),
}


def make(name: str, batch_size: int = 64) -> tuple[nn.Module, Tensor]:
    """A network of `NETS` with random weights and the statistics of random images, and a batch (batch_size, ...)."""
    torch.manual_seed(0)
    build, shape = NETS[name]
    model, images = build(), torch.randn(batch_size, *shape)
    with torch.no_grad():
        for _ in range(5):
            model(images)
    return model.eval(), images
