"""A small residual network for images of a few pixels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut around them (He et al. 2016, figure 5, left).

    The shortcut is a 1x1 convolution if the shape changes, and the identity otherwise.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Stride of the first convolution and of the shortcut.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        # BatchNorm adds its own bias, so the convolution before it needs none.
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, in_channels, H, W) to (B, out_channels, H / stride, W / stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        out: Tensor = self.relu(y + self.shortcut(x))
        return out


class ResidualCNN(nn.Module):
    """A 3x3 stem, one basic block per width, global average pooling and a linear classifier.

    The first block keeps the resolution; each later one halves it.

    Args:
        widths: Channels of each block; the stem has as many as the first.
        num_classes: Number of logits.
        in_channels: Channels of the images.
    """

    def __init__(self, widths: Sequence[int] = (24, 48, 96), num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(),
        )
        inputs = [widths[0], *widths[:-1]]
        self.blocks = nn.Sequential(
            *(
                BasicBlock(before, width, stride=1 if index == 0 else 2)
                for index, (before, width) in enumerate(zip(inputs, widths, strict=True))
            )
        )
        self.classifier = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images (B, in_channels, H, W) to logits (B, num_classes)."""
        x = self.blocks(self.stem(x))
        # The mean exports as one ReduceMean. AdaptiveAvgPool2d and Flatten export shape arithmetic too.
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits
