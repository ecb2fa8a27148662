"""`nn.MultiheadAttention` of any widths, which remains after a cut."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def packed_weight(module: nn.MultiheadAttention) -> Tensor | None:
    """The weight of queries, keys and values together; None if keys or values have another width than queries."""
    return module.in_proj_weight


class CutMultiheadAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` of any widths; created only by `replace`.

    The original has as many queries, keys and values as inputs and outputs, and splits all of them into heads. This one
    has `num_heads` heads of any width, and the shapes of its tensors tell all other numbers. They have the original
    names: `in_proj_weight` (queries + keys + values, inputs), or `q_proj_weight`, `k_proj_weight` and `v_proj_weight`;
    `in_proj_bias`, `bias_k`, `bias_v`; `out_proj.weight` (outputs, values) and `out_proj.bias`.
    """

    _scale: float

    @classmethod
    def replace(cls, module: nn.MultiheadAttention) -> None:
        """Changes the class of an uncut `module` to this one, in place; its tensors do not change."""
        if isinstance(module, cls):
            return
        module.__class__ = cls
        # Masked heads have the original width, so the scores of heads that are cut are scaled as theirs.
        module._scale = module.head_dim**-0.5
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
        """Computes what `nn.MultiheadAttention.forward` does.

        Args:
            query: (B, L, inputs) if `batch_first`, else (L, B, inputs); or (L, inputs).
            key: (B, S, inputs) if `batch_first`, else (S, B, inputs); or (S, inputs).
            value: (B, S, inputs) if `batch_first`, else (S, B, inputs); or (S, inputs).
            key_padding_mask: (B, S), or (S,) without a batch; True for padding, or numbers added to the scores.
            need_weights: Whether to return the attention weights.
            attn_mask: (L, S) or (B * num_heads, L, S); True where attention is not allowed, or numbers added to the
                scores.
            average_attn_weights: Whether to average the attention weights over the remaining heads.
            is_causal: A hint that `attn_mask` is the causal mask.

        Returns:
            The output, (B, L, outputs) or as `query`, and the attention weights, or None if they are not needed.
        """
        is_batched = query.dim() == 3
        batch_dim = 0 if self.batch_first else 1
        if not is_batched:
            query, key, value = (part.unsqueeze(batch_dim) for part in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        if not self.batch_first:
            query, key, value = (part.transpose(0, 1) for part in (query, key, value))
        q, k, v = self._project(query, key, value)
        # Like the original, which believes the hint where it can, so that the kernel makes the mask.
        is_causal = is_causal and key_padding_mask is None and not need_weights
        mask = None if is_causal else self._mask_of_scores(attn_mask, key_padding_mask, q.dtype)
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (q, k, v))  # (B, H, L, D)
        dropout = self.dropout if self.training else 0.0
        attention: Tensor | None = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) * self._scale  # (B, H, L, S)
            attention = (scores if mask is None else scores + mask).softmax(-1)
            attention = F.dropout(attention, dropout, training=self.training)
            heads = attention @ v
            attention = attention.mean(1) if average_attn_weights else attention
        else:
            heads = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal, scale=self._scale)
        out = F.linear(heads.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)
        out = out if self.batch_first else out.transpose(0, 1)
        if not is_batched:
            out, attention = out.squeeze(batch_dim), None if attention is None else attention.squeeze(0)
        return out, attention

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Makes queries (B, L, *), and keys and values (B, S, *), with those that the module adds by itself."""
        packed = packed_weight(self)
        if packed is None:
            weights = [self.q_proj_weight, self.k_proj_weight, self.v_proj_weight]
            widths = [weight.shape[0] for weight in weights]
        else:
            num_values = self.out_proj.weight.shape[1]
            num_keys = (packed.shape[0] - num_values) // 2
            widths = [num_keys, num_keys, num_values]
            weights = list(packed.split(widths))
        biases = [None] * 3 if self.in_proj_bias is None else self.in_proj_bias.split(widths)
        q, k, v = map(F.linear, (query, key, value), weights, biases)
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(k.shape[0], 1, -1)], 1)
            v = torch.cat([v, self.bias_v.expand(v.shape[0], 1, -1)], 1)
        if self.add_zero_attn:
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        return q, k, v

    def _mask_of_scores(self, attn_mask: Tensor | None, padding: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """One mask that is added to the scores, which broadcasts to (B, H, L, S); None if there is no mask."""
        masks = []
        if attn_mask is not None:
            masks.append(attn_mask.unflatten(0, (-1, self.num_heads)) if attn_mask.dim() == 3 else attn_mask)
        if padding is not None:
            masks.append(padding[:, None, None])
        if not masks:
            return None
        numbers = [
            torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -torch.inf) if mask.dtype == torch.bool else mask
            for mask in masks
        ]
        added = (self.bias_k is not None) + self.add_zero_attn  # keys that every query may read
        mask = sum(numbers[1:], start=numbers[0])
        return F.pad(mask, (0, added)) if added else mask


def without_nested_tensors(model: nn.Module) -> None:
    """Lets encoders with other layers than torch's own compute padding too, in place.

    In evaluation mode `nn.TransformerEncoder` packs a padded batch into a nested tensor, which only the fused kernel of
    its layers takes. That kernel knows neither cut heads nor hooks.
    """
    for encoder in model.modules():
        if isinstance(encoder, nn.TransformerEncoder):
            for module in encoder.modules():
                if isinstance(module, CutMultiheadAttention) or module._forward_hooks or module._forward_pre_hooks:
                    encoder.use_nested_tensor = False
