"""Files of NNCF 2.x: comments, every key of its schema, and their translation to parameters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kedro_aat import AdaptiveCompressionTrainingLoop as AdaptiveLoop
from kedro_aat import (
    CompressionStage,
    EarlyExitCompressionTrainingLoop,
    NNCFConfig,
    create_compressed_model,
    register_default_init_args,
)
from kedro_aat.adoption.templates import template
from kedro_aat.budget import Outcome
from kedro_aat.compression.settings import Composite, FilterPruning, KnowledgeDistillation
from kedro_aat.config import AatSettings
from kedro_aat.errors import ConfigurationError, ModelError
from kedro_aat.nncf.parameters import parameters_from_nncf
from tests.nets import SmallNet, images
from tests.nncf.files import DROP, adaptive, early_exit

SITUATIONS: dict[str, Any] = json.loads((Path(__file__).parent / "nncf_files.json").read_text())

COMMENTED = """// A configuration with comments.
{
    "log_dir": "https://example.com/a//b", // two slashes in a text are no comment
    /* several
       lines */
    "compression": {
        "algorithm": "magnitude_sparsity",
        "params": {"multistep_steps": [5, 10,], "sparsity_target": 0.5 /* of all weights */,},
    },
}
"""


def test_comments_and_trailing_commas_are_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(COMMENTED)
    config = NNCFConfig.from_json(path)
    assert config["log_dir"] == "https://example.com/a//b"
    assert config["compression"]["params"] == {"multistep_steps": [5, 10], "sparsity_target": 0.5}


@pytest.mark.parametrize("situation", SITUATIONS["keys"], ids=lambda situation: situation["key"])
def test_every_key_of_the_schema_is_known(situation: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    NNCFConfig.from_dict(situation["file"])
    warned = " ".join(record.getMessage() for record in caplog.records)
    if situation["here"] == "honored":
        assert not warned
    else:
        assert situation["key"].rpartition(".")[2] in warned


def test_keys_have_the_names_of_the_first_versions_of_nncf_2(caplog: pytest.LogCaptureFixture) -> None:
    now = {
        "maximal_relative_accuracy_degradation": 1.0,
        "initial_compression_rate_step": 0.2,
        "compression_rate_step_reduction_factor": 0.6,
    }
    former = dict(
        zip(
            ("maximal_accuracy_degradation", "compression_rate_step", "step_reduction_factor"),
            now.values(),
            strict=True,
        )
    )
    assert NNCFConfig.from_dict(adaptive(**former)).parsed == NNCFConfig.from_dict(adaptive(**now)).parsed
    with pytest.raises(ConfigurationError, match="maximal_accuracy_degradation: unknown key"):
        NNCFConfig.from_dict(adaptive(**now, maximal_accuracy_degradation=2.0))
    quantization = {"algorithm": "quantization", "disable_saturation_fix": True}
    (section,) = NNCFConfig.from_dict({"compression": quantization}).parsed.compression
    assert not section.to_settings().overflow_fix  # type: ignore[union-attr]  # it is quantization
    assert not caplog.records
    quantization["activations"] = {"linked_quantizer_scopes": [["Net/a", "Net/b"]]}
    NNCFConfig.from_dict({"compression": quantization})
    assert "activations.linked_quantizer_scopes has no effect" in caplog.text


@pytest.mark.parametrize("compression", [None, [], {"algorithm": "knowledge_distillation", "type": "mse"}], ids=str)
def test_a_file_without_a_rate_leaves_the_model_as_it_is(compression: Any) -> None:
    contents = {"input_info": {"sample_size": [1, 1, 8, 8]}, **early_exit(maximal_total_epochs=2)}
    contents |= {} if compression is None else {"compression": compression}
    torch.manual_seed(0)
    model = SmallNet()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    controller, compressed = create_compressed_model(model, contents)
    assert compressed is model
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    expected = CompressionStage.FULLY_COMPRESSED if compression else CompressionStage.UNCOMPRESSED
    assert controller.compression_stage() == expected
    assert controller.compression_rate == 0.0
    assert controller.statistics().to_str() == ""
    with pytest.raises(ModelError, match="names no algorithm with a rate"):
        controller.compression_rate = 0.5
    model.train()
    with torch.no_grad():
        model.get_parameter("classifier.weight").mul_(2.0)
    model(images(4, seed=0)["inputs"])
    assert bool(controller.loss() > 0) == bool(compression)
    state = json.loads(json.dumps(controller.get_compression_state()))
    again, _ = create_compressed_model(SmallNet(), contents, compression_state=state)
    assert again.compression_stage() == expected
    assert set(controller.strip().state_dict()) == set(before)


def test_an_early_exit_with_distillation_alone_trains_until_it_is_within_budget() -> None:
    contents = early_exit(maximal_total_epochs=4)
    contents["compression"] = {"algorithm": "knowledge_distillation", "type": "softmax"}
    controller, model = create_compressed_model(SmallNet(), contents)
    metrics = iter([0.5, 0.5, 0.9, 0.9])
    loop = EarlyExitCompressionTrainingLoop(contents, controller, 0.9, verbose=False, dump_checkpoints=False)
    loop.run(
        model,
        lambda controller, model, epoch, optimizer, lr_scheduler: None,
        lambda model, epoch=0: next(metrics),
        lambda: (torch.optim.SGD(model.parameters(), 0.1), None),
    )
    assert [record.metric for record in loop.history] == [0.5, 0.5, 0.9]
    assert loop.outcome == Outcome.WITHIN_BUDGET


def test_an_adaptive_loop_needs_a_rate() -> None:
    controller, _ = create_compressed_model(SmallNet(), adaptive(**DROP))
    with pytest.raises(ConfigurationError, match="names no algorithm with a rate"):
        AdaptiveLoop(adaptive(**DROP), controller, 0.9)


def test_without_input_info_the_first_registered_batch_is_the_example() -> None:
    config = NNCFConfig.from_dict({"compression": {"algorithm": "filter_pruning"}})
    data = images(8, seed=0)
    register_default_init_args(config, [(data["inputs"], data["targets"])], nn.CrossEntropyLoss())
    controller, _ = create_compressed_model(SmallNet(), config)
    assert controller.example_input is not None
    assert torch.equal(controller.example_input, data["inputs"])


def sampled(situations: list[dict[str, Any]]) -> list[Any]:
    """All situations, of which the default tests take every tenth."""
    slow = pytest.mark.slow
    return [
        pytest.param(each, id=each["key"], marks=() if number % 10 == 0 else slow)
        for number, each in enumerate(situations)
    ]


def converted(folder: Path, contents: dict[str, Any]) -> tuple[str, AatSettings, list[str]]:
    from omegaconf import OmegaConf

    (folder / "config.json").write_text(json.dumps(contents))
    text, notes = parameters_from_nncf(folder / "config.json", template("parameters_aat.yml"))
    plain = OmegaConf.to_container(OmegaConf.create(text), resolve=True)
    assert isinstance(plain, dict)
    for note in notes:
        assert note in " ".join(text.replace("\n#  ", " ").split())
    return text, AatSettings.model_validate(plain["aat"]), notes


def test_frontier_means_the_same_in_a_file_and_in_a_script(tmp_path: Path) -> None:
    params = {"params": {"search": {"kind": "frontier"}, "maximal_absolute_accuracy_degradation": 1.0}}
    contents = {
        "accuracy_aware_training": {"mode": "adaptive_compression_level", **params},
        "input_info": {"sample_size": [1, 1, 8, 8]},
        "compression": {"algorithm": "filter_pruning", "params": {"prune_first_conv": True}},
    }
    _, settings, _ = converted(tmp_path, contents)
    controller, _ = create_compressed_model(SmallNet(), contents)
    assert isinstance(settings.compression, FilterPruning)
    made = controller.settings
    keys = ("rate_of", "rate_meaning", "round_to", "schedule")
    assert [getattr(settings.compression, key) for key in keys] == [getattr(made, key) for key in keys]


@pytest.mark.parametrize("situation", sampled(SITUATIONS["keys"]))
def test_every_file_with_a_budget_is_converted(situation: dict[str, Any], tmp_path: Path) -> None:
    contents = adaptive(**DROP) | situation["file"]
    _, _, notes = converted(tmp_path, contents)
    if situation["here"] == "warned":
        assert any(situation["key"].rpartition(".")[2] in note for note in notes)


def test_a_file_that_compresses_nothing_is_converted_with_the_default(tmp_path: Path) -> None:
    _, settings, notes = converted(tmp_path, adaptive(**DROP))
    assert isinstance(settings.compression, FilterPruning)
    assert any("names no algorithm that has a rate" in note for note in notes)
    alone = {"compression": {"algorithm": "knowledge_distillation", "type": "mse", "scale": 3.0}}
    _, settings, notes = converted(tmp_path, adaptive(**DROP) | alone)
    assert isinstance(settings.compression, Composite)
    assert settings.compression.distillation == KnowledgeDistillation(type="mse", scale=3.0, nncf_loss=True)
    assert any("names no algorithm that has a rate" in note for note in notes)


def test_a_file_without_a_budget_is_told_the_section_to_add(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"compression": {"algorithm": "quantization"}}))
    with pytest.raises(ConfigurationError) as caught:
        parameters_from_nncf(tmp_path / "config.json", template("parameters_aat.yml"))
    section = "{" + str(caught.value).partition("of the metric: ")[2] + "}"
    _, settings, _ = converted(tmp_path, json.loads(section) | {"compression": {"algorithm": "quantization"}})
    assert settings.budget.max_relative_drop == 0.01
