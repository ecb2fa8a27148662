"""Models whose weights are held in int8 and computed in floating point, each with an input."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Text(nn.Module):
    """Embeddings, attention and a head tied to the embeddings: (B, T) int64 -> (B, T, 50)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(50, width, padding_idx=0), nn.Embedding(12, width)
        self.attention, self.norm = nn.MultiheadAttention(width, 4, batch_first=True), nn.LayerNorm(width)
        self.inner, self.outer = nn.Linear(width, 64), nn.Linear(64, width)
        self.head = nn.Linear(width, 50, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        x = x + self.attention(self.norm(x), x, x, need_weights=False)[0]
        logits: Tensor = self.head(x + self.outer(F.gelu(self.inner(x))))
        return logits


class Recurrent(nn.Module):
    """A convolution, then a recurrent layer: (B, 10, 6) -> (B, 3)."""

    def __init__(self, kind: Callable[..., nn.Module], **settings: object) -> None:
        super().__init__()
        self.conv = nn.Conv1d(6, 16, 3, padding=1)
        self.rnn = kind(16, 24, batch_first=True, **settings)
        self.head = nn.Linear(48 if settings.get("bidirectional") else 24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x.transpose(1, 2)).relu().transpose(1, 2)
        logits: Tensor = self.head(self.rnn(x)[0].mean(1))
        return logits


class Decoder(nn.Module):
    """Transposed convolutions with and without groups: (B, 3, 8, 8) -> (B, 2, 16, 16)."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.ConvTranspose2d(8, 8, 2, stride=2, groups=4)
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        mask: Tensor = self.last(self.grouped(self.norm(self.up(self.down(x).relu())).relu()))
        return mask


class Table(nn.Module):
    """Features and category numbers in one table: (B, 7) -> (B, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.category, self.pair = nn.Linear(5, 32), nn.Embedding(1000, 8), nn.Bilinear(8, 8, 32)
        self.last = nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.category(x[:, 5].long()), self.category(x[:, 6].long())
        logits: Tensor = self.last(F.relu(self.first(x[:, :5]) + self.pair(left, right)))
        return logits


class Bags(nn.Module):
    """Means of embeddings, then a cell in a loop: (B, 5) int64 -> (B, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.cell, self.head = nn.EmbeddingBag(100, 24, mode="mean"), nn.GRUCell(24, 24), nn.Linear(24, 3)

    def forward(self, ids: Tensor) -> Tensor:
        bag = state = self.bag(ids)
        for _ in range(3):
            state = self.cell(bag, state)
        logits: Tensor = self.head(state)
        return logits


class Conv1D(nn.Module):
    """A linear layer with a transposed weight, as GPT-2 in transformers has it."""

    def __init__(self, out: int, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(width, out) * 0.1), nn.Parameter(torch.zeros(out))

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:-1], self.weight.shape[-1])
        return torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight).view(shape)


class ReadsAttributes(nn.Module):
    """Forward passes as they are in Hugging Face's models: types, sizes and weights of layers are read."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.mix, self.head = nn.Conv2d(3, 16, 3, stride=2), Conv1D(16, 16), nn.Linear(16, 4)
        self.scaled = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        assert next(self.parameters()).dtype == x.dtype
        side = self.patches.kernel_size[0] // 2
        x = self.patches(F.pad(x.to(self.patches.weight.dtype), (side, side, side, side))).relu()
        x = self.mix(x.flatten(2).transpose(1, 2)).relu().mean(1).view(-1, self.head.in_features)
        x = F.linear(x, self.scaled.weight.t() * 0.5) + self.scaled(x)
        logits: Tensor = self.head(x)
        return logits


def table(size: int = 32) -> Tensor:
    """Five features between -3 and 3, and two category numbers."""
    return torch.cat([torch.randn(size, 5), torch.randint(1000, (size, 2)).float()], 1)


HELD: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "text": (Text, lambda: torch.randint(50, (8, 9))),
    "narrow text": (lambda: Text(8), lambda: torch.randint(50, (8, 9))),
    "GRU": (lambda: Recurrent(nn.GRU), lambda: torch.randn(8, 10, 6)),
    "LSTM in both directions": (lambda: Recurrent(nn.LSTM, bidirectional=True), lambda: torch.randn(8, 10, 6)),
    "decoder": (Decoder, lambda: torch.randn(8, 3, 8, 8)),
    "table": (Table, table),
    "bags": (Bags, lambda: torch.randint(100, (8, 5))),
    "attributes": (ReadsAttributes, lambda: torch.randn(8, 3, 9, 9)),
}
