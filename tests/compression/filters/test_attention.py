"""Attention with fewer heads, and of other widths."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kedro_aat.compression.filters.attention import (
    CutMultiheadAttention,
    packed_weight,
    without_nested_tensors,
)
from kedro_aat.compression.filters.cutting import apply_cut_plan
from kedro_aat.compression.filters.normalization import normalize_over_kept, recognize, set_kept
from tests.compression.filters.pruned import zeroed


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


# --- attention that is cut ---------------------------------------------------------------------------------------

EMBED, HEADS, WIDTH = 16, 4, 4  # of the uncut module; WIDTH is that of a head


def rows_of_heads(heads: list[int], channels: list[int]) -> list[int]:
    return [head * WIDTH + channel for head in heads for channel in channels]


def attention_plan(module: nn.MultiheadAttention, heads: list[int], kept: dict[str, list[int]]) -> list[dict[str, Any]]:
    """Cuts heads and their width (`scores`, `values`), and what the module reads (`inputs`, `k`, `v`) and returns."""
    scores, values = (rows_of_heads(heads, kept.get(part, [*range(WIDTH)])) for part in ("scores", "values"))
    inputs = kept.get("inputs", [*range(EMBED)])
    rows = [[offset * EMBED + row for row in part] for offset, part in enumerate((scores, scores, values))]
    if packed_weight(module) is None:
        plan: list[tuple[str, str, int, list[int]]] = [("", "q", EMBED, scores), ("", "k", EMBED, scores)]
        plan += [("", "v", EMBED, values), ("", "q_inputs", EMBED, inputs)]
        plan += [("", "k_inputs", module.kdim, kept["k"]), ("", "v_inputs", module.vdim, kept["v"])]
        plan += [("", "in_proj_bias:0", 3 * EMBED, [*itertools.chain(*rows)])]
    else:
        plan = [("", "projections", 3 * EMBED, [*itertools.chain(*rows)]), ("", "inputs", EMBED, inputs)]
    plan += [
        ("out_proj", "inputs", EMBED, values),
        ("out_proj", "outputs", EMBED, kept.get("outputs", [*range(EMBED)])),
    ]
    if module.bias_k is not None:
        plan += [("", "bias_k:2", EMBED, scores), ("", "bias_v:2", EMBED, values)]
    cuts = [{"layer": layer, "kind": kind, "size": size, "kept": part} for layer, kind, size, part in plan]
    return [*cuts, {"layer": "", "attribute": "num_heads", "before": HEADS, "after": len(heads)}]


CUTS: dict[str, tuple[list[int], dict[str, list[int]]]] = {
    "heads": ([0, 2], {}),
    "one head": ([1], {}),
    "width of scores": ([0, 1, 2, 3], {"scores": [1, 2]}),
    "width of values": ([0, 1, 2, 3], {"values": [0, 1, 3]}),
    "inputs and outputs": ([0, 1, 2, 3], {"inputs": [0, 3, 4, 8, 11], "outputs": [1, 2]}),
    "everything": ([1, 2], {"scores": [2], "values": [1, 3], "inputs": [0, 5], "outputs": [3, 4, 5]}),
}


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize(
    "options", [{}, {"kdim": 5, "vdim": 7}, {"add_bias_kv": True}, {"add_zero_attn": True}], ids=str
)
@pytest.mark.parametrize(("heads", "kept"), CUTS.values(), ids=CUTS)
def test_cut_attention_equals_attention_with_zeros(
    heads: list[int], kept: dict[str, list[int]], options: dict[str, Any], need_weights: bool
) -> None:
    torch.manual_seed(0)
    model = nn.MultiheadAttention(EMBED, HEADS, batch_first=True, **options).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    kept = {"k": [0, 3, 4], "v": [1, 2, 5], **kept} if "kdim" in options else kept
    plan = attention_plan(model, heads, kept)
    small = apply_cut_plan(copy.deepcopy(model), plan)
    masked = zeroed(model, *(entry for entry in plan if "kind" in entry and "inputs" not in entry["kind"]))
    query, key, value = torch.randn(2, 5, EMBED), torch.randn(2, 6, model.kdim), torch.randn(2, 6, model.vdim)
    inputs = kept.get("inputs", [*range(EMBED)])
    columns = [inputs, kept.get("k", inputs), kept.get("v", inputs)]
    for part, index in zip((query, key, value), columns, strict=True):
        part.index_fill_(-1, torch.tensor([i for i in range(part.shape[-1]) if i not in index], dtype=torch.long), 0.0)
    narrow = [part[..., index] for part, index in zip((query, key, value), columns, strict=True)]
    padding = torch.zeros(2, 6, dtype=torch.bool)
    padding[1, 4:] = True
    causal = nn.Transformer.generate_square_subsequent_mask(6)[:5]
    for masks in ({}, {"key_padding_mask": padding}, {"attn_mask": causal, "is_causal": True}):
        expected = masked(query, key, value, need_weights=need_weights, average_attn_weights=False, **masks)
        out = small(*narrow, need_weights=need_weights, average_attn_weights=False, **masks)
        outputs = kept.get("outputs", [*range(EMBED)])
        torch.testing.assert_close(out[0], expected[0][..., outputs], rtol=1e-4, atol=1e-5)
        if need_weights:
            torch.testing.assert_close(out[1], expected[1][:, heads], rtol=1e-4, atol=1e-5)
    assert small.embed_dim == len(inputs)
    small.train()(*narrow)[0].sum().backward()


@pytest.mark.parametrize("batched", [True, False])
def test_each_head_may_have_a_mask(batched: bool) -> None:
    original, replacement = original_and_replacement()
    x = torch.randn(4, 5, 12) if batched else torch.randn(5, 12)
    mask = torch.randn(12 if batched else 3, 5, 5)
    torch.testing.assert_close(replacement(x, x, x, attn_mask=mask), original(x, x, x, attn_mask=mask))


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("kind", ["heads", "inputs and outputs"])
def test_encoders_run_with_cut_attention(kind: str, norm_first: bool) -> None:
    """In both modes, without gradients, and with padding, for which torch has fused kernels."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(EMBED, HEADS, 16, dropout=0.0, batch_first=True, norm_first=norm_first)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    heads, kept = CUTS[kind]
    width = kept.get("inputs", [*range(EMBED)])
    kept = {"inputs": width, "outputs": width}
    plan: list[dict[str, Any]] = []
    for name in ("layers.0", "layers.1"):
        for entry in attention_plan(layer.self_attn, heads, kept):
            plan.append({**entry, "layer": f"{name}.self_attn.{entry['layer']}".rstrip(".")})
        for child, part in (
            ("norm1", "channels"),
            ("norm2", "channels"),
            ("linear1", "inputs"),
            ("linear2", "outputs"),
        ):
            plan.append({"layer": f"{name}.{child}", "kind": part, "size": EMBED, "kept": width})
    small = apply_cut_plan(copy.deepcopy(model), plan)
    masked = zeroed(model, *(entry for entry in plan if entry.get("kind") not in (None, "inputs")))
    mask = torch.zeros(EMBED)
    mask[width] = 1
    x = torch.randn(2, 5, EMBED) * mask
    for name, module in masked.named_modules():
        if isinstance(module, nn.LayerNorm):
            normalization = recognize(module, x)
            assert normalization is not None, name
            normalize_over_kept(module, normalization)
            set_kept(module, mask)
    without_nested_tensors(masked)
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[1, 3:] = True
    for mode in (True, False):
        for gradients in (True, False):
            with torch.set_grad_enabled(gradients):
                for options in ({}, {"src_key_padding_mask": padding}, {"mask": torch.randn(5, 5)}):
                    out = small.train(mode)(x[..., width], **options)
                    expected = masked.train(mode)(x, **options)
                    assert not expected[..., mask == 0].any()
                    torch.testing.assert_close(out, expected[..., width], rtol=1e-4, atol=1e-5)
