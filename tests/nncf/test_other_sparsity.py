"""`const_sparsity` keeps the zeros of the loaded weights; algorithms that are not here name the section to write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kedro_aat import AdaptiveCompressionTrainingLoop, CompressionStage, NNCFConfig, create_compressed_model
from kedro_aat.adoption.templates import template
from kedro_aat.compression.settings import Composite, MagnitudeSparsity, Quantization
from kedro_aat.errors import ConfigurationError
from kedro_aat.nncf.parameters import parameters_from_nncf
from kedro_aat.testing.training import sgd, train
from tests.nets import SmallNet
from tests.nncf.files import DROP, adaptive, mistakes
from tests.nncf.scripts import QUANTIZATION, outputs
from tests.nncf.test_files import converted

CONST: dict[str, Any] = {"algorithm": "const_sparsity"}
RB = {
    "algorithm": "rb_sparsity",
    "sparsity_init": 0.02,
    "compression_lr_multiplier": 2.0,
    "ignored_scopes": ["{re}.*fc.*"],
    "params": {"schedule": "polynomial", "sparsity_target": 0.6, "sparsity_target_epoch": 8},
}


def sparse_net() -> SmallNet:
    torch.manual_seed(0)
    model = SmallNet()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(torch.rand_like(parameter) > 0.6)
    return model


def zeros(model: nn.Module) -> dict[str, Any]:
    return {name: parameter == 0 for name, parameter in model.named_parameters() if parameter.dim() > 1}


@pytest.mark.parametrize("scopes", [{}, {"ignored_scopes": ["classifier"]}], ids=str)
def test_zeros_of_the_loaded_weights_stay_while_the_others_train(scopes: dict[str, Any]) -> None:
    model = sparse_net()
    before, weights = zeros(model), model.get_parameter("stem.0.weight").detach().clone()
    controller, _ = create_compressed_model(model, {"compression": CONST | scopes})
    assert controller.compression_stage() == CompressionStage.FULLY_COMPRESSED
    for _ in range(2):
        controller.scheduler.epoch_step()
        train(model, sgd(model))
    after = zeros(controller.strip())
    assert not torch.equal(model.get_parameter("stem.0.weight"), weights)
    for name, zero in before.items():
        if name.startswith("classifier") and scopes:
            assert not torch.equal(after[name], zero)
        else:
            assert torch.equal(after[name], zero)


def test_zeros_stay_in_a_quantized_model() -> None:
    model = sparse_net()
    before = zeros(model)
    controller, _ = create_compressed_model(model, {"compression": [CONST, QUANTIZATION]})
    assert isinstance(controller.settings, Quantization)
    assert controller.settings.keep_zeros
    train(model, sgd(model))
    outputs(model)  # a call applies the masks
    for name, zero in before.items():
        assert bool((model.get_parameter(name)[zero] == 0).all())


def test_a_dense_model_has_no_zeros_to_keep(caplog: pytest.LogCaptureFixture) -> None:
    controller, _ = create_compressed_model(SmallNet(), {"compression": CONST})
    assert controller.report().requested_rate == 0
    assert any("const_sparsity keeps 0 zeros" in record.getMessage() for record in caplog.records)


def test_an_adaptive_loop_does_not_move_zeros_that_stay() -> None:
    contents = adaptive(**DROP) | {"compression": CONST}
    controller, _ = create_compressed_model(sparse_net(), contents)
    with pytest.raises(ConfigurationError, match="names no algorithm with a rate"):
        AdaptiveCompressionTrainingLoop(contents, controller, 0.9)


@pytest.mark.parametrize(
    ("section", "name"),
    [
        (RB, "magnitude_sparsity"),
        ({"algorithm": "rb_sparsity"}, "magnitude_sparsity"),
        ({"algorithm": "movement_sparsity", "params": {"warmup_start_epoch": 1, "power": 3}}, "magnitude_sparsity"),
        ({"algorithm": "experimental_quantization", "preset": "mixed"}, "quantization"),
        ({"algorithm": "binarization", "mode": "xnor", "params": {"weights_quant_start_epoch": 3}}, "quantization"),
    ],
    ids=lambda value: value["algorithm"] if isinstance(value, dict) else value,
)
def test_an_algorithm_that_is_not_here_says_what_to_write_instead(section: dict[str, Any], name: str) -> None:
    (mistake,) = mistakes({"compression": [section, {"algorithm": "knowledge_distillation", "type": "mse"}]})
    assert mistake.startswith(f"compression.0: {section['algorithm']} ")
    written = json.loads(mistake.partition("Write instead: ")[2].partition(", but got")[0])
    (algorithm,) = NNCFConfig.from_dict({"compression": written}).parsed.compression
    assert algorithm.algorithm == name


def test_a_file_with_learned_masks_is_converted_with_a_note(tmp_path: Path) -> None:
    _, settings, notes = converted(tmp_path, adaptive(**DROP) | {"compression": [RB, QUANTIZATION]})
    assert isinstance(settings.compression, Composite)
    sparsity = settings.compression.algorithms[0]
    assert isinstance(sparsity, MagnitudeSparsity)
    assert sparsity.ignored_scopes == ("{re}.*fc.*",)
    schedule = sparsity.schedule
    assert (schedule.kind, schedule.initial_rate, schedule.target_rate, schedule.target_epoch) == (
        "polynomial",
        0.02,
        0.6,
        8,
    )
    assert any(note.startswith("rb_sparsity learns its masks") for note in notes)


def test_files_that_keep_zeros_are_converted(tmp_path: Path) -> None:
    _, settings, notes = converted(tmp_path, adaptive(**DROP) | {"compression": [CONST, QUANTIZATION]})
    assert isinstance(settings.compression, Quantization)
    assert settings.compression.keep_zeros
    assert "const_sparsity is keep_zeros of quantization here" in notes
    _, _, notes = converted(tmp_path, adaptive(**DROP) | {"compression": CONST})
    assert any("const_sparsity has no counterpart without quantization" in note for note in notes)


def test_comments_are_read_for_the_conversion_too(tmp_path: Path) -> None:
    text = json.dumps(adaptive(**DROP) | {"compression": {"algorithm": "quantization"}})
    (tmp_path / "config.json").write_text("// budget\n" + text)
    assert "quantization" in parameters_from_nncf(tmp_path / "config.json", template("parameters_aat.yml"))[0]
