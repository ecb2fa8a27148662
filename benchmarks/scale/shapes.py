"""Networks in the shapes of ResNet-50 and ViT-B, in any size; torchvision's are not needed for that."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.nets import Attention


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with a shortcut (He et al. 2016, figure 5)."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        after = 4 * width
        self.convolutions = nn.Sequential(
            *(nn.Conv2d(before, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, after, 1, bias=False), nn.BatchNorm2d(after)),
        )
        self.shortcut: nn.Module = nn.Identity()
        if before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, before, H, W) to (B, 4 * width, H / stride, W / stride)."""
        return F.relu(self.convolutions(x) + self.shortcut(x))


def resnet50(width: int = 64, num_classes: int = 1000) -> nn.Sequential:
    """Blocks of 3, 4, 6 and 3 (He et al. 2016, table 1); 25.6M parameters with a width of 64."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    layers.append(nn.MaxPool2d(3, 2, 1))
    before = width
    for stage, depth in enumerate((3, 4, 6, 3)):
        for block in range(depth):
            inner = width << stage
            layers.append(Bottleneck(before, inner, 2 if stage and not block else 1))
            before = 4 * inner
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, num_classes))


class ViT(nn.Module):
    """A vision transformer (Dosovitskiy et al. 2021, table 1) without a class token; ViT-B has 86M parameters."""

    def __init__(self, pixels: int = 224, width: int = 768, depth: int = 12, num_classes: int = 1000) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.position = nn.Parameter(torch.zeros((pixels // 16) ** 2, width))
        self.blocks = nn.Sequential(*(Attention(width, width // 64, 4, F.gelu) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images (B, 3, pixels, pixels) to logits (B, num_classes)."""
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.position
        logits: Tensor = self.head(self.norm(self.blocks(tokens)).mean(1))
        return logits
