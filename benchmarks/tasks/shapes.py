"""Tasks on generated images of noisy shapes: what they show (CNN, vision transformer), and where it is (U-Net)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.tasks.images import convolution
from benchmarks.tasks.segmentation import UNet
from benchmarks.tasks.task import Split, Splits, Task, generated

SHAPES = ("disk", "square", "triangle", "cross", "ring", "bar", "star", "crescent")


def inside(kinds: Tensor, radii: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Pixels of shapes at random places and angles.

    Args:
        kinds: Indexes of `SHAPES`, (N,).
        radii: In pixels, (N,).
        side: Height and width of the images.
        generator: Draws places and angles.

    Returns:
        (N, side, side), bool.
    """
    radii = radii.view(-1, 1, 1)
    lowest = radii + 1
    places = lowest + (side - 2 * lowest).clamp(min=0) * torch.rand(2, len(kinds), 1, 1, generator=generator)
    angles = math.pi / 2 * torch.rand(len(kinds), 1, 1, generator=generator)
    pixels = torch.arange(side) + 0.5
    down, right = (pixels.view(-1, 1) - places[0]) / radii, (pixels - places[1]) / radii
    x, y = angles.cos() * right + angles.sin() * down, angles.cos() * down - angles.sin() * right
    near, far = torch.minimum(x.abs(), y.abs()), torch.maximum(x.abs(), y.abs())
    distance = torch.hypot(x, y)
    drawn = torch.stack(
        [
            distance < 0.9,
            far < 0.75,
            (y < 0.5) & (y > 1.73 * x.abs() - 1),
            (near < 0.3) & (far < 0.95),
            (distance > 0.5) & (distance < 0.95),
            (x.abs() < 0.35) & (y.abs() < 1),
            distance < 0.65 + 0.35 * torch.cos(5 * torch.atan2(y, x)),
            (distance < 0.95) & (torch.hypot(x - 0.5, y) > 0.7),
        ]
    )
    return drawn[kinds, torch.arange(len(kinds))]


def noisy(images: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """Images (N, side, side) as (N, 1, side, side), with a slope of brightness and noise."""
    slopes = torch.randn(2, len(images), 1, 1, generator=generator) * 0.5
    ramp = torch.linspace(-1, 1, images.shape[1])
    noises = noise * torch.randn(images.shape, generator=generator)
    return (images + slopes[0] * ramp.view(-1, 1) + slopes[1] * ramp + noises).unsqueeze(1)


def labeled(size: int, side: int, radius: float, noise: float, generator: torch.Generator) -> Split:
    """One shape in each image, at least 2 `radius` of its side wide; the target is its kind."""
    kinds = torch.randint(len(SHAPES), (size,), generator=generator)
    radii = side * (radius + 0.1 * torch.rand(size, generator=generator))
    contrasts = 0.7 + 0.6 * torch.rand(size, 1, 1, generator=generator)
    return {"inputs": noisy(contrasts * inside(kinds, radii, side, generator), noise, generator), "targets": kinds}


def segmented(size: int, side: int, generator: torch.Generator) -> Split:
    """Two large shapes in each image, of class 1, and in a third of them a small triangle, of class 2."""
    images, targets = torch.zeros(size, side, side), torch.zeros(size, side, side, dtype=torch.int64)
    for _ in range(2):
        kinds = torch.tensor([0, 1, 3, 4])[torch.randint(4, (size,), generator=generator)]
        shape = inside(kinds, side * (0.15 + 0.15 * torch.rand(size, generator=generator)), side, generator)
        images[shape], targets[shape] = 1.0, 1
    small = inside(
        torch.full((size,), 2), side * (0.14 + 0.06 * torch.rand(size, generator=generator)), side, generator
    )
    small &= torch.rand(size, 1, 1, generator=generator) < 1 / 3
    images[small], targets[small] = 1.6, 2
    return {"inputs": noisy(images, 0.2, generator), "targets": targets}


def kinds_of_shapes(seed: int) -> Splits:
    """Images of 20x20 pixels."""
    return generated(seed, (1500, 1000, 20_000), lambda size, one: labeled(size, 20, 0.28, 0.17, one))


def kinds_of_clear_shapes(seed: int) -> Splits:
    """Images of 16x16 pixels with less noise."""
    return generated(seed, (1600, 1000, 20_000), lambda size, one: labeled(size, 16, 0.38, 0.15, one))


def places_of_shapes(seed: int) -> Splits:
    """Images of 24x24 pixels."""
    return generated(seed, (300, 200, 4096), lambda size, one: segmented(size, 24, one))


def small_cnn() -> nn.Module:
    """Four convolutions, two of them with stride 2, the mean over all pixels and a linear layer."""
    return nn.Sequential(
        convolution(1, 16, stride=2),
        convolution(16, 32),
        convolution(32, 48, stride=2),
        convolution(48, 48),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(48, len(SHAPES)),
    )


class Block(nn.Module):
    """Self-attention and two linear layers, each with LayerNorm before and a shortcut around."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        out: Tensor = x + self.narrow(nn.functional.gelu(self.wide(self.norm2(x))))
        return out


class VisionTransformer(nn.Module):
    """Attention over patches of 4x4 pixels (Dosovitskiy et al. 2021), with the mean of all tokens at the end."""

    def __init__(self, side: int = 16, width: int = 48, num_blocks: int = 2) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, width, 4, stride=4)
        self.position = nn.Parameter(0.02 * torch.randn((side // 4) ** 2, width))
        self.blocks = nn.Sequential(*(Block(width, num_heads=4) for _ in range(num_blocks)))
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, len(SHAPES))

    def forward(self, x: Tensor) -> Tensor:
        """Maps images (B, 1, side, side) to logits (B, 8)."""
        tokens = self.embed(x).flatten(2).transpose(1, 2) + self.position
        logits: Tensor = self.classifier(self.norm(self.blocks(tokens)).mean(1))
        return logits


ACCURACY: dict[str, Any] = {
    "class_path": "torchmetrics.classification.MulticlassAccuracy",
    "init_args": {"num_classes": len(SHAPES), "average": "micro"},
}

TASKS: tuple[Task, ...] = (
    Task(
        name="shapes_classes",
        source="Generated images of 20x20 pixels, each with one of eight shapes in strong noise.",
        is_for_choosing=True,
        is_unlimited=True,
        model=small_cnn,
        splits=kinds_of_shapes,
        training={  # the learning rate is a tenth of a good one
            "batch_size": 64,
            "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.0003}},
            "metric": ACCURACY,
        },
        budget={"max_drop": 0.02},
        baseline_epochs=30,
        baseline_lr=0.003,
    ),
    Task(
        name="shapes_unet",
        source="Generated images of 24x24 pixels: large shapes, and in a third of the images a small triangle.",
        is_for_choosing=False,
        is_unlimited=True,
        model=lambda: UNet(1, 3, width=8, block=convolution, is_deep=False),
        splits=places_of_shapes,
        training={  # the learning rate is a third of a good one
            "batch_size": 10,
            "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.001}},
            "metric": {
                "class_path": "torchmetrics.classification.MulticlassJaccardIndex",
                "init_args": {"num_classes": 3, "average": "macro"},
            },
        },
        budget={"max_relative_drop": 0.02},
        baseline_epochs=60,
        baseline_lr=0.003,
    ),
    Task(
        name="vit_shapes",
        source="Generated images of 16x16 pixels, each with one of eight shapes in weak noise.",
        is_for_choosing=True,
        is_unlimited=True,
        model=VisionTransformer,
        splits=kinds_of_clear_shapes,
        training={  # the learning rate is a fifth of a good one
            "batch_size": 64,
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.0004}},
            "metric": ACCURACY,
        },
        budget={"max_relative_drop": 0.02},
        baseline_epochs=60,
        baseline_lr=0.002,
    ),
)
