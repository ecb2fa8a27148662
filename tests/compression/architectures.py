"""Small networks, one for each way in which channels depend on each other in practice.

Every BatchNorm has random statistics, and no bias or scale has its initial value, so that no result is right only
because something is zero.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kedro_aat.pipelines.digits.model import ResidualCNN


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, channels // 4, 1)
        self.expand = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True)))).sigmoid()
        out: Tensor = x * scale
        return out


class InvertedResidual(nn.Module):
    """An expansion, a depthwise convolution, squeeze-and-excitation, and a projection."""

    def __init__(self, channels: int, wide: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.Hardswish(),
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.SiLU(),
            SqueezeExcite(wide),
            nn.Conv2d(wide, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.layers(x)
        return out


class MobileNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, stride=2, padding=1), nn.BatchNorm2d(12), nn.Hardswish())
        self.blocks = nn.Sequential(InvertedResidual(12, 32), InvertedResidual(12, 40))
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return out


class UNet(nn.Module):
    """Concatenates features of the way down with those of the way up, and has dense connections at the bottom."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.down2 = nn.Sequential(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.dense1 = nn.Sequential(nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3, padding=1))
        self.dense2 = nn.Sequential(nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 8, 3, padding=1))
        self.up = nn.ConvTranspose2d(32, 8, 2, stride=2)
        self.merge = nn.Sequential(nn.Conv2d(16, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        self.out = nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down1(x)
        second = self.down2(first)
        second = torch.cat([second, self.dense1(second)], 1)
        second = torch.cat([second, self.dense2(second)], 1)
        out: Tensor = self.out(self.merge(torch.cat([first, self.up(second)], 1)))
        return out


class ConvNeXtBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.LayerNorm(width)
        self.wide = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.narrow(F.gelu(self.wide(y)))
        out: Tensor = x + y.permute(0, 3, 1, 2)
        return out


class ConvNeXt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 2, stride=2)
        self.blocks = nn.Sequential(ConvNeXtBlock(8), ConvNeXtBlock(8))
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.norm(self.blocks(self.stem(x)).mean((2, 3))))
        return out


class Attention(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = width // num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, -1)
        out: Tensor = self.proj(x)
        return out


class ViTBlock(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class VisionTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 24, 4, stride=4)
        self.first = nn.Parameter(torch.zeros(1, 1, 24))
        self.position = nn.Parameter(torch.zeros(1, 5, 24))
        self.blocks = nn.Sequential(ViTBlock(24, 4), ViTBlock(24, 4))
        self.norm = nn.LayerNorm(24)
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(x.shape[0], -1, -1), x], 1) + self.position
        out: Tensor = self.head(self.norm(self.blocks(x))[:, 0])
        return out


class TextTransformer(nn.Module):
    """Token numbers (B, L) -> logits."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(self.encoder(self.embedding(tokens)).mean(1))
        return out


class TemporalCNN(nn.Module):
    """Dilated 1-D convolutions with a shortcut, flattened over time."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv1d(2, 12, 3, padding=1), nn.BatchNorm1d(12), nn.PReLU(12))
        self.second = nn.Sequential(nn.Conv1d(12, 12, 3, padding=2, dilation=2), nn.BatchNorm1d(12), nn.ReLU())
        self.third = nn.Conv1d(12, 6, 3, padding=1, groups=3)
        self.head = nn.Linear(6 * 10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x + self.second(x)
        out: Tensor = self.head(F.relu(self.third(x)).flatten(1))
        return out


class FlattenedCNN(nn.Module):
    """Grouped convolutions and GroupNorm, flattened over space; then a perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.GroupNorm(8, 16),
            nn.ReLU(),
            nn.Conv2d(16, 24, 3, padding=1, groups=4),
            nn.InstanceNorm2d(24, affine=True),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(24, 10, 3, padding=1),
            nn.Tanh(),
            nn.Flatten(),
        )
        self.hidden = nn.Linear(160, 20)
        self.head = nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(F.relu(self.hidden(self.features(x))))
        return out


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(7, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, 3)
    )


def disturb(model: nn.Module, seed: int = 0) -> nn.Module:
    """Changes all parameters and statistics at random, in place, and sets evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.add_(0.3 * torch.randn(buffer.shape, generator=generator))
            elif name.endswith("running_var"):
                buffer.mul_(0.5 + torch.rand(buffer.shape, generator=generator))
    return model.eval()


Made = tuple[nn.Module, Tensor]
_IMAGES = (6, 1, 8, 8)
_ZOO: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (lambda: ResidualCNN((8, 12), num_classes=4), _IMAGES),
    "mobile": (MobileNet, (6, 3, 8, 8)),
    "unet": (UNet, _IMAGES),
    "convnext": (ConvNeXt, _IMAGES),
    "vision_transformer": (VisionTransformer, _IMAGES),
    "text_transformer": (TextTransformer, (6, 9)),
    "mlp": (mlp, (6, 7)),
    "temporal": (TemporalCNN, (6, 2, 10)),
    "flattened": (FlattenedCNN, _IMAGES),
}
ARCHITECTURES = list(_ZOO)


def make(name: str, seed: int = 0) -> Made:
    """The network of that name, and a batch for it."""
    build, shape = _ZOO[name]
    torch.manual_seed(seed)
    model = disturb(build(), seed)
    return model, torch.randint(30, shape) if name == "text_transformer" else torch.randn(shape)
