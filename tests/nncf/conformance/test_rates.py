"""Filters, zeros and costs at a rate, as NNCF 2.19 had them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd

from kedro_aat import create_compressed_model
from kedro_aat.compression.filters.controller import FilterPruningController
from kedro_aat.compression.layer_table import LayerTable
from tests.nncf.conformance.example_nets import filled
from tests.nncf.conformance.recorded import TextModel, fill, recorded

RECORDED = recorded("rates")
# One network with each kind of parameters; the rest is slow.
QUICK = [each for each in RECORDED if each["net"] == "cifar_resnet"]
OTHERS = [each for each in RECORDED if each["net"] != "cifar_resnet"]


def name_of(recording: dict[str, Any]) -> str:
    return f"{recording['net']}-{json.dumps(recording['params'])}"


def pruned(recording: dict[str, Any], **keys: Any) -> tuple[FilterPruningController, nn.Module]:
    model, shape = filled(recording["net"])
    section = {"algorithm": "filter_pruning", "params": recording["params"], **keys}
    controller, _ = create_compressed_model(model, {"input_info": {"sample_size": shape}, "compression": section})
    assert isinstance(controller, FilterPruningController)
    return controller, model


def filters_left(controller: FilterPruningController, model: nn.Module, layer: str) -> int:
    frame = controller.statistics().as_frame().set_index("layer")
    axis = 1 if isinstance(model.get_submodule(layer), _ConvTransposeNd) else 0
    return int(str(frame.loc[layer, "shape"]).split("x")[axis])


def check(recording: dict[str, Any]) -> None:
    controller, model = pruned(recording)
    groups = sorted(sorted({member.layer for member in group.producers}) for group in controller.groups)
    assert groups == recording["groups"]
    is_global, has_transposed = recording["params"].get("all_weights", False), recording["net"] == "unet"
    by_macs = "pruning_flops_target" in recording["params"]
    if not is_global and not has_transposed:
        assert controller.maximal_compression_rate == pytest.approx(recording["maximal"], abs=1e-9)
    for situation in recording["situations"]:
        rate = situation["rate"]
        if "error" in situation:
            with pytest.raises(ValueError, match=r"at most 0\.\d{4} can be reached"):
                controller.compression_rate = rate
            continue
        controller.compression_rate = rate
        left = [filters_left(controller, model, group[0]) for group in groups]
        # NNCF can remove a whole layer, after which the model computes nothing.
        assert left == [max(number, 1) for number in situation["left"]], (rate, groups)
        if 0 in situation["left"]:
            continue
        frame = controller.statistics().as_frame()
        if not has_transposed:  # whose operations NNCF counts for each number of the output
            assert frame["macs"].sum() == situation["macs"]
            if by_macs:
                assert controller.compression_rate == pytest.approx(situation["compression_rate"])
        totals = controller.statistics().to_str().splitlines()[0]
        assert f"filters {recording['whole'][2]} -> {situation['filters']}" in totals


@pytest.mark.parametrize("recording", QUICK, ids=name_of)
def test_filters_that_remain_in_each_layer(recording: dict[str, Any]) -> None:
    check(recording)


@pytest.mark.slow
@pytest.mark.parametrize("recording", OTHERS, ids=name_of)
def test_filters_that_remain_in_each_layer_of_the_other_networks(recording: dict[str, Any]) -> None:
    check(recording)


# The example files of NNCF: the network, its target, and the filters of each width that remain.
EXAMPLES: dict[str, tuple[str, dict[str, Any], dict[int, int]]] = {
    "resnet18_cifar10_accuracy_aware": (
        "cifar_resnet",
        {"pruning_target": 0.4, "pruning_steps": 20, "filter_importance": "geometric_median"},
        {16: 16, 32: 24, 64: 40},
    ),
    "resnet18_imagenet_pruning_geometric_median": (
        "resnet18",
        {"pruning_target": 0.4, "pruning_steps": 15, "filter_importance": "geometric_median"},
        {64: 40, 128: 80, 256: 160, 512: 312},
    ),
    "resnet34_imagenet_pruning_geometric_median_kd": (
        "resnet34",
        {"pruning_target": 0.5, "pruning_steps": 20, "filter_importance": "geometric_median"},
        {64: 32, 128: 64, 256: 128, 512: 256},
    ),
}


@pytest.mark.parametrize(
    "name",
    ["resnet18_cifar10_accuracy_aware", *(pytest.param(name, marks=pytest.mark.slow) for name in [*EXAMPLES][1:])],
)
def test_an_example_file_of_nncf_at_the_end_of_its_schedule(name: str) -> None:
    net, params, widths = EXAMPLES[name]
    recording = next(each for each in RECORDED if each["net"] == net)  # with the same groups
    controller, model = pruned({"net": net, "params": {"schedule": "exponential", **params}}, pruning_init=0.1)
    for _ in range(params["pruning_steps"]):
        assert controller.compression_stage().name == "PARTIALLY_COMPRESSED"
        controller.scheduler.epoch_step()
    assert controller.compression_stage().name == "FULLY_COMPRESSED"
    before = {name: module.weight.shape[0] for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    pruned_layers = {layer for group in recording["groups"] for layer in group}
    for layer, width in before.items():
        expected = widths[width] if layer in pruned_layers else width
        assert filters_left(controller, model, layer) == expected


@pytest.mark.parametrize("situation", recorded("sparsity"), ids=lambda each: f"{each['params']}-{each['rate']}")
def test_zeros_of_each_layer(situation: dict[str, Any]) -> None:
    config = {
        "input_info": {"sample_size": [2, 4], "type": "long", "filler": "zeros"},
        "compression": {"algorithm": "magnitude_sparsity", "params": situation["params"]},
    }
    controller, _ = create_compressed_model(fill(TextModel()), config)
    controller.compression_rate = situation["rate"]
    statistics = controller.statistics()
    assert isinstance(statistics, LayerTable)
    frame = statistics.as_frame().set_index("layer")
    zeros = {str(layer).removesuffix(".weight"): int(number) for layer, number in frame["zeros"].items()}
    assert zeros.keys() == situation["zeros"].keys()
    differences = [abs(number - situation["zeros"][layer]) for layer, number in zeros.items()]
    assert sum(differences) <= 1  # NNCF rounds (N - 1) * rate down and adds 1, where N * rate is rounded here
