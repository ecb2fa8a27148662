"""The architectures of the zoo, with random weights: images of 64 pixels, 24 tokens, small configurations.

Those of `pytorchcv` are as published, at any width; those of `transformers` are built from small configurations.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from benchmarks.zoo.configurations import TRANSFORMERS, pixels
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
                pixels(size),
            )
    for family, model, config, settings, inputs in TRANSFORMERS:
        entries[model] = Entry(
            family,
            "transformers",
            partial(_of_transformers, model, config, settings),
            inputs,
        )
    return entries
