"""Filters, zeros and costs at a rate, as NNCF 2.19 had them."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from kedro_aat import create_compressed_model
from kedro_aat.compression.filters.controller import FilterPruningController
from kedro_aat.compression.layer_table import LayerTable
from tests.nncf.conformance.example_nets import Halves, filled
from tests.nncf.conformance.recorded import TextModel, fill, recorded

RECORDED = recorded("rates")
# One network with each kind of parameters, and small ones; the rest is slow.
SMALL = {"cifar_resnet", "shufflenet", "halves"}
QUICK = [each for each in RECORDED if each["net"] in SMALL]
OTHERS = [each for each in RECORDED if each["net"] not in SMALL]


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
    # NNCF counts the operations of transposed convolutions for each number of the output, and takes all that a layer
    # before a split loses from each part: at the rate .75, -159,744 operations are left.
    miscounts = recording["net"] in {"unet", "halves"}
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
        if not miscounts:
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


@pytest.mark.parametrize(("rate", "left"), [(0.3, (32, 16)), (0.5, (16, 8)), (0.8, (16, 8))])
def test_each_layer_of_a_channel_shuffle_keeps_a_multiple_of_eight_filters(rate: float, left: tuple[int, int]) -> None:
    """NNCF leaves these layers whole. The halves that a unit changes are narrower than what it returns."""
    params = {"pruning_target": rate, "prune_first_conv": True}
    controller, model = pruned({"net": "shufflenet", "params": params})
    controller.compression_rate = rate
    found = {name: filters_left(controller, model, name) for name in ("stem.0", "units.0.2.0", "units.1.2.0")}
    assert found == {"stem.0": left[0], "units.0.2.0": left[1], "units.1.2.0": left[1]}
    controller.strip()


def test_a_layer_that_is_split_in_fixed_sizes_stays_whole_and_says_why() -> None:
    class Fixed(Halves):
        def forward(self, x: Tensor) -> Tensor:
            left, right = torch.split(self.wide(self.first(x)), 32, 1)
            return self.last(torch.cat([self.left(left), self.right(right)], 1))  # type: ignore[no-any-return]

    section = {"algorithm": "filter_pruning", "pruning_init": 0.5}
    config = {"input_info": {"sample_size": [1, 3, 16, 16]}, "compression": section}
    controller, model = create_compressed_model(Fixed(), config)
    assert isinstance(controller, FilterPruningController)
    left = {name: filters_left(controller, model, name) for name in ("wide.0", "left.0", "right.0")}
    assert left == {"wide.0": 64, "left.0": 16, "right.0": 24}
    assert controller.not_cut["wide.0"].startswith("the model does not run without it")


def test_parts_of_a_sum_each_keep_a_multiple_of_eight_filters() -> None:
    """A layer that is added to a concatenation loses its share in each part; NNCF leaves all of them whole."""

    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 32, 1)
            self.c, self.out = nn.Conv2d(16, 48, 1), nn.Conv2d(48, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x).relu()
            return self.out(torch.cat([self.a(x), self.b(x)], 1) + self.c(x))  # type: ignore[no-any-return]

    section = {"algorithm": "filter_pruning", "pruning_init": 0.4}
    config = {"input_info": {"sample_size": [1, 3, 16, 16]}, "compression": section}
    controller, model = create_compressed_model(Parts(), config)
    assert isinstance(controller, FilterPruningController)
    assert {name: filters_left(controller, model, name) for name in "abc"} == {"a": 16, "b": 24, "c": 40}


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
