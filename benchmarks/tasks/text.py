"""A task on text: which package of Python's standard library a piece of source code is from."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.tasks.images import shuffled
from benchmarks.tasks.series import accuracy, packaged
from benchmarks.tasks.task import Splits, Task

PACKAGES = ("asyncio", "email", "unittest", "xml")
LENGTH = 192  # bytes of a piece
PIECES = 600  # of each package


def source_code(seed: int) -> Splits:
    """Pieces of source code as bytes below 128, (N, LENGTH), the same number from each package."""
    inputs, targets = [], []
    for label, name in enumerate(PACKAGES):
        files = sorted(packaged(name).rglob("*.py"))
        text = re.sub(r"\s+", " ", " ".join(path.read_text(encoding="utf-8") for path in files))
        pieces = torch.frombuffer(bytearray(text, "ascii", "replace"), dtype=torch.uint8).unfold(0, LENGTH, LENGTH)
        chosen = torch.linspace(0, len(pieces) - 1, PIECES).long()
        inputs.append(pieces[chosen].long())
        targets.append(torch.full((PIECES,), label))
    return shuffled(torch.cat(inputs), torch.cat(targets), 1200, 500, seed)


class Attention(nn.Module):
    """Attention of several heads, with one linear layer for queries, keys and values."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj(heads.transpose(1, 2).reshape(batch, length, -1))
        return out


class Layer(nn.Module):
    """Attention and a perceptron, each with a LayerNorm before it and a shortcut around it."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, num_heads)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class ByteTransformer(nn.Module):
    """A transformer whose tokens are eight bytes each, with the mean over tokens before the last layer."""

    def __init__(self, width: int = 40, num_heads: int = 4, num_layers: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(128, 16)
        self.tokens = nn.Conv1d(16, width, 8, stride=8)
        self.positions = nn.Parameter(0.02 * torch.randn(LENGTH // 8, width))
        self.dropout = nn.Dropout(0.3)
        self.layers = nn.Sequential(*(Layer(width, num_heads) for _ in range(num_layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, len(PACKAGES))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.tokens(self.embedding(x).transpose(1, 2)).transpose(1, 2) + self.positions
        out: Tensor = self.head(self.norm(self.layers(self.dropout(tokens)).mean(1)))
        return out


TASKS: tuple[Task, ...] = (
    Task(
        name="text_bytes",
        source="2,400 pieces of code from 4 packages of Python's own library, 1,200 for training, 500 for validation.",
        is_for_choosing=False,
        is_unlimited=False,
        model=ByteTransformer,
        splits=source_code,
        training={  # the learning rate is a fifth of a good one
            "batch_size": 50,
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.0004, "weight_decay": 0.05}},
            "metric": accuracy(len(PACKAGES)),
        },
        budget={"max_relative_drop": 0.02},
        baseline_epochs=60,
        baseline_lr=0.002,
    ),
)
