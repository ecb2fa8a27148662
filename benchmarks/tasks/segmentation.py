"""Tasks that name the class of each pixel, as new users bring them: cells with a rare class, and leaves (U-Nets)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.tasks.task import Split, Splits, Task, generated

SIDE = 24
# The class of pixels that neither loss nor metric reads.
IGNORED = 255


def cells(size: int, generator: torch.Generator) -> Split:
    """Four round cells in each image, of class 1; one of eight divides, is smaller and brighter, and of class 2.

    Nobody has decided where a cell ends: pixels at its border are ignored.
    """
    images = torch.zeros(size, SIDE, SIDE)
    targets = torch.zeros(size, SIDE, SIDE, dtype=torch.int64)
    pixels = torch.arange(SIDE) + 0.5
    for _ in range(4):
        down, right = SIDE * torch.rand(2, size, 1, 1, generator=generator)
        divides = torch.rand(size, 1, 1, generator=generator) < 0.12
        radius = (3 + 2.5 * torch.rand(size, 1, 1, generator=generator)) * torch.where(divides, 0.75, 1.0)
        stretch = torch.exp(0.25 * torch.randn(size, 1, 1, generator=generator))
        distance = torch.hypot((pixels.view(-1, 1) - down) * stretch, (pixels - right) / stretch) / radius
        bright = 0.6 + 0.3 * torch.rand(size, 1, 1, generator=generator) + torch.where(divides, 0.7, 0.0)
        images = torch.where(distance < 1, bright * (1 - 0.5 * distance**2), images)
        targets = torch.where(distance < 0.9, torch.where(divides, 2, 1), targets)
        targets = torch.where((distance >= 0.9) & (distance < 1.1), IGNORED, targets)
    slopes = 0.2 * torch.randn(2, size, 1, 1, generator=generator)
    ramp = torch.linspace(-1, 1, SIDE)
    images = images + slopes[0] * ramp.view(-1, 1) + slopes[1] * ramp
    images = images + 0.15 * torch.randn(images.shape, generator=generator)
    return {"inputs": images.unsqueeze(1), "targets": targets}


def leaves(size: int, generator: torch.Generator) -> Split:
    """A leaf with three to seven lobes in front of a mottled ground, in color; the leaf is class 1."""

    def drawn(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(size, 1, 1, generator=generator)

    pixels = torch.arange(SIDE) + 0.5
    down, right = pixels.view(-1, 1) - SIDE * drawn(0.35, 0.65), pixels - SIDE * drawn(0.35, 0.65)
    angle, distance = torch.atan2(down, right), torch.hypot(down, right) / (SIDE * drawn(0.2, 0.38))
    lobes = torch.randint(3, 8, (size, 1, 1), generator=generator)
    edge = 1 + drawn(0.05, 0.35) * torch.cos(lobes * angle + drawn(0, 2 * math.pi))
    inside = distance < edge * torch.where(torch.cos(angle - drawn(0, 2 * math.pi)) > 0.97, 1.3, 1.0)
    coarse = torch.randn(size, 3, SIDE // 4, SIDE // 4, generator=generator)
    mottled = nn.functional.interpolate(coarse, scale_factor=4, mode="bilinear")
    ground = torch.tensor([0.45, 0.4, 0.3]).view(3, 1, 1) + 0.15 * mottled
    green = torch.tensor([0.3, 0.55, 0.25]).view(3, 1, 1) * drawn(0.7, 1.2).unsqueeze(1)
    veins = 0.1 * torch.cos(lobes * angle).unsqueeze(1)
    images = torch.where(inside.unsqueeze(1), green + veins, ground)
    images = images + 0.12 * torch.randn(images.shape, generator=generator)
    return {"inputs": images, "targets": inside.long()}


def images_of_cells(seed: int) -> Splits:
    """Images of 24x24 pixels, (N, 1, 24, 24)."""
    return generated(seed, (120, 100, 2048), cells)


def images_of_leaves(seed: int) -> Splits:
    """Images of 24x24 pixels, (N, 3, 24, 24)."""
    return generated(seed, (120, 100, 2048), leaves)


def plain(before: int, after: int) -> nn.Sequential:
    """A convolution that pads, and ReLU."""
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.ReLU())


class UNet(nn.Module):
    """Two halvings of the resolution, and shortcuts to the layers that double it again (Ronneberger et al. 2015).

    Args:
        channels: Channels of the images.
        num_classes: Classes of the pixels.
        width: Channels at the highest resolution.
        block: Makes a convolution, two of which follow each other on the way down.
        is_deep: Whether there are two on the way up, too, instead of one.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        *,
        width: int = 12,
        block: Callable[[int, int], nn.Module] = plain,
        is_deep: bool = True,
    ) -> None:
        super().__init__()

        def pair(before: int, after: int) -> nn.Sequential:
            return nn.Sequential(block(before, after), block(after, after))

        up = pair if is_deep else block
        self.down1, self.down2 = pair(channels, width), pair(width, 2 * width)
        self.bottom = pair(2 * width, 4 * width)
        self.raise2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2)
        self.up2 = up(4 * width, 2 * width)
        self.raise1 = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.up1 = up(2 * width, width)
        self.pool = nn.MaxPool2d(2)
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images (B, channels, H, W) to logits (B, num_classes, H, W)."""
        first = self.down1(x)
        second = self.down2(self.pool(first))
        y = self.raise2(self.bottom(self.pool(second)))
        y = self.raise1(self.up2(torch.cat([second, y], 1)))
        logits: Tensor = self.classifier(self.up1(torch.cat([first, y], 1)))
        return logits


TASKS: tuple[Task, ...] = (
    Task(
        name="cells_unet",
        source="Generated images of 24x24 pixels: cells, an eighth of which divide, with borders that are ignored.",
        is_for_choosing=True,
        is_unlimited=True,
        model=lambda: UNet(1, 3),
        splits=images_of_cells,
        training={
            "batch_size": 8,
            "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.001}},
            "loss": {"class_path": "torch.nn.CrossEntropyLoss", "init_args": {"ignore_index": IGNORED}},
            "metric": {
                "class_path": "torchmetrics.classification.MulticlassJaccardIndex",
                "init_args": {"num_classes": 3, "average": "macro", "ignore_index": IGNORED},
            },
        },
        budget={"max_relative_drop": 0.02},
        baseline_epochs=60,
        baseline_lr=0.002,
    ),
    Task(
        name="leaves_unet",
        source="Generated color images of 24x24 pixels, each with a leaf in front of a mottled ground.",
        is_for_choosing=True,
        is_unlimited=True,
        model=lambda: UNet(3, 2),
        splits=images_of_leaves,
        training={
            "batch_size": 8,
            "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.001}},
            "metric": {
                "class_path": "torchmetrics.classification.MulticlassJaccardIndex",
                "init_args": {"num_classes": 2, "average": "macro"},
            },
        },
        budget={"max_relative_drop": 0.01},
        baseline_epochs=40,
        baseline_lr=0.001,
    ),
)
