"""Attention in its spellings: fused and separate projections, grouped queries, windows, cross attention, mixers."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.compression.patterns.registry import IMAGE, SEQUENCE, Patterns, numbers, tokens

ATTENTIONS = Patterns()


class Block(nn.Module):
    """Attention and a perceptron on a residual stream: (batch, steps, 32) -> (batch, 3)."""

    def __init__(self, attention: Callable[[], nn.Module], width: int = 32) -> None:
        super().__init__()
        self.enter, self.attention = nn.Linear(32, width), attention()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.inner, self.outer, self.head = nn.Linear(width, 48), nn.Linear(48, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Any:
        x = self.enter(x)
        x = x + self.attention(self.norms[0](x))
        x = x + self.outer(F.gelu(self.inner(self.norms[1](x))))
        return self.head(self.norms[2](x).mean(1))


class FusedByChunk(nn.Module):
    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.n_head, self.size = heads, width // heads
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Any:
        shape = (*x.shape[:2], self.n_head, self.size)
        q, k, v = (part.view(shape).transpose(1, 2) for part in self.c_attn(x).chunk(3, dim=-1))
        return self.c_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class FusedByReshape(nn.Module):
    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Any:
        batch, steps, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, steps, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * self.scale).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, steps, -1))


class SizedByStream(nn.Module):
    """nanoGPT's spelling: heads are as wide as the stream over their number, and are laid together as wide as it."""

    def __init__(self, width: int = 32, n_head: int = 4) -> None:
        super().__init__()
        self.n_head = n_head
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Any:
        batch, steps, width = x.shape
        shape = (batch, steps, self.n_head, width // self.n_head)
        q, k, v = (part.view(shape).transpose(1, 2) for part in self.c_attn(x).chunk(3, dim=-1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).reshape(batch, steps, width))


class Separate(nn.Module):
    """BERT's spelling; with `bias_table`, Swin's or T5's relative positions, one number per head and distance."""

    def __init__(self, width: int = 32, heads: int = 4, *, bias_table: bool = False) -> None:
        super().__init__()
        self.num_attention_heads, self.attention_head_size = heads, width // heads
        self.all_head_size = width
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.dense, self.dropout = nn.Linear(width, width), nn.Dropout(0.1)
        self.table = nn.Embedding(17, heads) if bias_table else None

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.num_attention_heads, self.attention_head_size).permute(0, 2, 1, 3)

    def forward(self, x: Tensor) -> Any:
        q, k, v = self._split(self.query(x)), self._split(self.key(x)), self._split(self.value(x))
        scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(self.attention_head_size)
        if self.table is not None:
            places = torch.arange(x.shape[1], device=x.device)
            scores = scores + self.table(places[:, None] - places[None] + 8).permute(2, 0, 1)
        context = torch.matmul(self.dropout(scores.softmax(-1)), v).permute(0, 2, 1, 3).contiguous()
        return self.dense(context.view(*context.shape[:-2], self.all_head_size))


class ByEinsum(nn.Module):
    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.h = heads
        self.to_q, self.to_kv, self.to_out = (
            nn.Linear(width, width),
            nn.Linear(width, 2 * width),
            nn.Linear(width, width),
        )

    def forward(self, x: Tensor) -> Any:
        q, (k, v) = self.to_q(x), self.to_kv(x).chunk(2, -1)
        q, k, v = (part.unflatten(-1, (self.h, -1)) for part in (q, k, v))
        weights = torch.einsum("bihd,bjhd->bhij", q, k).div(q.shape[-1] ** 0.5).softmax(-1)
        return self.to_out(torch.einsum("bhij,bjhd->bihd", weights, v).flatten(2))


class GroupedQueries(nn.Module):
    """Llama and Mistral: two queries for each key, positions by rotation."""

    def __init__(self, width: int = 32, heads: int = 4, keys: int = 2, *, rotary: bool = True) -> None:
        super().__init__()
        self.heads, self.keys, self.head_dim, self.rotary = heads, keys, width // heads, rotary
        self.q_proj = nn.Linear(width, heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(width, keys * self.head_dim, bias=False)
        self.v_proj = nn.Linear(width, keys * self.head_dim, bias=False)
        self.o_proj = nn.Linear(heads * self.head_dim, width, bias=False)

    def _rotated(self, x: Tensor) -> Tensor:
        half = self.head_dim // 2
        rates = 100.0 ** (-torch.arange(half, device=x.device) / half)
        angles = torch.arange(x.shape[2], device=x.device)[:, None] * rates
        cos, sin = torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)
        return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin

    def forward(self, x: Tensor) -> Any:
        batch, steps, _ = x.shape
        q = self.q_proj(x).view(batch, steps, -1, self.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(batch, steps, -1, self.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(batch, steps, -1, self.head_dim).transpose(1, 2)
        if self.rotary:
            q, k = self._rotated(q), self._rotated(k)
        times = self.heads // self.keys
        k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(batch, steps, -1))


class OneKey(nn.Module):
    """Multi-query attention: all heads read the same keys and values."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.number, self.size = heads, width // heads
        self.q, self.kv, self.o = nn.Linear(width, width), nn.Linear(width, 2 * self.size), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Any:
        q = self.q(x).unflatten(-1, (self.number, -1)).transpose(1, 2)
        k, v = self.kv(x).unsqueeze(1).chunk(2, -1)
        weights = (q @ k.mT / self.size**0.5).softmax(-1)
        return self.o((weights @ v).transpose(1, 2).flatten(2))


class KernelAttention(nn.Module):
    """Linear attention: no softmax over the steps, keys and values first."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Any:
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        q, k = F.elu(q) + 1, F.elu(k) + 1
        y = q @ (k.mT @ v) / (q * k.sum(2, keepdim=True)).sum(-1, keepdim=True)
        return self.o(y.transpose(1, 2).flatten(2))


class TalkingHeads(nn.Module):
    """The scores of all heads are mixed by a small layer, and scaled by one parameter per head."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(heads, heads), nn.Linear(width, width)
        self.log_scale = nn.Parameter(torch.zeros(heads, 1, 1))

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.log_scale.exp()
        weights = self.mix(scores.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class Torchs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mha = nn.MultiheadAttention(32, 4, batch_first=True)

    def forward(self, x: Tensor) -> Any:
        return self.mha(x, x, x, need_weights=False)[0]


_STREAM = "enter inner outer"
_SPELLINGS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "fused, chunk": (FusedByChunk, "attention.c_attn attention.c_proj"),
    "fused, reshape": (FusedByReshape, "attention.qkv attention.proj"),
    "sized by the stream": (SizedByStream, "attention.c_attn attention.c_proj enter outer"),
    "separate": (Separate, "attention.query attention.key attention.value attention.dense"),
    "relative positions": (lambda: Separate(bias_table=True), "attention.query attention.value attention.dense"),
    "einsum": (ByEinsum, "attention.to_q attention.to_kv attention.to_out"),
    "grouped queries": (lambda: GroupedQueries(rotary=False), "attention.q_proj attention.k_proj attention.v_proj"),
    "rotary": (lambda: GroupedQueries(keys=4), "attention.q_proj attention.k_proj attention.v_proj attention.o_proj"),
    "rotary, grouped queries": (GroupedQueries, "attention.v_proj attention.o_proj"),
    "one key": (OneKey, "attention.q attention.o"),
    "linear": (KernelAttention, "attention.v attention.o"),
    "talking heads": (TalkingHeads, "attention.out"),
    "nn.MultiheadAttention": (Torchs, "attention.mha"),
}
for _name, (_make, _cut) in _SPELLINGS.items():
    ATTENTIONS.add(f"attention, {_name}", partial(Block, _make), SEQUENCE, f"{_STREAM} {_cut}", "head")


class Encoder(nn.Module):
    """torch's layers: token numbers in, with learned positions, an encoder or a decoder beside it."""

    def __init__(self, *, decoder: bool) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(30, 32), nn.Parameter(torch.zeros(1, 9, 32))
        self.encoder = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True, norm_first=not decoder)
        self.decoder = nn.TransformerDecoderLayer(32, 4, 48, batch_first=True) if decoder else None
        self.head = nn.Linear(32, 5)

    def forward(self, tokens: Tensor) -> Any:
        x = self.embedding(tokens) + self.position
        y = self.encoder(x)
        return self.head(self.decoder(x, y) if self.decoder else y)


ATTENTIONS.add(
    "encoder layer",
    lambda: Encoder(decoder=False),
    tokens(),
    "embedding encoder.linear1 encoder.linear2 encoder.self_attn",
)
ATTENTIONS.add(
    "decoder layer",
    lambda: Encoder(decoder=True),
    tokens(),
    "embedding encoder.linear1 decoder.linear1 encoder.self_attn decoder.self_attn decoder.multihead_attn",
)


class Cross(nn.Module):
    """Learned queries read a sequence of another width, whose padding is masked."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, 5, 24))
        self.q, self.k, self.v, self.o = nn.Linear(24, 32), nn.Linear(20, 32), nn.Linear(20, 32), nn.Linear(32, 24)
        self.inner, self.head = nn.Linear(24, 40), nn.Linear(40, 3)

    def forward(self, memory: Tensor, keep: Tensor) -> Any:
        q = self.q(self.queries.expand(len(memory), -1, -1)).unflatten(2, (4, 8)).transpose(1, 2)
        k = self.k(memory).unflatten(2, (4, 8)).transpose(1, 2)
        v = self.v(memory).unflatten(2, (4, 8)).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=keep[:, None, None])
        return self.head(self.inner(self.o(y.transpose(1, 2).flatten(2))).relu().mean(1))


ATTENTIONS.add(
    "cross attention",
    Cross,
    lambda: {"memory": torch.randn(4, 7, 20), "keep": torch.rand(4, 7).argsort(1) < 5},
    "o inner",
)


class Windows(nn.Module):
    """Swin: attention within windows of the image, then every second row and column side by side."""

    def __init__(self, width: int = 16, heads: int = 2, window: int = 4) -> None:
        super().__init__()
        self.window = window
        self.patches, self.norm = nn.Conv2d(3, width, 1), nn.LayerNorm(width)
        self.attention = FusedByReshape(width, heads)
        self.merge, self.merge_norm = nn.Linear(4 * width, 2 * width, bias=False), nn.LayerNorm(4 * width)
        self.head = nn.Linear(2 * width, 3)

    def forward(self, x: Tensor) -> Any:
        x = self.patches(x).permute(0, 2, 3, 1)
        batch, height, width, channels = x.shape
        w = self.window
        y = torch.roll(self.norm(x), (-2, -2), (1, 2)).view(batch, height // w, w, width // w, w, channels)
        y = self.attention(y.permute(0, 1, 3, 2, 4, 5).reshape(-1, w * w, channels))
        y = y.view(batch, height // w, width // w, w, w, -1).permute(0, 1, 3, 2, 4, 5)
        x = x + torch.roll(y.reshape(batch, height, width, -1), (2, 2), (1, 2))
        x = torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1)
        return self.head(self.merge(self.merge_norm(x)).mean((1, 2)))


ATTENTIONS.add("windows", Windows, IMAGE, "patches attention.qkv attention.proj merge")


class OverPlaces(nn.Module):
    """Attention between the places of an image by 1x1 convolutions; queries are narrower than values."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.q, self.k = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 8, 1), nn.Conv2d(16, 8, 1)
        self.v, self.head = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 4, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x).relu()
        q, k, v = (layer(x).flatten(2) for layer in (self.q, self.k, self.v))
        weights = torch.bmm(q.transpose(1, 2), k).softmax(-1)
        return self.head(x + self.gamma * torch.bmm(v, weights.transpose(1, 2)).view_as(x))


ATTENTIONS.add("attention over places", OverPlaces, IMAGE, "stem q k v", "head")


class Mixer(nn.Module):
    """MLP-Mixer: perceptrons over the steps and over the features; with `pooled`, PoolFormer's mean instead."""

    def __init__(self, *, pooled: bool) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 24, 2, stride=2)
        self.norms = nn.ModuleList(nn.LayerNorm(24) for _ in range(3))
        self.steps = None if pooled else nn.Sequential(nn.Linear(16, 20), nn.GELU(), nn.Linear(20, 16))
        self.features = nn.Sequential(nn.Linear(24, 40), nn.GELU(), nn.Dropout(0.1), nn.Linear(40, 24))
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Any:
        x = self.patches(x).flatten(2).transpose(1, 2)
        y = self.norms[0](x).transpose(1, 2)
        mixed = self.steps(y) if self.steps is not None else F.avg_pool1d(y, 3, 1, 1, count_include_pad=False) - y
        x = x + mixed.transpose(1, 2)
        return self.head(self.norms[2](x + self.features(self.norms[1](x))).mean(dim=1))


ATTENTIONS.add("mixer", lambda: Mixer(pooled=False), IMAGE, "patches steps.0 features.0 features.3", "head")
ATTENTIONS.add("pooling mixer", lambda: Mixer(pooled=True), IMAGE, "patches features.0 features.3", "head")


class VisionTransformer(nn.Module):
    """A first token of its own, learned positions, and a classifier that reads the first token."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.first = nn.Conv2d(3, 32, 4, stride=4), nn.Parameter(torch.randn(1, 1, 32))
        self.position = nn.Parameter(torch.randn(1, 5, 32))
        self.norm, self.attention, self.last_norm = nn.LayerNorm(32), Separate(), nn.LayerNorm(32)
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Any:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.first.expand(x.shape[0], -1, -1), x), dim=1) + self.position
        x = x + self.attention(self.norm(x))
        return self.head(self.last_norm(x)[:, 0])


ATTENTIONS.add(
    "first token",
    VisionTransformer,
    numbers(3, 8, 8),
    "patches attention.query attention.key attention.value attention.dense",
    "head",
)
