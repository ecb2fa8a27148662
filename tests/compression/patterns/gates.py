"""Layers whose outputs are split, and the parts multiplied: GLU and its many spellings."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.compression.patterns.registry import IMAGE, ROW, SEQUENCE, SERIES, Patterns, conv

GATES = Patterns()
Gate = Callable[[Tensor, int], Tensor]  # features and the dimension of their channels -> half as many


class Gated(nn.Module):
    """A layer, a gate, a layer, and a classifier."""

    def __init__(self, layer: str, gate: Gate, times: int = 2) -> None:
        super().__init__()
        self.gate, self.dim = gate, -1 if layer == "linear" else 1
        makers: dict[str, Callable[[int, int], nn.Module]] = {
            "linear": nn.Linear,
            "conv1d": lambda i, o: nn.Conv1d(i, o, 3, padding=1),
            "conv2d": lambda i, o: nn.Conv2d(i, o, 3, padding=1),
        }
        make = makers[layer]
        self.wide = make(3 if layer == "conv2d" else 6, 12 * times)
        self.narrow = make(12, 20)
        self.head = nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Any:
        y = self.narrow(self.gate(self.wide(x), self.dim)).relu()
        return self.head(y if self.dim == -1 else y.flatten(2).mean(2))


def _half_slices(x: Tensor, dim: int) -> Tensor:
    half = x.shape[dim] // 2
    return x.narrow(dim, 0, half) * x.narrow(dim, half, half).sigmoid()


def _literal_slices(x: Tensor, dim: int) -> Tensor:
    return x[..., :12] * x[..., 12:].sigmoid() if dim == -1 else x[:, :12] * x[:, 12:].sigmoid()


def _unbound(x: Tensor, dim: int) -> Tensor:
    a, b = torch.unbind(x.unflatten(dim, (2, -1)), dim if dim > 0 else dim - 1)
    return F.gelu(a) * b


def _viewed(x: Tensor, dim: int) -> Tensor:
    parts = x.reshape(*x.shape[:-1], 2, -1) if dim == -1 else x.reshape(x.shape[0], 2, -1, *x.shape[2:])
    return parts.select(dim - 1 if dim < 0 else dim, 0).tanh() * parts.select(dim - 1 if dim < 0 else dim, 1).sigmoid()


def _interleaved(x: Tensor, dim: int) -> Tensor:
    return x[..., ::2] * x[..., 1::2].sigmoid() if dim == -1 else x[:, ::2] * x[:, 1::2].sigmoid()


def _product(parts: tuple[Tensor, ...]) -> Tensor:
    return parts[0] * parts[1]


_SPELLINGS: dict[str, Gate] = {
    "F.glu": F.glu,
    "nn.GLU": lambda x, dim: nn.GLU(dim)(x),
    "chunk, sigmoid": lambda x, dim: x.chunk(2, dim)[0] * x.chunk(2, dim)[1].sigmoid(),
    "SiLU of the first": lambda x, dim: F.silu(x.chunk(2, dim)[0]) * x.chunk(2, dim)[1],
    "GELU of the second": lambda x, dim: x.chunk(2, dim)[0] * F.gelu(x.chunk(2, dim)[1]),
    "tanh and sigmoid": lambda x, dim: x.chunk(2, dim)[0].tanh() * x.chunk(2, dim)[1].sigmoid(),
    "bilinear": lambda x, dim: _product(x.chunk(2, dim)),
    "split by half": lambda x, dim: _product(torch.split(x, x.shape[dim] // 2, dim)),
    "tensor_split": lambda x, dim: _product(torch.tensor_split(x, 2, dim)),
    "narrow": _half_slices,
    "unbind": _unbound,
    "view": _viewed,
    "interleaved": _interleaved,
    "larger half": lambda x, dim: torch.maximum(*x.chunk(2, dim)),
    "sum of halves": lambda x, dim: x.chunk(2, dim)[0] + x.chunk(2, dim)[1].relu(),
}
_INPUTS = {"linear": ROW, "conv1d": SERIES, "conv2d": IMAGE}
# Every spelling with one kind of layer, the commonest ones with all.
_KINDS = ("linear", "conv1d", "conv2d")
for _number, (_name, _gate) in enumerate(_SPELLINGS.items()):
    for _kind in _KINDS if _number < 4 else (_KINDS[_number % 3],):
        GATES.add(f"gate, {_name}, {_kind}", partial(Gated, _kind, _gate), _INPUTS[_kind], "wide narrow")
for _kind in _KINDS:
    GATES.add(
        f"gate, literal slices, {_kind}",
        partial(Gated, _kind, _literal_slices),
        _INPUTS[_kind],
        "narrow",
    )


def _three(x: Tensor, dim: int) -> Tensor:
    a, b, c = x.chunk(3, dim)
    return a * b.sigmoid() + c


def _largest_of_three(x: Tensor, dim: int) -> Tensor:
    return torch.amax(x.unflatten(dim, (-1, 3)), dim if dim < 0 else dim + 1)


GATES.add("gate of three parts", lambda: Gated("conv2d", _three, 3), IMAGE, "wide narrow")
GATES.add("maxout", lambda: Gated("linear", _largest_of_three, 3), ROW, "wide narrow")


class MaxFeatureMap(nn.Module):
    """The larger half after each convolution, as in LightCNN."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(8, 24, 1), nn.Conv2d(12, 16, 3)])
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        for layer in self.layers:
            a, b = torch.chunk(layer(x), 2, dim=1)
            x = torch.max(a, b)
        return self.head(x.mean((2, 3)))


GATES.add("max feature map", MaxFeatureMap, IMAGE, "layers.0 layers.1 layers.2")


class SpatialGate(nn.Module):
    """gMLP: half of the channels, mixed over the steps, gates the other half."""

    def __init__(self, width: int = 32, inner: int = 48, steps: int = 9) -> None:
        super().__init__()
        self.norm, self.first = nn.LayerNorm(width), nn.Linear(width, inner)
        self.gate_norm, self.mix = nn.LayerNorm(inner // 2), nn.Conv1d(steps, steps, 1)
        self.last, self.head = nn.Linear(inner // 2, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Any:
        u, v = F.gelu(self.first(self.norm(x))).chunk(2, dim=-1)
        x = x + self.last(u * self.mix(self.gate_norm(v)))
        return self.head(x.mean(1))


GATES.add("gMLP", SpatialGate, SEQUENCE, "first")


class SimpleGate(nn.Module):
    """NAFNet's block: a depthwise convolution, a product of halves, a scale per channel."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.expand = nn.Conv2d(width, 2 * width, 1)
        self.depthwise = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width)
        self.attend = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, width, 1))
        self.project = nn.Conv2d(width, width, 1)
        self.beta = nn.Parameter(torch.zeros(1, width, 1, 1))
        self.end = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, image: Tensor) -> Any:
        x = self.stem(image)
        y = _product(self.depthwise(self.expand(x)).chunk(2, dim=1))
        y = self.project(y * self.attend(y))
        return self.end(x + y * self.beta) + image


GATES.add("simple gate", SimpleGate, IMAGE, "stem expand depthwise attend.1 project", "end")


class Highway(nn.Module):
    """A share of the input and the rest of the new features, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 24)
        self.new = nn.ModuleList(nn.Linear(24, 24) for _ in range(2))
        self.share = nn.ModuleList(nn.Linear(24, 24) for _ in range(2))
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        for new, share in zip(self.new, self.share, strict=True):
            t = share(x).sigmoid()
            x = new(x).relu() * t + x * (1 - t)
        return self.head(x)


GATES.add("highway", Highway, ROW, "first new.0 new.1 share.0 share.1")


class SwiGLU(nn.Module):
    """Llama's perceptron: two separate layers, RMSNorm, a residual stream."""

    def __init__(self, width: int = 32, inner: int = 40) -> None:
        super().__init__()
        self.enter = nn.Linear(32, width)
        self.norm = nn.RMSNorm(width)
        self.gate_proj, self.up_proj = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.down_proj, self.head = nn.Linear(inner, width, bias=False), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Any:
        x = self.enter(x)
        y = self.norm(x)
        return self.head(x + self.down_proj(F.silu(self.gate_proj(y)) * self.up_proj(y)))


GATES.add("SwiGLU of two layers", SwiGLU, SEQUENCE, "enter gate_proj up_proj down_proj", "gate_proj head")


class UnevenSplit(nn.Module):
    """A quarter of the channels and the rest, by written sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = conv(3, 32), nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(24, 12, 1)
        self.head = nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Any:
        first, rest = torch.split(self.stem(x), [8, 24], dim=1)
        return self.head(self.a(first).relu() * self.b(rest).sigmoid())


GATES.add("uneven split", UnevenSplit, IMAGE, "a b")


class GateOfAnother(nn.Module):
    """One part of the first layer gates all channels of the second, by broadcasting."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.side, self.body = conv(3, 16), nn.Conv2d(16, 1, 1), conv(16, 24)
        self.head = nn.Conv2d(24, 4, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        return self.head(self.body(x) * self.side(x).sigmoid())


GATES.add("gate of one channel", GateOfAnother, IMAGE, "stem.0 body.0")
