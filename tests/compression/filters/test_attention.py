"""Finding heads, and attention with fewer of them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from kedro_aat.compression.filters.attention import CutMultiheadAttention, heads_of


def original_and_replacement(
    batch_first: bool = True, bias: bool = True
) -> tuple[nn.MultiheadAttention, CutMultiheadAttention]:
    """torch's attention, and a copy that was replaced but keeps all its heads."""
    torch.manual_seed(0)
    original = nn.MultiheadAttention(12, 3, batch_first=batch_first, bias=bias).eval()
    replacement = copy.deepcopy(original)
    CutMultiheadAttention.replace(replacement)
    assert isinstance(replacement, CutMultiheadAttention)
    return original, replacement


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_replacement_with_all_heads_equals_the_original(batch_first: bool, need_weights: bool, bias: bool) -> None:
    original, replacement = original_and_replacement(batch_first, bias)
    query, key = torch.randn(4, 5, 12), torch.randn(4, 7, 12)
    if not batch_first:
        query, key = query.transpose(0, 1), key.transpose(0, 1)
    padding = torch.zeros(4, 7, dtype=torch.bool)
    padding[1, 5:] = True
    hidden = torch.randn(5, 7) > 1
    hidden[:, 0] = False
    for options in (
        {},
        {"key_padding_mask": padding},
        {"attn_mask": hidden},
        {"attn_mask": torch.randn(5, 7), "key_padding_mask": padding.float()},
        {"average_attn_weights": False},
    ):
        expected = original(query, key, key, need_weights=need_weights, **options)
        outputs = replacement(query, key, key, need_weights=need_weights, **options)
        torch.testing.assert_close(outputs[0], expected[0])
        torch.testing.assert_close(outputs[1], expected[1])


@pytest.mark.parametrize("batch_first", [True, False])
def test_batch_dimension_is_optional(batch_first: bool) -> None:
    original, replacement = original_and_replacement(batch_first)
    x: Tensor = torch.randn(5, 12)
    for output, expected in zip(replacement(x, x, x), original(x, x, x), strict=True):
        torch.testing.assert_close(output, expected)


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(3, 3),
        nn.MultiheadAttention(12, 3, kdim=5, vdim=5),
        nn.MultiheadAttention(12, 3, add_bias_kv=True),
        nn.MultiheadAttention(12, 3, add_zero_attn=True),
    ],
    ids=["Linear", "other widths", "bias_kv", "zero_attn"],
)
def test_attention_of_other_forms_has_no_heads_to_cut(module: nn.Module) -> None:
    assert heads_of(module) is None
