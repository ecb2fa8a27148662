"""Attention whose heads can be cut: how to find the heads of a module, and `nn.MultiheadAttention` with fewer heads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Usual names of the linear layer that makes queries, keys and values together.
_PACKED = ("qkv", "in_proj", "c_attn", "to_qkv")
# Usual names of the three linear layers that make queries, keys and values separately.
_SEPARATE = (
    ("q", "k", "v"),
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("to_q", "to_k", "to_v"),
    ("wq", "wk", "wv"),
)
# Usual names of the linear layer that reads the heads.
_OUTPUT = ("proj", "out_proj", "o_proj", "out", "to_out", "wo", "c_proj")


@dataclass(frozen=True)
class Heads:
    """Where the heads of an attention module are.

    Attributes:
        number: Number of heads.
        dim: Channels per head.
        producers: Name of each child that makes queries, keys or values -> how many of these three it makes. The empty
            name stands for the module itself.
        consumer: Name of the child that reads the heads.
    """

    number: int
    dim: int
    producers: dict[str, int]
    consumer: str


def is_attention(module: nn.Module) -> bool:
    """Whether the module has heads that `heads_of` finds."""
    return heads_of(module) is not None


def heads_of(module: nn.Module) -> Heads | None:
    """Finds the heads of `nn.MultiheadAttention`, or of a module with `num_heads` and linear layers around the heads.

    Such a module has linear layers with one of the usual names for queries, keys and values (`qkv`; `q_proj`,
    `k_proj`, `v_proj`; ...), and one for the output (`proj`, `out_proj`, ...), with the heads side by side in each.
    Names can deceive, so `probing` tests every group of heads before it is used.

    Returns:
        None for a module without heads that can be cut.
    """
    number = getattr(module, "num_heads", None)
    if not isinstance(number, int) or number < 1:
        return None
    if isinstance(module, nn.MultiheadAttention):
        if not (type(module) is nn.MultiheadAttention or isinstance(module, CutMultiheadAttention)):
            return None
        if module.in_proj_weight is None or module.bias_k is not None or module.add_zero_attn:
            return None
        return Heads(number, module.head_dim, {"": 3}, "out_proj")
    linear = {name: child for name, child in module.named_children() if isinstance(child, nn.Linear)}
    consumer = next((name for name in _OUTPUT if name in linear), None)
    if consumer is None:
        return None
    width = linear[consumer].in_features
    producers = {name: 3 for name in _PACKED if name in linear and linear[name].out_features == 3 * width}
    for names in _SEPARATE:
        if all(name in linear and linear[name].out_features == width for name in names):
            producers = producers or dict.fromkeys(names, 1)
    if not producers or width % number:
        return None
    return Heads(number, width // number, dict(list(producers.items())[:3]), consumer)


class CutMultiheadAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` with fewer heads than fit into its width; created only by `replace`.

    The original splits its whole width into heads. This one has `num_heads` heads of `head_dim` channels. Its tensors
    have the original names: `in_proj_weight` (3 * num_heads * head_dim, embed_dim), `in_proj_bias`, `out_proj.weight`
    (embed_dim, num_heads * head_dim) and `out_proj.bias`.
    """

    @classmethod
    def replace(cls, module: nn.MultiheadAttention) -> None:
        """Changes the class of `module` to this one, in place; its tensors do not change."""
        if isinstance(module, cls):
            return
        module.__class__ = cls
        # The fused kernels of encoder layers and of the original support uncut heads only; this disables them.
        module._qkv_same_embed_dim = False

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Computes what `nn.MultiheadAttention.forward` does, except that there are no masks of single heads.

        Args:
            query: (B, L, embed_dim) if `batch_first`, else (L, B, embed_dim); or (L, embed_dim).
            key: (B, S, embed_dim) if `batch_first`, else (S, B, embed_dim); or (S, embed_dim).
            value: (B, S, embed_dim) if `batch_first`, else (S, B, embed_dim); or (S, embed_dim).
            key_padding_mask: (B, S), or (S,) without a batch; True for padding, or numbers added to the scores.
            need_weights: Whether to return the attention weights.
            attn_mask: (L, S); True where attention is not allowed, or numbers added to the scores.
            average_attn_weights: Whether to average the attention weights over the remaining heads.
            is_causal: A hint without effect; only `attn_mask` counts.

        Returns:
            The output, of the shape of `query`, and the attention weights, or None if they are not needed.
        """
        is_batched = query.dim() == 3
        batch_dim = 0 if self.batch_first else 1
        if not is_batched:
            query, key, value = (part.unsqueeze(batch_dim) for part in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        if not self.batch_first:
            query, key, value = (part.transpose(0, 1) for part in (query, key, value))
        weights = self.in_proj_weight.chunk(3)
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(part, weight, bias).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
            for part, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )  # (B, H, L, D)
        mask = _add_masks(attn_mask, None if key_padding_mask is None else key_padding_mask[:, None, None], q.dtype)
        dropout = self.dropout if self.training else 0.0
        attention: Tensor | None = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) / self.head_dim**0.5  # (B, H, L, S)
            attention = (scores if mask is None else scores + mask).softmax(-1)
            attention = F.dropout(attention, dropout, training=self.training)
            heads = attention @ v
            attention = attention.mean(1) if average_attn_weights else attention
        else:
            heads = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        out = F.linear(heads.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)
        out = out if self.batch_first else out.transpose(0, 1)
        if not is_batched:
            out, attention = out.squeeze(batch_dim), None if attention is None else attention.squeeze(0)
        return out, attention


def _add_masks(first: Tensor | None, second: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Combines two masks into one that is added to the scores."""
    masks = [
        torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -torch.inf) if mask.dtype == torch.bool else mask
        for mask in (first, second)
        if mask is not None
    ]
    return sum(masks[1:], start=masks[0]) if masks else None
