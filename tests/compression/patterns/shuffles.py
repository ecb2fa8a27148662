"""Channels that change places or are cut by groups: shuffles, grouped convolutions, selective kernels."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.compression.patterns.registry import IMAGE, Patterns, conv, numbers

SHUFFLES = Patterns()


def shuffled(x: Tensor, groups: int) -> Tensor:
    """The channels of all groups in turn."""
    batch, channels, height, width = x.shape
    return x.view(batch, groups, channels // groups, height, width).transpose(1, 2).reshape(batch, -1, height, width)


class GroupedShuffle(nn.Module):
    """ShuffleNet: grouped convolutions with a shuffle between, and a shortcut."""

    def __init__(self, groups: int, *, module: bool = False) -> None:
        super().__init__()
        width, inner = 8 * groups, 4 * groups
        self.groups = groups
        self.shuffle = nn.ChannelShuffle(groups) if module else None
        self.stem, self.reduce = conv(3, width), conv(width, inner, 1, groups=groups)
        self.depthwise = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.expand, self.head = nn.Conv2d(inner, width, 1, groups=groups), nn.Conv2d(width, 4, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        y = self.reduce(x)
        y = self.shuffle(y) if self.shuffle else shuffled(y, self.groups)
        return self.head(F.relu(x + self.expand(self.depthwise(y))))


# With two groups of an even number of channels, any pair of channels can go. Otherwise each cut would have to take the
# same number from every group on both sides of the shuffle, which few choices do, so the inner layers may stay whole.
for _groups, _inner in ((2, "reduce.0 depthwise"), (3, ""), (4, "")):
    SHUFFLES.add(f"shuffle of {_groups} groups", partial(GroupedShuffle, _groups), IMAGE, f"stem.0 {_inner} expand")
SHUFFLES.add("nn.ChannelShuffle", lambda: GroupedShuffle(2, module=True), IMAGE, "stem.0 reduce.0 depthwise expand")


class ShuffleUnit(nn.Module):
    """ShuffleNetV2: half of the channels passes by, then both halves are shuffled; and the unit with a stride."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.side = conv(3, 12), nn.Sequential(conv(12, 12, groups=12, stride=2), conv(12, 12, 1))
        self.main = nn.Sequential(conv(12, 12, 1), conv(12, 12, groups=12, stride=2), conv(12, 12, 1))
        self.units = nn.ModuleList(
            nn.Sequential(conv(12, 12, 1), conv(12, 12, groups=12), conv(12, 12, 1)) for _ in range(2)
        )
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        x = shuffled(torch.cat([self.side(x), self.main(x)], 1), 2)
        for unit in self.units:
            passed, changed = x.chunk(2, dim=1)
            x = shuffled(torch.cat([passed, unit(changed)], 1), 2)
        return self.head(x.mean([2, 3]))


SHUFFLES.add(
    "ShuffleNetV2",
    ShuffleUnit,
    IMAGE,
    "stem.0 side.1.0 main.0.0 main.2.0 units.0.0.0 units.0.2.0 units.1.0.0 units.1.2.0",
    "head",
)


class Rearranged(nn.Module):
    """Channels in another order, or padded with zeros, before a sum."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.stem, self.body, self.inner = conv(3, 16), conv(16, 16), conv(16, 12)
        self.back, self.head = nn.Conv2d(12, 16, 1), nn.Conv2d(16, 4, 1)
        self.register_buffer("order", torch.randperm(16))

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        y = self.body(x)
        if self.way == "flip":
            y = y.flip(1)
        elif self.way == "roll":
            y = torch.roll(y, y.shape[1] // 2, dims=1)
        elif self.way == "order":
            y = y.index_select(1, self.order)
        elif self.way == "halves swapped":
            y = torch.cat(y.chunk(2, 1)[::-1], 1)
        elif self.way == "padded":
            y = F.pad(y[:, :10], (0, 0, 0, 0, 3, 3))
        return self.head(x + self.back(self.inner(y)) + y)


for _way, _cut in {
    "flip": "stem.0 body.0 inner.0 back",
    "roll": "inner.0",
    "order": "inner.0",
    "halves swapped": "stem.0 body.0 inner.0 back",
    "padded": "inner.0",
}.items():
    SHUFFLES.add(f"channels, {_way}", partial(Rearranged, _way), IMAGE, _cut)


class Grouped(nn.Module):
    """Grouped convolutions with few groups and many, and a depthwise one with a multiplier."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.stem, self.grouped = conv(3, 16), conv(16, 24, groups=groups)
        self.multiplied = nn.Conv2d(24, 48, 3, padding=1, groups=24)
        self.mix, self.last = conv(48, 16, 1), nn.Conv2d(16, 8, 3, padding=1, groups=2)
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.mix(F.relu(self.multiplied(self.grouped(self.stem(x)))))
        return self.head(F.relu(self.last(x)))


for _groups in (2, 4, 8):
    SHUFFLES.add(
        f"{_groups} groups and a multiplier",
        partial(Grouped, _groups),
        IMAGE,
        "stem.0 grouped.0 multiplied mix.0 last",
    )


class MixConv(nn.Module):
    """Depthwise convolutions of several sizes, each of a part of the channels."""

    def __init__(self, *, written: bool) -> None:
        super().__init__()
        self.sizes = [10, 8, 6] if written else [8, 8, 8]
        self.written = written
        self.stem, self.expand = conv(3, 16), conv(16, 24, 1)
        self.parts = nn.ModuleList(
            nn.Conv2d(n, n, k, padding=k // 2, groups=n) for n, k in zip(self.sizes, (3, 5, 7), strict=True)
        )
        self.norm, self.project, self.head = nn.BatchNorm2d(24), nn.Conv2d(24, 16, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        y = self.expand(x)
        split = y.split(self.sizes, 1) if self.written else y.chunk(3, 1)
        y = torch.cat([part(piece) for part, piece in zip(self.parts, split, strict=True)], 1)
        return self.head(x + self.project(F.relu(self.norm(y))))


SHUFFLES.add("MixConv", lambda: MixConv(written=False), IMAGE, "stem.0 expand.0 parts.0 parts.1 parts.2 project")
SHUFFLES.add("MixConv, written sizes", lambda: MixConv(written=True), IMAGE, "stem.0 project")


class SelectiveKernel(nn.Module):
    """SKNet: a softmax over branches, per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 12)
        self.branches = nn.ModuleList([conv(12, 16), conv(12, 16, 5)])
        self.squeeze, self.select = conv(16, 6, 1), nn.Conv2d(6, 32, 1)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        y = torch.stack([branch(x) for branch in self.branches], dim=1)
        scores = self.select(self.squeeze(y.sum(1).mean((2, 3), keepdim=True)))
        scores = scores.view(scores.shape[0], 2, -1, 1, 1).softmax(1)
        return self.head((y * scores).sum(1))


SHUFFLES.add("SKNet", SelectiveKernel, IMAGE, "stem.0 branches.0.0 branches.1.0 squeeze.0 select", "squeeze.0 head")


class SplitAttention(nn.Module):
    """ResNeSt: a grouped convolution whose parts are weighted by a softmax and added."""

    def __init__(self, radix: int = 2) -> None:
        super().__init__()
        self.radix = radix
        self.stem, self.wide = conv(3, 12), conv(12, 16 * radix, groups=radix)
        self.first, self.second = conv(16, 8, 1), nn.Conv2d(8, 16 * radix, 1)
        self.last, self.head = conv(16, 12, 1), nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        y = self.wide(x)
        parts = y.view(y.shape[0], self.radix, -1, *y.shape[2:])
        scores = self.second(self.first(parts.sum(1).mean((2, 3), keepdim=True)))
        scores = scores.view(len(x), self.radix, -1).softmax(dim=1).view(len(x), self.radix, -1, 1, 1)
        return self.head(x + self.last((parts * scores).sum(dim=1)))


SHUFFLES.add("split attention", SplitAttention, IMAGE, "stem.0 wide.0 first.0 second last.0", "last.0")


class Subpixel(nn.Module):
    """Channels that become places, and places that become channels."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.stem = nn.PixelUnshuffle(2), conv(12, 16)
        self.inner, self.up, self.smooth = conv(16, 12), nn.Conv2d(12, 32, 3, padding=1), conv(8, 10)
        self.shuffle, self.end = nn.PixelShuffle(2), nn.Conv2d(10, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Any:
        y = self.up(self.inner(self.stem(self.enter(x))))
        return self.end(self.smooth(F.leaky_relu(self.shuffle(y), 0.1))) + x


SHUFFLES.add("pixel shuffle", Subpixel, IMAGE, "stem.0 inner.0 up smooth.0", "smooth.0")


class SpaceToDepth(nn.Module):
    """Every second row and column side by side as channels (Focus, Swin's merging)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.reduce, self.head = conv(3, 12), conv(48, 16, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        corners = [x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]
        return self.head(self.reduce(torch.cat(corners, 1)))


SHUFFLES.add("space to depth", SpaceToDepth, IMAGE, "stem.0 reduce.0", "reduce.0")


class PartialConvolution(nn.Module):
    """FasterNet: only the first quarter of the channels is convolved, by written sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.part = conv(3, 16), nn.Conv2d(4, 4, 3, padding=1)
        self.wide, self.narrow, self.head = conv(16, 32, 1), nn.Conv2d(32, 16, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        first, rest = torch.split(x, [4, 12], dim=1)
        return self.head(x + self.narrow(self.wide(torch.cat((self.part(first), rest), 1))))


SHUFFLES.add("partial convolution", PartialConvolution, IMAGE, "wide.0")


class TemporalShift(nn.Module):
    """TSM: a share of the channels comes from the step before and after."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.after, self.head = conv(3, 16), conv(16, 20), conv(20, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Any:  # (batch, steps, 3, height, width)
        batch, steps = x.shape[:2]
        y = self.stem(x.flatten(0, 1)).unflatten(0, (batch, steps))
        part = y.shape[2] // 4
        ahead = F.pad(y[:, 1:, :part], (0, 0, 0, 0, 0, 0, 0, 1))
        behind = F.pad(y[:, :-1, part : 2 * part], (0, 0, 0, 0, 0, 0, 1, 0))
        y = torch.cat([ahead, behind, y[:, :, 2 * part :]], 2).flatten(0, 1)
        return self.head(self.after(self.body(y)).mean((2, 3)).unflatten(0, (batch, steps)).mean(1))


SHUFFLES.add("temporal shift", TemporalShift, numbers(3, 3, 6, 6), "body.0 after.0")
