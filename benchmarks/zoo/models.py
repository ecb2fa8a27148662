"""The architectures of the zoo, with random weights: images of 64 pixels, 24 tokens, small configurations.

Those of `pytorchcv` are as published, at any width; those of `transformers` are built from small configurations.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from kedro_aat.model_inputs import ModelInputs


@dataclass(frozen=True)
class Entry:
    """One architecture.

    Attributes:
        family: What it is a kind of.
        package: Where it comes from.
        make: Makes the model.
        inputs: Draws a batch at random.
    """

    family: str
    package: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], ModelInputs]


# Family: module of pytorchcv.models, function, and if it is not 64 the size of the images.
_IMAGE_MODELS = """
ResNet: resnet resnet18, resnet resnet50, preresnet preresnet18, resneta resneta10, resnetd resnetd50b
ResNet: ibnresnet ibn_resnet50, diracnetv2 diracnet18v2, resnet_cifar resnet20_cifar10 32, wrn_cifar wrn16_10_cifar10 32
ResNeXt: resnext resnext14_32x4d, resnext resnext26_32x4d
SENet: senet senet16, seresnet seresnet18, seresnext seresnext50_32x4d, tresnet tresnet_m
ResNeSt: resnesta resnestabc14
Attention in ResNet: cbamresnet cbam_resnet18, bamresnet bam_resnet18, sknet sknet50
Attention in ResNet: diaresnet_cifar diaresnet20_cifar10 32
PyramidNet: pyramidnet_cifar pyramidnet110_a48_cifar10 32
DenseNet: densenet densenet121, peleenet peleenet, hardnet hardnet39ds, vovnet vovnet27s
DenseNet: condensenet condensenet74_c4_g4
DPN: dpn dpn68
VGG: vgg vgg11 224, alexnet alexnet 224, nin_cifar nin_cifar10 32, darknet darknet_tiny, darknet53 darknet53
Inception: bninception bninception, inceptionv3 inceptionv3 96, inceptionv4 inceptionv4 96
Inception: inceptionresnetv2 inceptionresnetv2 96, xception xception
SqueezeNet: squeezenet squeezenet_v1_1, squeezenet squeezeresnet_v1_1, squeezenext sqnxt23_w1
MobileNet: mobilenet mobilenet_w1, mobilenetv2 mobilenetv2_w1, mobilenetv3 mobilenetv3_small_w1
MobileNet: mobilenetv3 mobilenetv3_large_w1, mnasnet mnasnet_b1, proxylessnas proxylessnas_cpu, fbnet fbnet_cb
EfficientNet: efficientnet efficientnet_b0, efficientnetedge efficientnet_edge_small_b, mixnet mixnet_s
ShuffleNet: shufflenet shufflenet_g3_w1, shufflenetv2 shufflenetv2_w1, shufflenetv2b shufflenetv2b_w1
ShuffleNet: menet menet108_8x1_g3
GhostNet: ghostnet ghostnet
IGCV: igcv3 igcv3_w1
HRNet: hrnet hrnet_w18_small_v1
NASNet: nasnet nasnet_4a1056, darts darts
RegNet: regnet regnetx002, regnet regnety002
DLA: dla dla34, selecsls selecsls42b, fishnet fishnet99, resattnet resattnet56
Segmentation: unet unet_cityscapes 96, cgnet cgnet_cityscapes 96, enet enet_cityscapes 96, erfnet erfnet_cityscapes 96
Segmentation: linknet linknet_cityscapes 96, fastscnn fastscnn_cityscapes 96, lednet lednet_cityscapes 128
Segmentation: segnet segnet_cityscapes 96, dabnet dabnet_cityscapes 96, espnetv2 espnetv2_wd2 96
"""


def _of_pytorchcv(module: str, function: str, size: int) -> nn.Module:
    make = getattr(importlib.import_module(f"pytorchcv.models.{module}"), function)
    for sizes in ({"in_size": (size, size)}, {}):
        try:
            model: nn.Module = make(**sizes)
        except (TypeError, AssertionError):  # some take no size, and some only that of the paper
            continue
        _pool_any_size(model)
        return model
    raise TypeError(f"{function} takes no arguments as expected")


def _pool_any_size(model: nn.Module) -> None:
    """Lets the last pooling take maps of any size; as published it takes those of images of 224 pixels only."""
    for name, module in model.named_modules():
        is_last = name.rpartition(".")[2].startswith("final_pool")
        if isinstance(module, nn.AvgPool2d) and (is_last or module.kernel_size in (7, 10)):
            model.set_submodule(name, nn.AdaptiveAvgPool2d(1))


def _of_transformers(model: str, config: str, settings: dict[str, Any]) -> nn.Module:
    # Each of its modules is imported when it is first asked for. Attention is spelt out by default in `eager`; the
    # other default, scaled_dot_product_attention, is what users get.
    transformers = importlib.import_module("transformers")
    made: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**settings))
    return made


_SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
_IMAGES = {**_SIZES, "image_size": 64, "patch_size": 16}
_TEXT = {**_SIZES, "vocab_size": 200, "max_position_embeddings": 64, "pad_token_id": 0}
_CAUSAL = {**_TEXT, "use_cache": False}
_GROUPED = {**_CAUSAL, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}
_STAGES = {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 48, 64]}


def _pixels(size: int = 64, name: str = "") -> Callable[[], ModelInputs]:
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
_TRANSFORMERS: list[Described] = [
    ("ViT", "ViTForImageClassification", "ViTConfig", _IMAGES, _pixels()),
    ("ViT", "DeiTForImageClassification", "DeiTConfig", _IMAGES, _pixels()),
    ("ViT", "BeitForImageClassification", "BeitConfig", {**_IMAGES, "layer_scale_init_value": 0.1}, _pixels()),
    ("ViT", "Dinov2ForImageClassification", "Dinov2Config", {**_IMAGES, "mlp_ratio": 2}, _pixels()),
    (
        "Swin",
        "SwinForImageClassification",
        "SwinConfig",
        {"image_size": 64, "patch_size": 4, "embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
        _pixels(),
    ),
    (
        "Swin",
        "Swinv2ForImageClassification",
        "Swinv2Config",
        {"image_size": 64, "patch_size": 4, "embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
        _pixels(),
    ),
    ("ConvNeXt", "ConvNextForImageClassification", "ConvNextConfig", {**_STAGES, "image_size": 64}, _pixels()),
    ("ConvNeXt", "ConvNextV2ForImageClassification", "ConvNextV2Config", {**_STAGES, "image_size": 64}, _pixels()),
    (
        "MobileViT",
        "MobileViTForImageClassification",
        "MobileViTConfig",
        {"image_size": 64, "hidden_sizes": [32, 40, 48], "neck_hidden_sizes": [8, 16, 24, 32, 40, 48, 64]},
        _pixels(),
    ),
    (
        "MobileViT",
        "MobileViTV2ForImageClassification",
        "MobileViTV2Config",
        {"image_size": 64, "width_multiplier": 0.5},
        _pixels(),
    ),
    (
        "Segformer",
        "SegformerForImageClassification",
        "SegformerConfig",
        {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 48, 64], "num_attention_heads": [1, 2, 3, 4]},
        _pixels(),
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
        _pixels(),
    ),
    ("PoolFormer", "PoolFormerForImageClassification", "PoolFormerConfig", _STAGES, _pixels()),
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
        _pixels(),
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
        _pixels(),
    ),
    (
        "FocalNet",
        "FocalNetForImageClassification",
        "FocalNetConfig",
        {"image_size": 64, "embed_dim": 24, "depths": [1, 1, 1, 1]},
        _pixels(),
    ),
    ("ResNet", "ResNetForImageClassification", "ResNetConfig", {**_STAGES, "embedding_size": 16}, _pixels()),
    (
        "RegNet",
        "RegNetForImageClassification",
        "RegNetConfig",
        {**_STAGES, "embedding_size": 16, "groups_width": 8},
        _pixels(),
    ),
    (
        "MobileNet",
        "MobileNetV1ForImageClassification",
        "MobileNetV1Config",
        {"image_size": 64, "depth_multiplier": 0.5},
        _pixels(),
    ),
    (
        "MobileNet",
        "MobileNetV2ForImageClassification",
        "MobileNetV2Config",
        {"image_size": 64, "depth_multiplier": 0.5},
        _pixels(),
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


def all_entries() -> dict[str, Entry]:
    """Name -> architecture, those of pytorchcv first."""
    entries: dict[str, Entry] = {}
    for line in _IMAGE_MODELS.strip().splitlines():
        family, names = line.split(": ")
        for described in names.split(", "):
            module, function, *sizes = described.split()
            size = int(sizes[0]) if sizes else 64
            entries[function] = Entry(
                family,
                "pytorchcv",
                partial(_of_pytorchcv, module, function, size),
                _pixels(size),
            )
    for family, model, config, settings, inputs in _TRANSFORMERS:
        entries[model] = Entry(
            family,
            "transformers",
            partial(_of_transformers, model, config, settings),
            inputs,
        )
    return entries
