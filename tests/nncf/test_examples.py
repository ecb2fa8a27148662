"""What the example scripts of NNCF 2.x call beside the loops: statistics, dummy inputs, export, checkpoints."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from kedro_aat import (
    CompressionStage,
    create_compressed_model,
    load_state,
    nncf_model_input,
    nncf_model_output,
    prepare_for_tensorboard,
)
from kedro_aat.compression.controller import ModelController
from kedro_aat.compression.settings import Importance
from kedro_aat.compression.sparsity.importance import LayerScores
from kedro_aat.errors import ConfigurationError, ExportError, ModelError
from kedro_aat.testing.training import sgd, train
from tests.nets import SmallNet
from tests.nncf.conformance.recorded import Res, ramps, with_zeros
from tests.nncf.scripts import DISTILLATION, PRUNING, QUANTIZATION, SPARSITY, outputs
from tests.nncf.test_scopes import created as described

RECORDED = json.loads((Path(__file__).parent / "nncf_statistics.json").read_text())
STATISTICS: list[dict[str, Any]] = RECORDED["statistics"]
ALGORITHMS = {
    *("const_sparsity", "filter_pruning", "magnitude_sparsity"),
    *("movement_sparsity", "quantization", "rb_sparsity"),
}


def attribute(statistics: Any, path: str) -> Any:
    for name in path.split("."):
        statistics = statistics[int(name)] if name.isdigit() else getattr(statistics, name)
    return statistics


@pytest.mark.parametrize("situation", STATISTICS, ids=lambda situation: situation["situation"])
@pytest.mark.parametrize("quickly", [False, True])
def test_statistics_have_the_attributes_that_scripts_read(situation: dict[str, Any], quickly: bool) -> None:
    torch.manual_seed(0)
    model = ramps(Res())
    if "const_sparsity" in situation["names"]:
        with_zeros(model)
    statistics = described({"compression": situation["compression"]}, model).statistics(quickly_collected_only=quickly)
    assert [name for name, _ in statistics] == situation["names"]
    for path, value in situation["values"].items():
        found = attribute(statistics, path)
        if isinstance(value, dict):
            found = {str(key): number for key, number in found.items()}
        assert found == (value if isinstance(value, str | list) else pytest.approx(value, rel=situation.get("rel"))), (
            path
        )
    for name in ALGORITHMS - set(situation["names"]):
        assert getattr(statistics, name) is None
    assert statistics.to_str()


@pytest.mark.parametrize("importance", ["abs", "normed_abs", "lamp"])
@pytest.mark.parametrize("mode", ["global", "local"])
def test_weights_below_the_thresholds_are_zero(importance: Importance, mode: str) -> None:
    params = {"weight_importance": importance, "sparsity_level_setting_mode": mode}
    section = {"algorithm": "magnitude_sparsity", "sparsity_init": 0.5, "params": params}
    model, before = ramps(Res()), ramps(Res())
    figures = described({"compression": section}, model).statistics().magnitude_sparsity
    assert figures is not None
    assert len(figures.thresholds) == 7
    assert len({each.threshold for each in figures.thresholds}) == (1 if mode == "global" else 7)
    for each, layer in zip(figures.thresholds, figures.model_statistics.sparsified_layers_summary, strict=True):
        assert each.name == layer.name
        name = ".".join(re.findall(r"\[([^\]]+)\]", each.name)) + ".weight"
        zero = (model.get_parameter(name) == 0).flatten()
        scores = LayerScores(before.get_parameter(name), importance).all()
        assert zero[scores < each.threshold * (1 - 1e-3)].all()  # sums of squares are rounded
        assert not zero[scores > each.threshold * (1 + 1e-3)].any()


def test_activations_are_counted_once_the_model_was_called() -> None:
    controller = described({"compression": {"algorithm": "quantization"}}, ramps(Res()))
    figures = controller.statistics().quantization
    assert figures is not None
    assert (figures.aq_counter.total_count, figures.num_aq_per_bitwidth) == (0, {})
    controller.model(torch.rand(1, 3, 8, 8))
    figures = controller.statistics().quantization
    assert figures is not None
    counter = figures.aq_counter
    assert counter.total_count == counter.potential_count == counter.num_asymmetric == counter.num_per_tensor > 5
    assert figures.num_aq_per_bitwidth == {8: counter.total_count}
    assert figures.ratio_of_enabled_quantizations == 100
    controller.compression_rate = 0.5
    figures = controller.statistics().quantization
    assert figures is not None
    assert 0 < figures.wq_counter.total_count < figures.wq_counter.potential_count == 7
    assert figures.num_wq_per_bitwidth == {8: figures.wq_counter.total_count}
    assert figures.aq_counter.total_count < figures.aq_counter.potential_count == counter.total_count
    assert 0 < figures.ratio_of_enabled_quantizations < 100


def test_layers_that_lost_filters() -> None:
    section = {"algorithm": "filter_pruning", "pruning_init": 0.5, "params": {"prune_first_conv": True}}
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Conv2d(32, 4, 3))
    figures = described({"compression": section}, model).statistics().filter_pruning
    assert figures is not None
    layers = figures.model_statistics.pruned_layers_summary
    assert [(each.name, each.weight_shape, each.mask_shape, each.filter_pruning_level) for each in layers] == [
        ("Sequential/NNCFConv2d[0]", [16, 3, 3, 3], [16], 0.5),
        ("Sequential/NNCFConv2d[2]", [32, 16, 3, 3], [32], 0.5),
    ]
    printed = figures.to_str()
    assert "target_pruning_level: 0.5" in printed
    assert "Sequential/NNCFConv2d[2], [32, 16, 3, 3], [32], 0.5" in printed


def test_zeros_that_stay_are_named_so_after_a_resume() -> None:
    contents = {"compression": {"algorithm": "const_sparsity"}}
    controller = described(contents, with_zeros(ramps(Res())))
    again, _ = create_compressed_model(Res(), contents, controller.get_compression_state())
    load_state(again.model, controller.model.state_dict(), is_resume=True)
    figures = again.statistics().const_sparsity
    assert figures == controller.statistics().const_sparsity
    assert figures is not None
    assert prepare_for_tensorboard(again.statistics()) == {
        "const_sparsity/sparsity_level_for_model": figures.model_statistics.sparsity_level,
        "const_sparsity/sparsity_level_for_sparsified_layers": figures.model_statistics.sparsity_level_for_layers,
    }


def test_figures_for_tensorboard() -> None:
    config = {"input_info": {"sample_size": [1, 1, 8, 8]}, "compression": [PRUNING, SPARSITY]}
    statistics = create_compressed_model(SmallNet(), config)[0].statistics()
    found = prepare_for_tensorboard(statistics)
    assert statistics.filter_pruning is not None
    assert found["filter_pruning/algo_current_pruning_level"] == statistics.filter_pruning.current_pruning_level
    assert found["magnitude_sparsity/target_sparsity_level"] == 0.1
    assert len(found) == 7


class Container(nn.Module):
    """Takes its images in a list, and a factor by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3)

    def forward(self, images: list[Tensor], scale: Tensor | None = None) -> Tensor:
        features: Tensor = self.second(self.first(torch.cat(images)).relu())
        return features if scale is None else features * scale


def test_a_dummy_forward_finds_inputs_that_have_no_names() -> None:
    class Loose(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3)

        def forward(self, image: Tensor, **factors: Tensor) -> Tensor:
            return self.conv(image) * factors["scale"]  # type: ignore[no-any-return]

    image, scale = torch.ones(1, 1, 6, 6), torch.ones(1)
    config = {"compression": {"algorithm": "magnitude_sparsity"}}
    controller, _ = create_compressed_model(Loose(), config, None, lambda model: model(image, scale=scale))
    assert set(controller.example_input) == {"image", "scale"}  # type: ignore[arg-type]  # a mapping


def test_a_dummy_forward_finds_the_inputs() -> None:
    def wrapped(args: Any, kwargs: Any) -> Any:
        return ([nncf_model_input(image) for image in args[0]],), kwargs

    def dummy_forward(model: nn.Module) -> None:
        args, kwargs = wrapped(([torch.ones(1, 3, 8, 8), torch.ones(1, 3, 8, 8)],), {})
        nncf_model_output(model(*args, **kwargs))

    model = Container().train()
    config = {"compression": {"algorithm": "filter_pruning", "pruning_init": 0.5, "params": {"prune_first_conv": True}}}
    controller, compressed = create_compressed_model(model, config, None, dummy_forward, wrapped)
    assert compressed.training
    assert controller.report().achieved_rate > 0
    (found,) = controller.example_input  # type: ignore[misc]  # a tuple with the list
    assert [image.shape for image in found] == [(1, 3, 8, 8), (1, 3, 8, 8)]


def test_a_dummy_forward_with_keywords_and_one_that_calls_nothing() -> None:
    def dummy_forward(model: nn.Module) -> None:
        model([torch.ones(1, 3, 8, 8)], scale=torch.ones(1))

    config = {"compression": {"algorithm": "magnitude_sparsity"}}
    controller, _ = create_compressed_model(Container(), config, dummy_forward_fn=dummy_forward)
    assert set(controller.example_input) == {"images", "scale"}  # type: ignore[arg-type]  # a mapping
    with pytest.raises(ModelError, match="dummy_forward_fn does not call the model"):
        create_compressed_model(Container(), config, dummy_forward_fn=lambda model: None)


def names_in(path: Path) -> tuple[list[str], list[str]]:
    graph = onnx.load(path).graph
    return [value.name for value in graph.input], [value.name for value in graph.output]


def small() -> ModelController:
    config = {"input_info": {"sample_size": [1, 1, 8, 8]}, "compression": SPARSITY}
    return create_compressed_model(SmallNet(), config)[0]


@pytest.mark.slow
def test_export_with_names(tmp_path: Path) -> None:
    controller, path = small(), tmp_path / "model.onnx"
    controller.export_model(str(path), "onnx", input_names=["image"], output_names=["logits"])
    assert names_in(path) == (["image"], ["logits"])
    with pytest.raises(ModelError, match=r"save_format must be onnx, .* but got 'tf'"):
        controller.export_model(path, save_format="tf")


@pytest.mark.slow
def test_export_in_a_format_and_with_too_many_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    controller, path = small(), tmp_path / "model.onnx"
    controller.export_model(path, save_format="onnx_20")
    assert onnx.load(path).opset_import[0].version == 20
    for old in ("onnx_14", "onnx_11"):
        caplog.clear()
        controller.export_model(path, save_format=old)
        assert onnx.load(path).opset_import[0].version == 18
        assert any(f"save_format {old} has no effect" in record.getMessage() for record in caplog.records)
    with pytest.raises(ExportError, match="input_names"):
        controller.export_model(path, input_names=["one", "two"])


@pytest.mark.slow
def test_export_with_further_arguments(tmp_path: Path) -> None:
    sparse = {"compression": {"algorithm": "magnitude_sparsity"}}
    example = ([torch.ones(1, 3, 8, 8)],)
    controller, _ = create_compressed_model(Container(), sparse, example_input=example)
    scale = torch.ones(1, 8, 4, 4)
    path = tmp_path / "model.onnx"
    controller.export_model(path, input_names=["image", "scale"], model_args=({"scale": scale},))
    assert names_in(path)[0] == ["image", "scale"]


def test_a_checkpoint_of_a_script_resumes(tmp_path: Path) -> None:
    config = {"input_info": {"sample_size": [1, 1, 8, 8]}, "compression": [PRUNING, QUANTIZATION, DISTILLATION]}
    torch.manual_seed(0)
    controller, model = create_compressed_model(SmallNet(), config)
    for _ in range(2):
        controller.scheduler.epoch_step()
        train(model, sgd(model))
    checkpoint = {
        "state_dict": {f"module.{name}": tensor for name, tensor in model.state_dict().items()},
        "compression_state": controller.get_compression_state(),
    }
    torch.save(checkpoint, tmp_path / "last.pth")
    stored = torch.load(tmp_path / "last.pth", weights_only=True)
    torch.manual_seed(1)
    again, resumed = create_compressed_model(SmallNet(), config, stored["compression_state"])
    assert load_state(resumed, stored["state_dict"], is_resume=True) == len(checkpoint["state_dict"])
    assert again.report() == controller.report()
    assert torch.equal(outputs(resumed), outputs(model))
    for each in (controller, again):
        each.scheduler.epoch_step()
    assert again.report() == controller.report()
    assert again.compression_stage() == controller.compression_stage() != CompressionStage.UNCOMPRESSED


def test_weights_of_an_uncompressed_model_are_loaded_into_a_compressed_one() -> None:
    torch.manual_seed(0)
    source = SmallNet()
    _, model = create_compressed_model(SmallNet(), {"compression": {"algorithm": "magnitude_sparsity"}})
    state = source.state_dict() | {"classifier.weight": torch.zeros(1), "unknown": torch.zeros(1)}
    assert load_state(model, state) == len(source.state_dict()) - 1
    assert torch.equal(model.get_parameter("stem.0.weight"), source.get_parameter("stem.0.weight"))
    with pytest.raises(RuntimeError, match=r"unknown"):
        load_state(model, state, is_resume=True)
    assert load_state(source, source.state_dict() | {"more": torch.zeros(1)}, True, ["more"]) == len(
        source.state_dict()
    )


def test_a_compression_state_of_nncf_is_refused() -> None:
    state: dict[str, Any] = {"builder_state": {}, "ctrl_state": {}}
    with pytest.raises(ConfigurationError, match="its keys are builder_state, ctrl_state"):
        create_compressed_model(SmallNet(), {"compression": SPARSITY}, state)
