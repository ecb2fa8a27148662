"""The networks of NNCF's examples as layer shapes: widths, kernels, strides and connections of the published papers.

Weights are random, and inputs small: the filters that a rate leaves in each layer depend on neither.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ConvNorm(nn.Sequential):
    """A convolution without bias, its BatchNorm, and possibly a ReLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int] = 3,
        *,
        stride: int = 1,
        padding: int | tuple[int, int] | None = None,
        groups: int = 1,
        dilation: int = 1,
        activation: type[nn.Module] | None = nn.ReLU,
    ) -> None:
        sizes = (kernel, kernel) if isinstance(kernel, int) else kernel
        same = (dilation * (sizes[0] // 2), dilation * (sizes[1] // 2))
        conv = nn.Conv2d(
            *(inputs, outputs, sizes, stride, same if padding is None else padding),
            dilation=dilation,
            groups=groups,
            bias=False,
        )
        super().__init__(conv, nn.BatchNorm2d(outputs), *([] if activation is None else [activation()]))


class Residual(nn.Module):
    """Adds what layers compute to their input, or to a projection of it."""

    def __init__(self, body: nn.Module, projection: nn.Module | None = None, *, ends_in_relu: bool = True) -> None:
        super().__init__()
        self.body, self.projection, self.ends_in_relu = body, projection, ends_in_relu

    def forward(self, x: Tensor) -> Tensor:
        summed: Tensor = self.body(x) + (x if self.projection is None else self.projection(x))
        return F.relu(summed) if self.ends_in_relu else summed


def basic_block(inputs: int, outputs: int, stride: int) -> Residual:
    """Two 3x3 convolutions (He et al. 2015)."""
    body = nn.Sequential(ConvNorm(inputs, outputs, stride=stride), ConvNorm(outputs, outputs, activation=None))
    is_plain = stride == 1 and inputs == outputs
    return Residual(body, None if is_plain else ConvNorm(inputs, outputs, 1, stride=stride, activation=None))


def resnet(stem: Sequence[nn.Module], widths: Sequence[int], depths: Sequence[int], classes: int) -> nn.Sequential:
    """A ResNet of basic blocks; each stage but the first halves the resolution."""
    blocks: list[nn.Module] = []
    inputs = widths[0]
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        for number in range(depth):
            blocks.append(basic_block(inputs, width, 2 if stage and not number else 1))
            inputs = width
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


def imagenet_resnet(depths: Sequence[int]) -> nn.Sequential:
    """ResNet-18 and ResNet-34 for ImageNet."""
    stem = [ConvNorm(3, 64, 7, stride=2), nn.MaxPool2d(3, 2, 1)]
    return resnet(stem, (64, 128, 256, 512), depths, 1000)


def cifar_resnet() -> nn.Sequential:
    """A ResNet for CIFAR of widths 16, 32 and 64."""
    return resnet([ConvNorm(3, 16)], (16, 32, 64), (2, 2, 2), 10)


def mobilenet_v2() -> nn.Sequential:
    """Inverted residuals with depthwise convolutions (Sandler et al. 2018, table 2)."""
    blocks: list[nn.Module] = [ConvNorm(3, 32, stride=2, activation=nn.ReLU6)]
    inputs = 32
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expansion, width, depth, stride in stages:
        for number in range(depth):
            step, hidden = (stride if not number else 1), inputs * expansion
            body = nn.Sequential(
                *([ConvNorm(inputs, hidden, 1, activation=nn.ReLU6)] if expansion > 1 else []),
                ConvNorm(hidden, hidden, stride=step, groups=hidden, activation=nn.ReLU6),
                ConvNorm(hidden, width, 1, activation=None),
            )
            blocks.append(Residual(body, ends_in_relu=False) if step == 1 and inputs == width else body)
            inputs = width
    last = ConvNorm(inputs, 1280, 1, activation=nn.ReLU6)
    return nn.Sequential(*blocks, last, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(1280, 1000))


class Branches(nn.Module):
    """Concatenates what several branches compute; a branch may fork at its end."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


def inception_v3() -> nn.Sequential:
    """Five kinds of blocks of parallel branches (Szegedy et al. 2015)."""
    conv: Callable[..., ConvNorm] = ConvNorm

    def pooled(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(nn.AvgPool2d(3, 1, 1), conv(inputs, outputs, 1))

    def block_a(inputs: int, pool: int) -> Branches:
        return Branches(
            conv(inputs, 64, 1),
            nn.Sequential(conv(inputs, 48, 1), conv(48, 64, 5)),
            nn.Sequential(conv(inputs, 64, 1), conv(64, 96), conv(96, 96)),
            pooled(inputs, pool),
        )

    def block_c(width: int) -> Branches:
        row, column = (1, 7), (7, 1)
        return Branches(
            conv(768, 192, 1),
            nn.Sequential(conv(768, width, 1), conv(width, width, row), conv(width, 192, column)),
            nn.Sequential(
                conv(768, width, 1),
                conv(width, width, column),
                conv(width, width, row),
                conv(width, width, column),
                conv(width, 192, row),
            ),
            pooled(768, 192),
        )

    def fork() -> Branches:
        return Branches(conv(384, 384, (1, 3)), conv(384, 384, (3, 1)))

    def block_e(inputs: int) -> Branches:
        return Branches(
            conv(inputs, 320, 1),
            nn.Sequential(conv(inputs, 384, 1), fork()),
            nn.Sequential(conv(inputs, 448, 1), conv(448, 384), fork()),
            pooled(inputs, 192),
        )

    return nn.Sequential(
        *(conv(3, 32, stride=2, padding=0), conv(32, 32, padding=0), conv(32, 64), nn.MaxPool2d(3, 2)),
        *(conv(64, 80, 1), conv(80, 192, padding=0), nn.MaxPool2d(3, 2)),
        *(block_a(192, 32), block_a(256, 64), block_a(288, 64)),
        Branches(
            conv(288, 384, stride=2, padding=0),
            nn.Sequential(conv(288, 64, 1), conv(64, 96), conv(96, 96, stride=2, padding=0)),
            nn.MaxPool2d(3, 2),
        ),
        *(block_c(128), block_c(160), block_c(160), block_c(192)),
        Branches(
            nn.Sequential(conv(768, 192, 1), conv(192, 320, stride=2, padding=0)),
            nn.Sequential(
                *(conv(768, 192, 1), conv(192, 192, (1, 7)), conv(192, 192, (7, 1))),
                conv(192, 192, stride=2, padding=0),
            ),
            nn.MaxPool2d(3, 2),
        ),
        *(block_e(1280), block_e(2048)),
        *(nn.AdaptiveAvgPool2d(1), nn.Dropout(), nn.Flatten(), nn.Linear(2048, 1000)),
    )


class UNet(nn.Module):
    """A contracting and an expanding path (Ronneberger et al. 2015), with BatchNorms and padded convolutions."""

    def __init__(self, classes: int = 12) -> None:
        super().__init__()
        widths = (64, 128, 256, 512, 1024)
        self.down = nn.ModuleList(
            nn.Sequential(ConvNorm(inputs, width), ConvNorm(width, width))
            for inputs, width in zip((3, *widths), widths, strict=False)
        )
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * width, width, 2, 2) for width in widths[-2::-1])
        self.merge = nn.ModuleList(
            nn.Sequential(ConvNorm(2 * width, width), ConvNorm(width, width)) for width in widths[-2::-1]
        )
        self.last = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skipped = []
        for number, block in enumerate(self.down):
            x = block(x if not number else F.max_pool2d(x, 2))
            skipped.append(x)
        for up, merge, skip in zip(self.up, self.merge, skipped[-2::-1], strict=True):
            x = merge(torch.cat([up(x), skip], 1))
        return self.last(x)  # type: ignore[no-any-return]


def bottleneck(inputs: int, hidden: int, outputs: int, stride: int = 1, dilation: int = 1) -> Residual:
    """1x1, 3x3 and 1x1 convolutions; the first one has the stride."""
    body = nn.Sequential(
        ConvNorm(inputs, hidden, 1, stride=stride),
        ConvNorm(hidden, hidden, dilation=dilation),
        ConvNorm(hidden, outputs, 1, activation=None),
    )
    is_plain = stride == 1 and inputs == outputs
    return Residual(body, None if is_plain else ConvNorm(inputs, outputs, 1, stride=stride, activation=None))


class ICNet(nn.Module):
    """Branches at three resolutions, pyramid pooling, and their cascaded fusion by sums (Zhao et al. 2017)."""

    def __init__(self, classes: int = 12) -> None:
        super().__init__()
        self.fine = nn.Sequential(ConvNorm(3, 32, stride=2), ConvNorm(32, 32, stride=2), ConvNorm(32, 64, stride=2))
        self.shared = nn.Sequential(
            *(ConvNorm(3, 32, stride=2), ConvNorm(32, 32), ConvNorm(32, 64), nn.MaxPool2d(3, 2, 1)),
            *(bottleneck(64, 32, 128), bottleneck(128, 32, 128), bottleneck(128, 32, 128)),
            bottleneck(128, 64, 256, stride=2),
        )
        self.coarse = nn.Sequential(
            *(bottleneck(256, 64, 256) for _ in range(3)),
            bottleneck(256, 128, 512, dilation=2),
            *(bottleneck(512, 128, 512, dilation=2) for _ in range(5)),
            bottleneck(512, 256, 1024, dilation=4),
            *(bottleneck(1024, 256, 1024, dilation=4) for _ in range(2)),
        )
        self.after_pyramid = ConvNorm(1024, 256, 1)
        self.coarse_to_medium = ConvNorm(256, 128, dilation=2, activation=None)
        self.of_medium = ConvNorm(256, 128, 1, activation=None)
        self.medium_to_fine = ConvNorm(128, 128, dilation=2, activation=None)
        self.of_fine = ConvNorm(64, 128, 1, activation=None)
        self.last = nn.Conv2d(128, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        medium = self.shared(F.interpolate(x, scale_factor=0.5, mode="bilinear"))
        coarse = self.coarse(F.interpolate(medium, scale_factor=0.5, mode="bilinear"))
        pooled = [F.adaptive_avg_pool2d(coarse, size) for size in (1, 2)]
        for each in pooled:
            coarse = coarse + F.interpolate(each, size=coarse.shape[2:], mode="bilinear")
        coarse = F.interpolate(self.after_pyramid(coarse), scale_factor=2.0, mode="bilinear")
        merged = F.relu(self.coarse_to_medium(coarse) + self.of_medium(medium))
        merged = self.medium_to_fine(F.interpolate(merged, scale_factor=2.0, mode="bilinear"))
        merged = F.relu(merged + self.of_fine(self.fine(x)))
        return self.last(F.interpolate(merged, scale_factor=2.0, mode="bilinear"))  # type: ignore[no-any-return]


class ShuffleNet(nn.Module):
    """Two units that split the channels, change a half and shuffle both (Ma et al. 2018, figure 3c)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 32)
        self.units = nn.ModuleList(
            nn.Sequential(ConvNorm(16, 16, 1), ConvNorm(16, 16, groups=16, activation=None), ConvNorm(16, 16, 1))
            for _ in range(2)
        )
        self.last, self.fc = ConvNorm(32, 64, 1), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for unit in self.units:
            same, changed = x.chunk(2, 1)
            x = F.channel_shuffle(torch.cat([same, unit(changed)], 1), 2)
        return self.fc(self.last(x).mean((2, 3)))  # type: ignore[no-any-return]


class Halves(nn.Module):
    """The halves of one layer's channels go to two branches, whose results are concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.wide = ConvNorm(3, 16), ConvNorm(16, 64)
        self.left, self.right, self.last = ConvNorm(32, 32), ConvNorm(32, 48), nn.Conv2d(80, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.wide(self.first(x)).chunk(2, 1)
        return self.last(torch.cat([self.left(left), self.right(right)], 1))  # type: ignore[no-any-return]


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "cifar_resnet": (cifar_resnet, (1, 3, 32, 32)),
    "resnet18": (lambda: imagenet_resnet((2, 2, 2, 2)), (1, 3, 64, 64)),
    "resnet34": (lambda: imagenet_resnet((3, 4, 6, 3)), (1, 3, 64, 64)),
    "mobilenet_v2": (mobilenet_v2, (1, 3, 64, 64)),
    "inception_v3": (inception_v3, (1, 3, 96, 96)),
    "unet": (UNet, (1, 3, 32, 32)),
    "icnet": (ICNet, (1, 3, 128, 128)),
    "shufflenet": (ShuffleNet, (1, 3, 16, 16)),
    "halves": (Halves, (1, 3, 16, 16)),
}


def filled(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """A network whose weights are the same on every machine and in every version of torch, and its input's shape."""
    make, shape = NETS[name]
    model = make()
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            places = torch.arange(parameter.numel(), dtype=torch.float64)
            parameter.copy_(torch.sin(places.square() * 0.618 + number).reshape(parameter.shape) / parameter[0].numel())
    return model, shape
