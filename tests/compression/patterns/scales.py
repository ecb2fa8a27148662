"""Scales and shifts of channels, and means over them: FiLM, excitation, LayerScale, normalizations of all kinds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.compression.patterns.registry import IMAGE, ROW, Patterns, conv, numbers

SCALES = Patterns()


class Film(nn.Module):
    """Scale and shift of each channel from a second input; with `adain`, after a normalization without weights."""

    def __init__(self, *, adain: bool) -> None:
        super().__init__()
        self.adain = adain
        self.stem, self.body, self.head = conv(3, 12), nn.Conv2d(12, 16, 3, padding=1), nn.Conv2d(16, 4, 1)
        self.hidden, self.side = nn.Linear(6, 10), nn.Linear(10, 32)

    def forward(self, image: Tensor, condition: Tensor) -> Any:
        y = self.body(self.stem(image))
        y = F.instance_norm(y) if self.adain else y
        scale, shift = self.side(self.hidden(condition).relu()).chunk(2, dim=1)
        return self.head(F.relu((1 + scale[..., None, None]) * y + shift[..., None, None]))


for _name, _adain in {"FiLM": False, "AdaIN": True}.items():
    SCALES.add(
        _name,
        partial(Film, adain=_adain),
        lambda: (torch.randn(4, 3, 8, 8), torch.randn(4, 6)),
        "stem.0 body hidden side",
        "side head",
    )


class LayerScale(nn.Module):
    """A plain parameter per channel, before a sum."""

    def __init__(self, *, last: bool) -> None:
        super().__init__()
        self.last = last
        self.stem, self.body, self.head = conv(3, 16), conv(16, 16), nn.Conv2d(16, 4, 1)
        self.gamma = nn.Parameter(0.1 * torch.ones(16) if last else 0.1 * torch.ones(16, 1, 1))

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        if self.last:
            x = x.permute(0, 2, 3, 1) + self.gamma * self.body(x).permute(0, 2, 3, 1)
            x = x.permute(0, 3, 1, 2)
        else:
            x = x + self.gamma * self.body(x)
        return self.head(x)


SCALES.add("LayerScale", lambda: LayerScale(last=False), IMAGE, "stem.0 body.0", "head")
SCALES.add("LayerScale, channels last", lambda: LayerScale(last=True), IMAGE, "stem.0 body.0", "head")


class AffineResidual(nn.Module):
    """Bias and scale as plain parameters around a layer, and one learned number for the branch (ReZero)."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.inner, self.outer, self.head = (
            nn.Linear(i, o) for i, o in ((6, 24), (24, 30), (30, 24), (24, 3))
        )
        self.alpha, self.beta = nn.Parameter(torch.ones(24)), nn.Parameter(torch.zeros(24))
        self.share = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Any:
        x = self.enter(x)
        x = x + self.share * self.outer(self.inner(self.alpha * x + self.beta).relu())
        return self.head(x)


SCALES.add("affine residual", AffineResidual, ROW, "enter inner outer", "head")


class Block(nn.Module):
    """A residual block with some treatment of the features before the sum."""

    def __init__(self, treatment: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.stem, self.inner, self.outer = conv(3, 16), conv(16, 20), nn.Conv2d(20, 16, 3, padding=1)
        self.treatment, self.head = treatment(), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        return self.head(F.relu(x + self.treatment(self.outer(self.inner(x)))))


class Excitation(nn.Module):
    """Squeeze-and-excitation, its last activation a clamp."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(width, 6, 1), nn.Conv2d(6, width, 1)

    def forward(self, x: Tensor) -> Any:
        return x * torch.clamp(self.up(F.silu(self.down(F.adaptive_avg_pool2d(x, 1)))) / 6 + 0.5, 0, 1)


class NeighborGate(nn.Module):
    """ECA: a convolution over the channels themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.over_channels = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Any:
        gate = self.over_channels(x.mean((2, 3)).unsqueeze(1)).squeeze(1).sigmoid()
        return x * gate[..., None, None]


class ChannelGate(nn.Module):
    """CBAM: one perceptron for the mean and for the maximum of each channel."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Flatten(), nn.Linear(width, 6), nn.ReLU(), nn.Linear(6, width))

    def forward(self, x: Tensor) -> Any:
        gate = self.mlp(F.adaptive_avg_pool2d(x, 1)) + self.mlp(F.adaptive_max_pool2d(x, 1))
        return x * gate.sigmoid()[..., None, None].expand_as(x)


class PlaceGate(nn.Module):
    """CBAM: the mean and the maximum over the channels of each place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Any:
        return x * self.conv(torch.cat([x.mean(1, keepdim=True), x.max(dim=1, keepdim=True)[0]], 1)).sigmoid()


class BothGates(nn.Module):
    """BAM: a vector of channels plus a map of places."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.channels = nn.Sequential(nn.Linear(width, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, width))
        self.places = nn.Sequential(conv(width, 6, 1), nn.Conv2d(6, 1, 1))

    def forward(self, x: Tensor) -> Any:
        gate = self.channels(x.mean((2, 3))).unsqueeze(2).unsqueeze(3).expand_as(x) + self.places(x)
        return x * (1 + gate.sigmoid())


class ContextGate(nn.Module):
    """GCNet: features summed with a softmax over places, added to each place."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.where = nn.Conv2d(width, 1, 1)
        self.transform = nn.Sequential(
            nn.Conv2d(width, 8, 1), nn.LayerNorm([8, 1, 1]), nn.ReLU(), nn.Conv2d(8, width, 1)
        )

    def forward(self, x: Tensor) -> Any:
        weights = self.where(x).flatten(2).softmax(2)  # (B, 1, HW)
        context = torch.matmul(x.flatten(2), weights.transpose(1, 2)).unsqueeze(-1)
        return x + self.transform(context)


class CoordinateGate(nn.Module):
    """Means over rows and over columns, through one layer together."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.joint, self.rows, self.columns = conv(width, 8, 1), nn.Conv2d(8, width, 1), nn.Conv2d(8, width, 1)

    def forward(self, x: Tensor) -> Any:
        height = x.shape[2]
        y = self.joint(torch.cat([x.mean(3, keepdim=True), x.mean(2, keepdim=True).transpose(2, 3)], dim=2))
        rows, columns = y[:, :, :height], y[:, :, height:].transpose(2, 3)
        return x * self.rows(rows).sigmoid() * self.columns(columns).sigmoid()


class ResponseNorm(nn.Module):
    """ConvNeXtV2: each channel's norm relative to the mean of all norms."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.zeros(1, width, 1, 1)), nn.Parameter(torch.zeros(1, width, 1, 1))

    def forward(self, x: Tensor) -> Any:
        size = x.norm(p=2, dim=(2, 3), keepdim=True)
        return self.gamma * (x * size / (size.mean(1, keepdim=True) + 1e-6)) + self.beta + x


class Function(nn.Module):
    """A function without weights."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


class OwnLayerNorm(nn.Module):
    """A normalization over the channels, spelt out."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Any:
        center = x.mean(1, keepdim=True)
        spread = (x - center).pow(2).mean(1, keepdim=True)
        return (x - center) / torch.sqrt(spread + 1e-6) * self.weight[:, None, None] + self.bias[:, None, None]


def _channels_last(x: Tensor) -> Tensor:
    return F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2]).permute(0, 3, 1, 2)


_ALL = "stem.0 inner.0 outer"
_TREATMENTS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "excitation": (Excitation, f"{_ALL} treatment.down treatment.up"),
    "ECA": (NeighborGate, "inner.0"),
    "CBAM, channels": (ChannelGate, f"{_ALL} treatment.mlp.1 treatment.mlp.3"),
    "CBAM, places": (PlaceGate, "inner.0"),
    "BAM": (BothGates, f"{_ALL} treatment.channels.0 treatment.channels.3 treatment.places.0.0"),
    "GCNet": (ContextGate, f"{_ALL} treatment.transform.3"),
    "coordinate attention": (CoordinateGate, f"{_ALL} treatment.joint.0 treatment.rows treatment.columns"),
    "GRN": (ResponseNorm, "inner.0"),
    "own LayerNorm": (OwnLayerNorm, "inner.0"),
    "F.layer_norm": (lambda: Function(_channels_last), "inner.0"),
    "GroupNorm of one group": (lambda: nn.GroupNorm(1, 16), _ALL),
    "GroupNorm of four": (lambda: nn.GroupNorm(4, 16), _ALL),
    "InstanceNorm": (lambda: nn.InstanceNorm2d(16), _ALL),
    "BatchNorm without weights": (lambda: nn.BatchNorm2d(16, affine=False), "inner.0"),
    "LocalResponseNorm": (lambda: nn.LocalResponseNorm(3), "inner.0"),
    "unit length": (lambda: Function(lambda x: F.normalize(x, dim=1)), _ALL),
    "softmax over channels": (lambda: Function(lambda x: x.softmax(1)), "inner.0"),
    "minus the mean": (lambda: Function(lambda x: x - x.mean(1, keepdim=True)), "inner.0"),
    "sums of the channels before": (lambda: Function(lambda x: x.cumsum(1)), "inner.0"),
    "sorted channels": (lambda: Function(lambda x: x.sort(1)[0]), "inner.0"),
    "PReLU per channel": (lambda: nn.PReLU(16), _ALL),
    "exponential": (lambda: Function(lambda x: torch.exp(-x * x)), "inner.0"),
    "dropout of channels": (lambda: nn.Dropout2d(0.3), _ALL),
}
for _name, (_make, _cut) in _TREATMENTS.items():
    SCALES.add(_name, partial(Block, _make), IMAGE, _cut)


class Reduced(nn.Module):
    """All channels of a place become one number, or all pairs of channels one vector."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.stem, self.body, self.last = conv(3, 16), conv(16, 12), nn.Conv2d(12, 12, 1)
        self.head = nn.Linear(12 * 12 if way == "pairs" else 64, 4)

    def forward(self, x: Tensor) -> Any:
        x = self.last(self.body(self.stem(x)))
        if self.way == "pairs":  # bilinear pooling
            y = x.flatten(2)
            return self.head(torch.bmm(y, y.transpose(1, 2)).flatten(1))
        if self.way == "norm":
            return self.head(x.norm(dim=1).flatten(1))
        functions: dict[str, Callable[[Tensor], Tensor]] = {
            "sum": lambda x: x.sum(1),
            "mean": lambda x: x.mean(dim=1),
            "maximum": lambda x: x.amax(1),
            "einsum": lambda x: torch.einsum("bchw,bchw->bhw", x, x),
        }
        return self.head(functions[self.way](x).flatten(1))


for _way, _cut in {
    "sum": "stem.0 body.0 last",
    "norm": "stem.0 body.0 last",
    "einsum": "stem.0 body.0 last",
    "mean": "stem.0 body.0",
    "maximum": "stem.0 body.0",
    "pairs": "stem.0 body.0",
}.items():
    SCALES.add(f"channels to one, {_way}", partial(Reduced, _way), IMAGE, _cut)


class Normed(nn.Module):
    """A perceptron with normalizations of its width, and a residual stream."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(6, 32), norm(32), nn.Linear(32, 24)
        self.inner_norm, self.outer, self.last_norm = norm(24), nn.Linear(24, 32), norm(32)
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Any:
        x = F.gelu(self.first(x))
        x = x + self.outer(F.gelu(self.inner_norm(self.second(self.norm(x)))))
        return self.head(self.last_norm(x))


_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "LayerNorm": nn.LayerNorm,
    "RMSNorm": nn.RMSNorm,
    "LayerNorm without weights": lambda n: nn.LayerNorm(n, elementwise_affine=False),
    "GroupNorm": lambda n: nn.GroupNorm(4, n),
}
for _name, _norm in _NORMS.items():
    SCALES.add(f"{_name} of a width", partial(Normed, _norm), ROW, "first second outer", "head")


class Standardized(nn.Conv2d):
    """A convolution whose filters have mean 0 and variance 1 (weight standardization)."""

    def forward(self, x: Tensor) -> Tensor:
        spread, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True)
        weight = (self.weight - mean) * torch.rsqrt(spread + 1e-5)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class StandardizedNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.body = Standardized(3, 16, 3, padding=1), nn.GroupNorm(4, 16), conv(16, 12)
        self.last, self.head = Standardized(12, 12, 3, padding=1), nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.last(self.body(F.relu(self.norm(self.stem(x))))).relu())


SCALES.add("weight standardization", StandardizedNet, IMAGE, "stem last")


class DynamicConvolution(nn.Module):
    """A mixture of kernels whose shares depend on the image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shares = conv(3, 8), nn.Linear(8, 3)
        self.kernels = nn.Parameter(torch.randn(3, 12, 8, 3, 3) / 8)
        self.after, self.head = conv(12, 10), nn.Conv2d(10, 4, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        shares = self.shares(x.mean((0, 2, 3))).softmax(0)
        kernel = torch.einsum("k,koihw->oihw", shares, self.kernels)
        return self.head(self.after(F.conv2d(x, kernel, padding=1)))


SCALES.add("dynamic convolution", DynamicConvolution, numbers(3, 8, 8), "after.0")
