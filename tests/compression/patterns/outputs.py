"""Several inputs and outputs, layers used twice or never, and forward passes that differ in training."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.compression.patterns.registry import IMAGE, ROW, Patterns, conv, tokens

OUTPUTS = Patterns()


class Auxiliary(nn.Module):
    """A second classifier: used in training only, always, or nowhere in the result."""

    def __init__(self, when: str) -> None:
        super().__init__()
        self.when = when
        self.stem, self.body, self.head = conv(3, 12), conv(12, 16), nn.Linear(16, 4)
        self.aux = nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 4))

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        aux = self.aux(x.mean((2, 3))) if self.training or self.when != "in training" else None
        y = self.head(self.body(x).mean((2, 3)))
        return (y, aux) if self.when == "always" or (self.training and aux is not None) else y


for _when in ("in training", "always", "computed always"):
    OUTPUTS.add(f"second classifier, {_when}", partial(Auxiliary, _when), IMAGE, "stem.0 body.0 aux.0", "head")


class StochasticDepth(nn.Module):
    """Blocks that are skipped at random in training, whole batches or single images."""

    def __init__(self, *, whole: bool) -> None:
        super().__init__()
        self.whole = whole
        self.stem, self.head = conv(3, 16), nn.Linear(16, 4)
        self.blocks = nn.ModuleList(nn.Sequential(conv(16, 12), nn.Conv2d(12, 16, 1)) for _ in range(3))

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        for block in self.blocks:
            if not self.training:
                x = x + 0.8 * block(x)
            elif not self.whole:
                x = x + block(x) * (torch.rand(len(x), 1, 1, 1, device=x.device) < 0.8)
            elif torch.rand(()) < 0.8:
                x = x + block(x)
        return self.head(x.mean((2, 3)))


_BLOCKS = "stem.0 blocks.0.0.0 blocks.0.1 blocks.1.0.0 blocks.1.1 blocks.2.0.0 blocks.2.1"
OUTPUTS.add("blocks skipped at random", lambda: StochasticDepth(whole=True), IMAGE, _BLOCKS, "head")
OUTPUTS.add("images skipped at random", lambda: StochasticDepth(whole=False), IMAGE, _BLOCKS, "head")


@dataclass
class Result:
    """What `Structured` returns.

    Attributes:
        logits: (B, 3).
        features: One map.
    """

    logits: Tensor
    features: tuple[Tensor, ...]


class Structured(nn.Module):
    """Named inputs in, a dictionary, a dataclass or nested tuples out."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.image, self.row, self.mix = conv(3, 12), nn.Linear(6, 12), nn.Linear(24, 20)
        self.head, self.seen = nn.Linear(20, 3), nn.Linear(20, 7)

    def forward(self, image: Tensor, row: Tensor) -> Any:
        y = self.mix(torch.cat([self.image(image).mean((2, 3)), self.row(row).relu()], 1)).relu()
        logits, seen = self.head(y), self.seen(y)
        if self.kind == "dataclass":
            return Result(logits, (seen,))
        return {"logits": logits, "seen": seen} if self.kind == "mapping" else [(logits, seen), seen.relu()]


for _kind in ("mapping", "dataclass", "nested"):
    OUTPUTS.add(
        f"structured, {_kind}",
        partial(Structured, _kind),
        lambda: {"image": torch.randn(4, 3, 8, 8), "row": torch.randn(4, 6)},
        "image.0 row mix",
        "mix head seen",
    )


class Reused(nn.Module):
    """One layer used several times; two images through the same layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.step = conv(3, 12), conv(12, 12)
        self.compare, self.head = nn.Linear(24, 10), nn.Linear(10, 1)

    def _features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(2):
            x = x + self.step(x)
        return x.mean((2, 3))

    def forward(self, left: Tensor, right: Tensor) -> Any:
        a, b = self._features(left), self._features(right)
        return self.head(self.compare(torch.cat([(a - b).abs(), a * b], 1)).relu())


OUTPUTS.add(
    "same layers for two images",
    Reused,
    lambda: (torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8)),
    "stem.0 step.0 compare",
    "compare",
)


class Variational(nn.Module):
    """Mean and spread from the halves of one layer, and a decoder of transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(conv(3, 12, stride=2), conv(12, 16, stride=2), nn.Flatten(), nn.Linear(64, 16))
        self.decode = nn.Linear(8, 64)
        self.up = nn.Sequential(
            nn.ConvTranspose2d(16, 10, 4, 2, 1), nn.BatchNorm2d(10), nn.ReLU(), nn.ConvTranspose2d(10, 3, 4, 2, 1)
        )

    def forward(self, x: Tensor) -> Any:
        mean, spread = self.encode(x).chunk(2, dim=1)
        code = mean + torch.randn_like(mean) * (spread / 2).exp() if self.training else mean
        return self.up(self.decode(code).relu().unflatten(1, (-1, 2, 2))), mean, spread


OUTPUTS.add("variational", Variational, IMAGE, "encode.0.0 encode.1.0 decode up.0", "up.0")


class Tied(nn.Module):
    """The embedding's table is the classifier's as well."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 24)
        self.inner, self.outer = nn.Linear(24, 40), nn.Linear(40, 24)
        self.head = nn.Linear(24, 30, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Any:
        x = self.embedding(tokens)
        return self.head(x + self.outer(self.inner(x).relu()))


OUTPUTS.add("tied table", Tied, tokens(), "embedding inner outer")


class Tables(nn.Module):
    """Columns of numbers and of categories in one table: an embedding for each category beside the numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(5, 6) for _ in range(2))
        self.norm, self.first, self.second = nn.BatchNorm1d(4), nn.Linear(16, 24), nn.Linear(24, 12)
        self.head = nn.Linear(12, 1)

    def forward(self, x: Tensor) -> Any:
        groups = [table(x[:, number].abs().long().clamp(max=4)) for number, table in enumerate(self.tables)]
        x = torch.cat([*groups, self.norm(x[:, 2:])], 1)
        return self.head(self.second(self.first(x).relu()).relu())[:, 0]


OUTPUTS.add("table of categories", Tables, ROW, "tables.0 tables.1 first second", "first")


class Unused(nn.Module):
    """A layer that nothing calls, one that is frozen, and a choice by a size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.never, self.frozen = conv(3, 12), nn.Conv2d(12, 12, 1), nn.Conv2d(12, 16, 1)
        self.frozen.requires_grad_(False)
        self.large, self.small, self.head = conv(16, 10, 5), conv(16, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Any:
        y = self.frozen(self.stem(x)).relu()
        y = self.large(y) if y.shape[-1] > 16 else self.small(y)
        return self.head(y.mean((2, 3)))


OUTPUTS.add("unused and frozen layers", Unused, IMAGE, "stem.0 small.0")


class Normalizing(nn.Module):
    """Normalizes its input with buffers, and returns probabilities at the size of the input."""

    mean: Tensor
    spread: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.rand(1, 3, 1, 1))
        self.register_buffer("spread", 0.5 + torch.rand(1, 3, 1, 1))
        self.layers = nn.Sequential(conv(3, 12), nn.MaxPool2d(2), conv(12, 16), nn.Upsample(scale_factor=2))
        self.head = nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Any:
        scores = self.head(self.layers((x - self.mean) / self.spread))
        return F.interpolate(scores, x.shape[-2:], mode="bilinear").softmax(1)


OUTPUTS.add("normalizing", Normalizing, IMAGE, "layers.0.0 layers.2.0", "head")


class FixedFilters(nn.Module):
    """Its first filters are a buffer, as edges, wavelets and mel scales are."""

    filters: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filters", torch.randn(6, 3, 3, 3))
        self.body, self.head = conv(6, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.body(F.conv2d(x, self.filters, padding=1)).mean((2, 3)))


OUTPUTS.add("filters in a buffer", FixedFilters, IMAGE, "body.0", "head")


class Padded(nn.Module):
    """An encoder that packs a padded batch, of which the mean over what is no padding is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(12, 16)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 24, batch_first=True), 1)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor, is_real: Tensor) -> Any:
        y = self.encoder(self.enter(x), src_key_padding_mask=~is_real)
        return self.head((y * is_real[..., None]).sum(1) / is_real.sum(1, keepdim=True))


OUTPUTS.add(
    "padded encoder",
    Padded,
    lambda: {"x": torch.randn(4, 6, 12), "is_real": torch.arange(6) < torch.tensor([[6], [3], [4], [2]])},
    "enter encoder.layers.0.linear1",
    "head",
)


class Spectral(nn.Module):
    """A Fourier neural operator: complex weights multiply the spectrum of the features."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.beside = nn.Conv1d(2, 8, 1), nn.Conv1d(8, 8, 1)
        self.mixing = nn.Parameter(0.1 * torch.randn(8, 8, 5, dtype=torch.complex64))
        self.inner, self.head = nn.Conv1d(8, 12, 1), nn.Conv1d(12, 3, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.enter(x)
        mixed = torch.einsum("bif,iof->bof", torch.fft.rfft(x)[..., :5], self.mixing)
        return self.head(self.inner(torch.fft.irfft(mixed, n=x.shape[-1]) + self.beside(x)).relu())


OUTPUTS.add("complex weights", Spectral, lambda: torch.randn(4, 2, 16), "inner", "head")
