"""Small configurations of the architectures in `transformers`, and inputs for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from kedro_aat.model_inputs import ModelInputs

_SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
_IMAGES = {**_SIZES, "image_size": 64, "patch_size": 16}
_TEXT = {**_SIZES, "vocab_size": 200, "max_position_embeddings": 64, "pad_token_id": 0}
_CAUSAL = {**_TEXT, "use_cache": False}
_GROUPED = {**_CAUSAL, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}
_STAGES = {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 48, 64]}


def pixels(size: int = 64, name: str = "") -> Callable[[], ModelInputs]:
    if name:
        return lambda: {name: torch.randn(2, 3, size, size)}
    return lambda: torch.randn(2, 3, size, size)


def _tokens() -> ModelInputs:
    return torch.randint(3, 200, (2, 24))


def _masked_tokens() -> ModelInputs:
    return {"input_ids": torch.randint(3, 200, (2, 24)), "attention_mask": torch.ones(2, 24, dtype=torch.long)}


def _translation() -> ModelInputs:
    return {"input_ids": torch.randint(3, 200, (2, 24)), "decoder_input_ids": torch.randint(3, 200, (2, 12))}


def _wave() -> ModelInputs:
    return torch.randn(2, 4000)


def _spectrum_and_tokens() -> ModelInputs:
    return {"input_features": torch.randn(2, 16, 64), "decoder_input_ids": torch.randint(3, 200, (2, 8))}


def _spectrum() -> ModelInputs:
    return torch.randn(2, 64, 32)


def _series() -> ModelInputs:
    return torch.randn(2, 32, 3)


def _image_and_text() -> ModelInputs:
    return {"input_ids": torch.randint(3, 200, (2, 16)), "pixel_values": torch.randn(2, 3, 64, 64)}


_SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
Described = tuple[str, str, str, dict[str, Any], Callable[[], ModelInputs]]
TRANSFORMERS: list[Described] = [
    ("ViT", "ViTForImageClassification", "ViTConfig", _IMAGES, pixels()),
    ("ViT", "DeiTForImageClassification", "DeiTConfig", _IMAGES, pixels()),
    ("ViT", "BeitForImageClassification", "BeitConfig", {**_IMAGES, "layer_scale_init_value": 0.1}, pixels()),
    ("ViT", "Dinov2ForImageClassification", "Dinov2Config", {**_IMAGES, "mlp_ratio": 2}, pixels()),
    (
        "Swin",
        "SwinForImageClassification",
        "SwinConfig",
        {"image_size": 64, "patch_size": 4, "embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
        pixels(),
    ),
    (
        "Swin",
        "Swinv2ForImageClassification",
        "Swinv2Config",
        {"image_size": 64, "patch_size": 4, "embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
        pixels(),
    ),
    ("ConvNeXt", "ConvNextForImageClassification", "ConvNextConfig", {**_STAGES, "image_size": 64}, pixels()),
    ("ConvNeXt", "ConvNextV2ForImageClassification", "ConvNextV2Config", {**_STAGES, "image_size": 64}, pixels()),
    (
        "MobileViT",
        "MobileViTForImageClassification",
        "MobileViTConfig",
        {"image_size": 64, "hidden_sizes": [32, 40, 48], "neck_hidden_sizes": [8, 16, 24, 32, 40, 48, 64]},
        pixels(),
    ),
    (
        "MobileViT",
        "MobileViTV2ForImageClassification",
        "MobileViTV2Config",
        {"image_size": 64, "width_multiplier": 0.5},
        pixels(),
    ),
    (
        "Segformer",
        "SegformerForImageClassification",
        "SegformerConfig",
        {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 48, 64], "num_attention_heads": [1, 2, 3, 4]},
        pixels(),
    ),
    (
        "Segformer",
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        {
            "depths": [1, 1, 1, 1],
            "hidden_sizes": [16, 32, 48, 64],
            "num_attention_heads": [1, 2, 3, 4],
            "decoder_hidden_size": 32,
        },
        pixels(),
    ),
    ("PoolFormer", "PoolFormerForImageClassification", "PoolFormerConfig", _STAGES, pixels()),
    (
        "LeViT",
        "LevitForImageClassification",
        "LevitConfig",
        {
            "image_size": 64,
            "hidden_sizes": [32, 48, 64],
            "num_attention_heads": [2, 3, 4],
            "depths": [1, 1, 1],
            "key_dim": [16, 16, 16],
        },
        pixels(),
    ),
    (
        "PVT",
        "PvtForImageClassification",
        "PvtConfig",
        {
            "image_size": 64,
            "depths": [1, 1, 1, 1],
            "hidden_sizes": [16, 32, 48, 64],
            "num_attention_heads": [1, 2, 3, 4],
        },
        pixels(),
    ),
    (
        "FocalNet",
        "FocalNetForImageClassification",
        "FocalNetConfig",
        {"image_size": 64, "embed_dim": 24, "depths": [1, 1, 1, 1]},
        pixels(),
    ),
    ("ResNet", "ResNetForImageClassification", "ResNetConfig", {**_STAGES, "embedding_size": 16}, pixels()),
    (
        "RegNet",
        "RegNetForImageClassification",
        "RegNetConfig",
        {**_STAGES, "embedding_size": 16, "groups_width": 8},
        pixels(),
    ),
    (
        "MobileNet",
        "MobileNetV1ForImageClassification",
        "MobileNetV1Config",
        {"image_size": 64, "depth_multiplier": 0.5},
        pixels(),
    ),
    (
        "MobileNet",
        "MobileNetV2ForImageClassification",
        "MobileNetV2Config",
        {"image_size": 64, "depth_multiplier": 0.5},
        pixels(),
    ),
    ("BERT", "BertForSequenceClassification", "BertConfig", _TEXT, _masked_tokens),
    ("BERT", "RobertaForSequenceClassification", "RobertaConfig", _TEXT, _tokens),
    ("BERT", "ElectraForSequenceClassification", "ElectraConfig", {**_TEXT, "embedding_size": 32}, _tokens),
    ("BERT", "AlbertForSequenceClassification", "AlbertConfig", {**_TEXT, "embedding_size": 32}, _tokens),
    ("BERT", "MPNetForSequenceClassification", "MPNetConfig", _TEXT, _tokens),
    ("BERT", "DebertaV2ForSequenceClassification", "DebertaV2Config", _TEXT, _tokens),
    ("BERT", "BertForTokenClassification", "BertConfig", _TEXT, _tokens),
    (
        "BERT",
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128, "vocab_size": 200, "max_position_embeddings": 64},
        _tokens,
    ),
    (
        "T5",
        "T5ForConditionalGeneration",
        "T5Config",
        {
            "d_model": 64,
            "d_kv": 16,
            "d_ff": 128,
            "num_layers": 2,
            "num_heads": 4,
            "vocab_size": 200,
            "use_cache": False,
        },
        _translation,
    ),
    (
        "BART",
        "BartForConditionalGeneration",
        "BartConfig",
        {
            "d_model": 64,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 128,
            "decoder_ffn_dim": 128,
            "vocab_size": 200,
            "max_position_embeddings": 64,
            "use_cache": False,
        },
        _translation,
    ),
    (
        "GPT",
        "GPT2LMHeadModel",
        "GPT2Config",
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 200, "use_cache": False},
        _tokens,
    ),
    ("GPT", "OPTForCausalLM", "OPTConfig", {**_CAUSAL, "ffn_dim": 128, "word_embed_proj_dim": 64}, _tokens),
    ("GPT", "GPTNeoXForCausalLM", "GPTNeoXConfig", _CAUSAL, _tokens),
    ("Llama", "LlamaForCausalLM", "LlamaConfig", _GROUPED, _tokens),
    ("Llama", "MistralForCausalLM", "MistralConfig", _GROUPED, _tokens),
    ("Llama", "Qwen2ForSequenceClassification", "Qwen2Config", _GROUPED, _tokens),
    ("Llama", "GemmaForCausalLM", "GemmaConfig", {**_GROUPED, "head_dim": 16}, _tokens),
    (
        "Speech",
        "Wav2Vec2ForSequenceClassification",
        "Wav2Vec2Config",
        {
            **_SMALL,
            "conv_dim": [32, 32, 32],
            "conv_stride": [5, 2, 2],
            "conv_kernel": [10, 3, 3],
            "num_feat_extract_layers": 3,
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 4,
            "classifier_proj_size": 32,
        },
        _wave,
    ),
    (
        "Speech",
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        {
            "d_model": 64,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 128,
            "decoder_ffn_dim": 128,
            "vocab_size": 200,
            "num_mel_bins": 16,
            "max_source_positions": 32,
            "max_target_positions": 32,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
            "use_cache": False,
        },
        _spectrum_and_tokens,
    ),
    (
        "Speech",
        "ASTForAudioClassification",
        "ASTConfig",
        {**_SMALL, "max_length": 64, "num_mel_bins": 32, "patch_size": 16},
        _spectrum,
    ),
    (
        "Time series",
        "PatchTSTForPrediction",
        "PatchTSTConfig",
        {
            "context_length": 32,
            "prediction_length": 8,
            "num_input_channels": 3,
            "patch_length": 8,
            "patch_stride": 8,
            "d_model": 64,
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "ffn_dim": 128,
        },
        _series,
    ),
    (
        "CLIP",
        "CLIPModel",
        "CLIPConfig",
        {
            "text_config": {**_SMALL, "vocab_size": 200, "max_position_embeddings": 32, "eos_token_id": 2},
            "vision_config": {**_SMALL, "image_size": 64, "patch_size": 16},
            "projection_dim": 32,
        },
        _image_and_text,
    ),
]
