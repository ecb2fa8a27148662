"""Concatenated branches: dense blocks, Inception, Ghost, U-Net, HRNet, CSP and their relatives."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.compression.patterns.registry import IMAGE, Patterns, conv

BRANCHES = Patterns()


class Ghost(nn.Module):
    """Half of the features are made cheaply from the other half."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.primary = conv(3, 16), conv(16, 12, 1)
        self.cheap = conv(12, 12, groups=12)
        self.depthwise, self.head = nn.Conv2d(24, 24, 3, padding=1, groups=24), nn.Conv2d(24, 4, 1)

    def forward(self, x: Tensor) -> Any:
        y = self.primary(self.stem(x))
        return self.head(self.depthwise(torch.cat([y, self.cheap(y)], 1)))


BRANCHES.add("Ghost", Ghost, IMAGE, "stem.0 primary.0 cheap.0", "head")


class JoinedWithItself(nn.Module):
    """The features and a function of them side by side, then normalized (CGNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.local = conv(3, 16), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.around = nn.Conv2d(16, 16, 3, padding=2, dilation=2, groups=16)
        self.norm, self.head = nn.BatchNorm2d(32), nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        return self.head(F.relu(self.norm(torch.cat([self.local(x), self.around(x)], dim=1))))


BRANCHES.add("local and around", JoinedWithItself, IMAGE, "stem.0 local around", "head")


class Concatenated(nn.Module):
    """The input of a layer beside its output, three deep, flattened into a linear layer."""

    def __init__(self, *, flat: bool) -> None:
        super().__init__()
        self.flat = flat
        self.stem = conv(3, 8)
        self.grow = nn.ModuleList([conv(8, 6), conv(14, 6), conv(20, 6)])
        self.head = nn.Linear(26 * 4 if flat else 26, 5)

    def forward(self, x: Tensor) -> Any:
        features = [self.stem(x)]
        for layer in self.grow:
            features.append(layer(torch.cat(features, 1)))
        x = F.max_pool2d(torch.cat(features, 1), 4)
        return self.head(x.flatten(1) if self.flat else x.amax((2, 3)))


for _flat in (False, True):
    BRANCHES.add(
        f"dense block{', flattened' if _flat else ''}",
        partial(Concatenated, flat=_flat),
        IMAGE,
        "stem.0 grow.0.0 grow.1.0 grow.2.0",
        "head",
    )


class PreActivated(nn.Module):
    """DenseNet: normalization before each convolution, so after the concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(14)])
        self.convs = nn.ModuleList([nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(14, 6, 3, padding=1)])
        self.last, self.transition, self.head = nn.BatchNorm2d(20), nn.Conv2d(20, 10, 1), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        for norm, layer in zip(self.norms, self.convs, strict=True):
            x = torch.cat((x, layer(norm(x).relu())), dim=1)
        return self.head(F.avg_pool2d(self.transition(self.last(x).relu()), 2).mean((-2, -1)))


BRANCHES.add("DenseNet", PreActivated, IMAGE, "stem convs.0 convs.1 transition")


class Inception(nn.Module):
    """Four branches, one of them pooled, side by side, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 12)
        self.one, self.three, self.five, self.pooled = conv(12, 6, 1), conv(12, 8, 3), conv(12, 4, 5), conv(12, 4, 1)
        self.mix, self.head = conv(22, 10), nn.Linear(160, 3)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        pooled = self.pooled(F.max_pool2d(x, 3, stride=1, padding=1))
        x = self.mix(torch.cat([self.one(x), self.three(x), self.five(x), pooled], 1))
        return self.head(torch.flatten(F.avg_pool2d(x, 2), 1))


BRANCHES.add("Inception", Inception, IMAGE, "stem.0 one.0 three.0 five.0 pooled.0 mix.0", "head")


class Repeated(nn.Module):
    """The same features twice in one concatenation, once as they are and once negative (CReLU)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(24, 10, 3), nn.Conv2d(10, 3, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        return self.head(self.body(torch.cat([x, -x], 1).relu()).relu())


BRANCHES.add("CReLU", Repeated, IMAGE, "stem body", "body")


class Excited(nn.Module):
    """Squeeze-and-excitation of concatenated branches, and their sum with a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = conv(3, 16), conv(16, 10, 1), conv(16, 6)
        self.squeeze, self.excite, self.head = nn.Linear(16, 5), nn.Linear(5, 16), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        y = torch.cat([self.a(x), self.b(x)], 1)
        weights = self.excite(self.squeeze(y.mean((2, 3))).relu()).sigmoid()
        return self.head(x + y * weights[:, :, None, None])


BRANCHES.add("excited branches", Excited, IMAGE, "stem.0 a.0 b.0 squeeze excite", "squeeze")


class CSP(nn.Module):
    """YOLO's blocks: by two layers (CSP), or by halves of which each next part is kept (C2f)."""

    def __init__(self, *, halves: bool) -> None:
        super().__init__()
        self.halves = halves
        self.stem = conv(3, 16)
        self.first = conv(16, 24, 1) if halves else conv(16, 12, 1)
        self.second = conv(16, 12, 1)
        self.blocks = nn.ModuleList(nn.Sequential(conv(12, 12, 1), conv(12, 12)) for _ in range(2))
        self.mix, self.head = conv(48 if halves else 24, 20, 1), nn.Conv2d(20, 4, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        if self.halves:
            parts = list(self.first(x).chunk(2, 1))
            for block in self.blocks:
                parts.append(parts[-1] + block(parts[-1]))
        else:
            y = self.first(x)
            for block in self.blocks:
                y = y + block(y)
            parts = [y, self.second(x)]
        return self.head(self.mix(torch.cat(parts, 1)))


_BLOCKS = "stem.0 first.0 blocks.0.0.0 blocks.0.1.0 blocks.1.0.0 blocks.1.1.0 mix.0"
BRANCHES.add("CSP", lambda: CSP(halves=False), IMAGE, f"{_BLOCKS} second.0")
BRANCHES.add("C2f", lambda: CSP(halves=True), IMAGE, _BLOCKS)


class Res2Net(nn.Module):
    """Each quarter of the channels is added to the next before its convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.enter = conv(3, 16), conv(16, 24, 1)
        self.convs = nn.ModuleList(conv(6, 6) for _ in range(3))
        self.leave, self.head = nn.Sequential(nn.Conv2d(24, 16, 1), nn.BatchNorm2d(16)), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        first, *rest = torch.chunk(self.enter(x), 4, 1)
        parts, last = [first], torch.zeros_like(first)
        for layer, part in zip(self.convs, rest, strict=True):
            last = layer(part + last)
            parts.append(last)
        return self.head(F.relu(x + self.leave(torch.cat(parts, 1))).mean((2, 3)))


BRANCHES.add("Res2Net", Res2Net, IMAGE, "stem.0 enter.0 convs.0.0 convs.1.0 convs.2.0 leave.0", "leave.0")


class Exchange(nn.Module):
    """HRNet: two resolutions, each of which gets the sum of both."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = conv(3, 8), conv(3, 12, stride=2)
        self.up, self.down = conv(12, 8, 1), conv(8, 12, stride=2)
        self.head = nn.Conv2d(20, 4, 1)

    def forward(self, x: Tensor) -> Any:
        fine, coarse = self.fine(x), self.coarse(x)
        fine, coarse = (
            F.relu(fine + F.interpolate(self.up(coarse), scale_factor=2)),
            F.relu(coarse + self.down(fine)),
        )
        wide = F.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=False)
        return self.head(torch.cat([fine, wide], 1))


BRANCHES.add("HRNet", Exchange, IMAGE, "fine.0 coarse.0 up.0 down.0", "head")


class Skips(nn.Module):
    """U-Net: features of the way down beside those of the way up, cropped to their size."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([conv(3, 8), conv(8, 12), conv(12, 16)])
        self.up = nn.ModuleList([nn.ConvTranspose2d(16, 12, 2, stride=2), nn.ConvTranspose2d(12, 8, 2, stride=2)])
        self.merge = nn.ModuleList([conv(24, 12), conv(16, 8)])
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Any:
        kept = []
        for layer in self.down:
            x = layer(x)
            kept.append(x)
            x = F.max_pool2d(x, 2) if len(kept) < 3 else x
        for up, merge, skip in zip(self.up, self.merge, (kept[1], kept[0]), strict=True):
            x = up(x)
            x = merge(torch.cat([skip[:, :, : x.shape[2], : x.shape[3]], x], dim=1))
        return self.out(x)


BRANCHES.add("U-Net", Skips, IMAGE, "down.0.0 down.1.0 down.2.0 up.0 up.1 merge.0.0 merge.1.0", "out")


class Pyramid(nn.Module):
    """A feature pyramid with weighted sums, and pooled features at several sizes side by side (SPP)."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = conv(3, 12), conv(12, 20, stride=2)
        self.lateral = nn.ModuleList([nn.Conv2d(12, 16, 1), nn.Conv2d(20, 16, 1)])
        self.shares = nn.Parameter(torch.ones(2))
        self.smooth, self.head = conv(16, 14), nn.Linear(14 * 5, 4)

    def forward(self, x: Tensor) -> Any:
        low = self.low(x)
        high = self.lateral[1](self.high(low))
        share = self.shares.relu() / (self.shares.relu().sum() + 1e-4)
        mixed = share[0] * self.lateral[0](low) + share[1] * F.interpolate(high, scale_factor=2.0, mode="nearest")
        y = self.smooth(mixed)
        return self.head(torch.cat([F.adaptive_max_pool2d(y, size).flatten(1) for size in (1, 2)], 1))


BRANCHES.add("feature pyramid", Pyramid, IMAGE, "low.0 high.0 lateral.0 lateral.1 smooth.0", "head")


class Atrous(nn.Module):
    """ASPP: dilated branches and the mean of the image, which is spread over all places."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 12)
        self.branches = nn.ModuleList(nn.Conv2d(12, 8, 3, padding=rate, dilation=rate) for rate in (1, 2, 3))
        self.mean = nn.Conv2d(12, 8, 1)
        self.project, self.head = conv(32, 12, 1), nn.Conv2d(12, 3, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        mean = self.mean(F.adaptive_avg_pool2d(x, 1)).expand(-1, -1, *x.shape[2:])
        return self.head(self.project(torch.cat([*(branch(x) for branch in self.branches), mean], 1)))


BRANCHES.add("ASPP", Atrous, IMAGE, "stem.0 branches.0 branches.1 branches.2 mean project.0", "project.0")


class Deep(nn.Module):
    """Dual path (DPN): the first channels are added, the others are appended, by written sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.block, self.head = conv(3, 16), conv(16, 12), conv(12, 22, 1), nn.Conv2d(22, 4, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        y = self.block(self.inner(x))
        return self.head(torch.cat([x[:, :10] + y[:, :10], x[:, 10:], y[:, 16:]], 1))


BRANCHES.add("dual path", Deep, IMAGE, "inner.0")


class Unpooled(nn.Module):
    """SegNet: a decoder puts numbers back to the positions that pooling found in the encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down, self.up, self.last = conv(3, 12), conv(12, 20), conv(20, 20), conv(20, 12)
        self.head = nn.Conv2d(12, 3, 1)

    def forward(self, x: Tensor) -> Any:
        x, first = F.max_pool2d(self.stem(x), 2, return_indices=True)
        x, second = F.max_pool2d(self.down(x), 2, return_indices=True)
        x = self.last(F.max_unpool2d(self.up(x), second, [2, 2]))
        return self.head(F.max_unpool2d(x, first, [2, 2]))


BRANCHES.add("unpooled", Unpooled, IMAGE, "stem.0 down.0 up.0 last.0", "up.0 last.0 head")
