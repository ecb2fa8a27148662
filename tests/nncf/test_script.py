"""A script for NNCF 2.x runs with nothing but its imports changed, and gives what it gave there."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from kedro_aat import (
    AdaptiveCompressionTrainingLoop,
    EarlyExitCompressionTrainingLoop,
    NNCFConfig,
    Outcome,
    create_accuracy_aware_training_loop,
    create_compressed_model,
    register_default_init_args,
)
from kedro_aat.compression.composite import CompositeController
from kedro_aat.compression.controller import ModelController
from kedro_aat.compression.quantization.controller import QuantizationController
from kedro_aat.compression.settings import FilterPruning, MagnitudeSparsity
from kedro_aat.compression.sparsity.controller import MagnitudeSparsityController
from kedro_aat.errors import ConfigurationError, ModelError
from kedro_aat.export.session import open_session, run_session
from kedro_aat.pipelines.digits.model import ResidualCNN
from tests.compression.training import BATCH, assert_same_bits, sgd, train
from tests.nets import SmallNet, images
from tests.nncf import user_script

WEIGHTS = ["stem.0.weight", "conv.weight", "classifier.weight"]

SPARSITY: dict[str, Any] = {
    "algorithm": "magnitude_sparsity",
    "sparsity_init": 0.1,
    "params": {
        "schedule": "polynomial",
        "weight_importance": "normed_abs",
        "sparsity_target": 0.3,
        "sparsity_target_epoch": 2,
        "sparsity_freeze_epoch": 3,
    },
    "initializer": {"batchnorm_adaptation": {"num_bn_adaptation_samples": 64}},
    "ignored_scopes": ["{re}NNCFLinear"],
}
ADAPTIVE: dict[str, Any] = {
    "mode": "adaptive_compression_level",
    "params": {
        "maximal_relative_accuracy_degradation": 5.0,
        "initial_training_phase_epochs": 3,
        "patience_epochs": 2,
        "initial_compression_rate_step": 0.2,
        "minimal_compression_rate_step": 0.05,
        "maximal_total_epochs": 12,
    },
}
EARLY_EXIT: dict[str, Any] = {
    "mode": "early_exit",
    "params": {"maximal_relative_accuracy_degradation": 5.0, "maximal_total_epochs": 8},
}


def contents(folder: Path, training: dict[str, Any] = ADAPTIVE, compression: Any = None) -> dict[str, Any]:
    """An NNCF file with keys of the user's own at its root."""
    return {
        "model": "SmallNet",
        "model_params": {"width": 8},
        "num_examples": 160,
        "batch_size": 32,
        "base_lr": 0.02,
        "seed": 0,
        "log_dir": str(folder / "logs"),
        "target_device": "CPU",
        "input_info": {"sample_size": [1, 1, 8, 8]},
        "accuracy_aware_training": training,
        "compression": compression or SPARSITY,
    }


def write(folder: Path, **more: Any) -> str:
    path = folder / "config.json"
    path.write_text(json.dumps(contents(folder, **more)))
    return str(path)


def outputs(model: nn.Module) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model.eval()(BATCH["inputs"])
    return logits


class Finished:
    """The script has run once; tests only look at what it left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.onnx_path = folder / "model.onnx"
        self.loop, self.controller, self.accuracy = user_script.main(write(folder), str(self.onnx_path))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return Finished(tmp_path_factory.mktemp("script"))


def test_script_finds_a_rate_within_its_budget(finished: Finished) -> None:
    statistics = finished.loop.statistics
    assert finished.loop.outcome is Outcome.WITHIN_BUDGET
    assert statistics.accuracy_budget >= 0
    assert statistics.compressed_accuracy >= 0.95 * statistics.uncompressed_accuracy
    assert statistics.compressed_accuracy == finished.accuracy
    assert statistics.compression_rate == finished.controller.compression_rate > 0.4
    assert statistics.relative_accuracy_degradation == pytest.approx(
        100 * (1 - statistics.compressed_accuracy / statistics.uncompressed_accuracy)
    )


def test_script_runs_under_the_configured_schedule_first(finished: Finished) -> None:
    rates = [row.requested_rate for row in finished.loop.history]
    assert rates[0] == 0.1
    first_epochs = [row for row in finished.loop.history if row.trained and row.epoch <= 3]
    halfway = 0.1 + 0.2 * (1 - 0.5**0.9)
    assert [row.requested_rate for row in first_epochs] == pytest.approx([0.1, halfway, 0.3][: len(first_epochs)])
    assert first_epochs[-1].fully_compressed
    assert len(finished.loop.history) > len(first_epochs) + 2


def test_ignored_layer_of_the_script_stays_dense(finished: Finished) -> None:
    assert finished.controller.weight_names == WEIGHTS[:2]
    model = finished.controller.strip()
    assert (model.get_parameter("classifier.weight") != 0).all()
    kept = [model.get_parameter(name) for name in WEIGHTS[:2]]
    zeros, total = sum(int((weight == 0).sum()) for weight in kept), sum(weight.numel() for weight in kept)
    assert zeros / total == finished.loop.statistics.compression_rate


def test_exported_file_runs_in_onnxruntime_and_is_sparse(finished: Finished) -> None:
    model = finished.controller.strip()
    session = open_session(finished.onnx_path.read_bytes())
    for batch in (BATCH["inputs"], BATCH["inputs"][:1]):
        with torch.no_grad():
            torch.testing.assert_close(run_session(session, batch), model.eval()(batch), rtol=1e-4, atol=1e-4)
    stored = {
        tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(str(finished.onnx_path)).graph.initializer
    }
    zeros = sum(int((stored[name] == 0).sum()) for name in WEIGHTS[:2])
    assert zeros / sum(stored[name].size for name in WEIGHTS[:2]) == finished.loop.statistics.compression_rate


def test_saved_state_is_loaded_into_a_new_model(finished: Finished) -> None:
    saved = torch.load(finished.folder / "model.pth", weights_only=True)
    config = NNCFConfig.from_json(finished.folder / "config.json")
    state = json.loads(json.dumps(saved["compression_state"]))
    controller, model = create_compressed_model(SmallNet(width=8), config, compression_state=state)
    model.load_state_dict(saved["state_dict"])
    assert torch.equal(outputs(model), outputs(finished.controller.model))
    assert controller.report() == finished.controller.report()
    assert controller.settings == finished.controller.settings


def test_second_run_of_the_script_gives_the_same_and_leaves_the_first(finished: Finished) -> None:
    before = {path: path.read_bytes() for path in (finished.folder / "logs").rglob("*") if path.is_file()}
    again = Finished(finished.folder)
    assert again.loop.statistics == finished.loop.statistics
    assert_same_bits(again.controller.model.state_dict(), finished.controller.model.state_dict())
    for path, contents_before in before.items():
        assert path.read_bytes() == contents_before
    assert len(list((finished.folder / "logs").iterdir())) == 2


# --- early exit ------------------------------------------------------------------------------------------------


def test_early_exit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write(tmp_path, training=EARLY_EXIT)
    loop, controller, accuracy = user_script.main(config, str(tmp_path / "model.onnx"))
    assert loop.outcome is Outcome.WITHIN_BUDGET
    # The schedule is at its end in the third epoch, and training stops as soon as the budget is kept then.
    assert loop.history[-1].epoch >= 3
    assert loop.history[-1].fully_compressed
    assert all(not row.fully_compressed or row.margin < 0 for row in loop.history[:-1])
    assert controller.report().requested_rate == pytest.approx(0.3)
    assert loop.statistics.compressed_accuracy == accuracy
    # What the script prints, and where it was told to write.
    printed = capsys.readouterr().out
    assert loop.statistics.to_str() in printed
    assert all(part in printed for part in ("Uncompressed accuracy", "Compression rate", "conv.weight"))
    assert len(list((tmp_path / "logs").iterdir())) == 1


@pytest.mark.parametrize(
    ("training", "kind"), [(ADAPTIVE, AdaptiveCompressionTrainingLoop), (EARLY_EXIT, EarlyExitCompressionTrainingLoop)]
)
def test_mode_of_the_file_picks_the_loop(tmp_path: Path, training: dict[str, Any], kind: type) -> None:
    config = contents(tmp_path, training)  # a plain dict is taken too
    controller, _ = create_compressed_model(SmallNet(), config)
    loop = create_accuracy_aware_training_loop(
        config, controller, uncompressed_model_accuracy=90.0, verbose=False, dump_checkpoints=False
    )
    assert type(loop) is kind
    assert (loop.verbose, loop.dump_checkpoints) == (False, False)


# --- create_compressed_model and register_default_init_args ----------------------------------------------------


def loader(num_examples: int = 96) -> DataLoader[Any]:
    data = images(num_examples, seed=3)
    return DataLoader(TensorDataset(data["inputs"] + 2.0, data["targets"]), batch_size=32)


def adapted(num_samples: int | None = None, rate: float = 0.5, batches: Any = None) -> SmallNet:
    compression: dict[str, Any] = {"algorithm": "magnitude_sparsity", "sparsity_init": rate}
    if num_samples is not None:
        compression["initializer"] = {"batchnorm_adaptation": {"num_bn_adaptation_samples": num_samples}}
    config = NNCFConfig.from_dict({"input_info": {"sample_size": [1, 1, 8, 8]}, "compression": compression})
    torch.manual_seed(0)
    model = SmallNet()
    register_default_init_args(config, loader() if batches is None else batches)
    _, compressed = create_compressed_model(model, config)
    assert compressed is model
    return model


def running_mean(model: SmallNet) -> Tensor:
    return model.get_buffer("stem.1.running_mean")


def mean_before_normalisation(model: SmallNet, num_examples: int) -> Tensor:
    batch = torch.cat([inputs for inputs, _ in loader()])[:num_examples]
    with torch.no_grad():
        return model.get_submodule("stem.0")(batch).mean((0, 2, 3))  # type: ignore[no-any-return]


def test_normalisation_is_adapted_to_the_sparse_weights() -> None:
    model = adapted()
    assert not model.training or running_mean(model).any()
    torch.testing.assert_close(running_mean(model), mean_before_normalisation(model, 96))


@pytest.mark.parametrize(("num_samples", "used"), [(32, 32), (33, 64), (1000, 96)])
def test_number_of_samples_for_the_adaptation(num_samples: int, used: int) -> None:
    model = adapted(num_samples)
    torch.testing.assert_close(running_mean(model), mean_before_normalisation(model, used))


def test_nothing_is_adapted_where_nothing_is_compressed_or_no_samples_are_wanted() -> None:
    assert not running_mean(adapted(rate=0.0)).any()
    assert not running_mean(adapted(num_samples=0)).any()


def test_batches_for_the_adaptation_may_be_bare_tensors() -> None:
    model = adapted(batches=[inputs for inputs, _ in loader()])
    torch.testing.assert_close(running_mean(model), mean_before_normalisation(model, 96))


def test_adaptation_keeps_the_mode_of_the_model() -> None:
    config = NNCFConfig.from_dict({"compression": {"algorithm": "magnitude_sparsity", "sparsity_init": 0.5}})
    register_default_init_args(config, loader())
    for training in (True, False):
        model = SmallNet().train(training)
        create_compressed_model(model, copy.copy(config))
        assert model.training is training


def test_registering_takes_the_arguments_that_nncf_took() -> None:
    config = NNCFConfig.from_dict({"compression": SPARSITY})
    batches = loader()
    criterion = nn.CrossEntropyLoss()
    registered = register_default_init_args(
        config, batches, criterion=criterion, criterion_fn=None, val_loader=batches, device="cpu"
    )
    assert registered is config
    assert config["compression"] == SPARSITY
    assert register_default_init_args({"compression": SPARSITY}, batches)["compression"] == SPARSITY


def test_file_is_read_as_it_is_written() -> None:
    controller, _ = create_compressed_model(SmallNet(), {"compression": SPARSITY})
    settings = controller.settings
    assert isinstance(settings, MagnitudeSparsity)
    schedule = settings.schedule
    assert (settings.importance, settings.ranking) == ("normed_abs", "global")
    assert settings.ignored_scopes == ("{re}NNCFLinear",)
    assert (schedule.kind, schedule.initial_rate, schedule.target_rate) == ("polynomial", 0.1, 0.3)
    assert (schedule.target_epoch, schedule.freeze_epoch, schedule.power, schedule.concave) == (2, 3, 0.9, True)
    assert controller.report().requested_rate == 0.1


def test_config_that_was_updated_is_read_as_it_is_now() -> None:
    config = NNCFConfig.from_dict({"compression": {"algorithm": "magnitude_sparsity"}})
    config.update({"compression": {"algorithm": "magnitude_sparsity", "sparsity_init": 0.4}})
    controller, _ = create_compressed_model(SmallNet(), config)
    assert controller.report().requested_rate == 0.4


@pytest.mark.parametrize("as_list", [True, False])
def test_compression_may_be_a_list_of_one(as_list: bool) -> None:
    compression = [SPARSITY] if as_list else SPARSITY
    controller, _ = create_compressed_model(SmallNet(), {"compression": compression})
    assert isinstance(controller, MagnitudeSparsityController)


def test_state_goes_through_json_and_the_rate_can_fall_to_0_afterwards() -> None:
    torch.manual_seed(0)
    dense = SmallNet()
    config = {"compression": {"algorithm": "magnitude_sparsity", "sparsity_init": 0.2}}
    old, model = create_compressed_model(copy.deepcopy(dense), config)
    old.disable_scheduler()
    old.compression_rate = 0.8
    state = json.loads(json.dumps(old.get_compression_state()))
    tensors = model.state_dict()

    new, restored = create_compressed_model(SmallNet(), config, compression_state=state)
    restored.load_state_dict(tensors)
    assert new.report() == old.report()
    train(restored, sgd(restored))
    assert new.report() == old.report()
    restored.load_state_dict(tensors)
    new.compression_rate = 0.0
    assert_same_bits(new.strip().state_dict(), dense.state_dict())


def test_state_brings_its_own_settings() -> None:
    old, _ = create_compressed_model(SmallNet(), {"compression": SPARSITY})
    plain = {"compression": {"algorithm": "magnitude_sparsity"}}
    new, _ = create_compressed_model(SmallNet(), plain, old.get_compression_state())
    assert new.settings == old.settings


def test_example_input_comes_from_the_file_or_from_the_call(tmp_path: Path) -> None:
    config = {"input_info": {"sample_size": [1, 1, 8, 8]}, "compression": SPARSITY}
    controller, _ = create_compressed_model(SmallNet(), config)
    assert controller.example_input is not None
    assert controller.example_input.shape == (1, 1, 8, 8)
    batch = torch.randn(3, 1, 8, 8)
    controller, _ = create_compressed_model(SmallNet(), config, example_input=batch)
    assert controller.example_input is batch
    controller, _ = create_compressed_model(SmallNet(), {"compression": SPARSITY})
    with pytest.raises(ModelError, match=r"input_info\.sample_size"):
        controller.export_model(tmp_path / "model.onnx")


# --- filter pruning, quantization, distillation, and several at once ------------------------------------------

PRUNING: dict[str, Any] = {
    "algorithm": "filter_pruning",
    "pruning_init": 0.3,
    "params": {"schedule": "baseline", "pruning_target": 0.3, "prune_first_conv": True},
}
QUANTIZATION: dict[str, Any] = {
    "algorithm": "quantization",
    "preset": "mixed",
    "initializer": {"range": {"num_init_samples": 32}, "batchnorm_adaptation": {"num_bn_adaptation_samples": 64}},
}
DISTILLATION: dict[str, Any] = {"algorithm": "knowledge_distillation", "type": "softmax", "temperature": 4.0}


def created(*algorithms: dict[str, Any], model: nn.Module | None = None, batches: Any = None) -> ModelController:
    contents = {"input_info": {"sample_size": [2, 1, 8, 8]}, "compression": list(algorithms)}
    config = register_default_init_args(NNCFConfig.from_dict(contents), loader() if batches is None else batches)
    torch.manual_seed(0)
    controller, _ = create_compressed_model(SmallNet() if model is None else model, config)
    return controller


def test_early_exit_over_quantization_ends_within_budget_and_exports_integers(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    config = write(tmp_path, training=EARLY_EXIT, compression=QUANTIZATION)
    loop, controller, accuracy = user_script.main(config, str(path))
    assert type(loop) is EarlyExitCompressionTrainingLoop
    assert loop.outcome is Outcome.WITHIN_BUDGET
    assert loop.statistics.compressed_accuracy == accuracy
    assert loop.statistics.compression_rate == controller.compression_rate == 1
    stored = {tensor.name: tensor.data_type for tensor in onnx.load(str(path)).graph.initializer}
    assert list(stored.values()).count(onnx.TensorProto.INT8) >= 3
    session = open_session(path.read_bytes())
    labels = outputs(controller.strip()).argmax(1)
    assert torch.equal(run_session(session, BATCH["inputs"]).argmax(1), labels)


def test_adaptive_search_over_pruning_quantization_and_distillation(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    compression = [PRUNING, QUANTIZATION, DISTILLATION]
    loop, controller, _ = user_script.main(write(tmp_path, compression=compression), str(path))
    assert loop.outcome is Outcome.WITHIN_BUDGET
    assert loop.statistics.compression_rate == controller.compression_rate > 0
    model = controller.strip()
    assert model.get_parameter("conv.weight").numel() < SmallNet().get_parameter("conv.weight").numel()
    assert model.get_parameter("conv.weight").dtype == torch.int8
    assert torch.equal(
        run_session(open_session(path.read_bytes()), BATCH["inputs"]).argmax(1), outputs(model).argmax(1)
    )


def test_ranges_are_taken_from_the_registered_data() -> None:
    spread = [torch.full((16, 1, 8, 8), 1.0), torch.full((16, 1, 8, 8), 3.0), torch.full((16, 1, 8, 8), 500.0)]
    controller = created(QUANTIZATION, batches=[torch.cat([batch, -batch]) for batch in spread])
    assert isinstance(controller, QuantizationController)
    assert controller._fake.ranges[0].tolist() == [-1, 1]  # of the first 32


def test_filters_of_the_first_and_of_strided_convolutions_are_kept_unless_named() -> None:
    params = PRUNING["params"]
    config = {"input_info": {"sample_size": [2, 1, 8, 8]}}
    for first, strided, kept in (
        (False, False, ("stem.0", "blocks.1.conv1", "blocks.1.shortcut.0")),
        (True, False, ("blocks.1.conv1", "blocks.1.shortcut.0")),
        (False, True, ("stem.0",)),
        (True, True, ()),
    ):
        given = {**params, "prune_first_conv": first, "prune_downsample_convs": strided}
        compression = {"algorithm": "filter_pruning", "params": given, "ignored_scopes": ["classifier"]}
        controller, _ = create_compressed_model(ResidualCNN((4, 8)), {**config, "compression": compression})
        assert isinstance(controller.settings, FilterPruning)
        assert controller.settings.ignored_scopes == ("classifier", *kept)


def test_pruning_needs_an_example() -> None:
    for first in (True, False):
        compression = {"algorithm": "filter_pruning", "params": {"prune_first_conv": first}}
        with pytest.raises(ModelError, match="example_input"):
            create_compressed_model(SmallNet(), {"compression": compression})


def test_state_of_several_algorithms_is_loaded_into_a_new_model() -> None:
    old = created(PRUNING, QUANTIZATION, DISTILLATION)
    train(old.model, sgd(old.model))
    state = json.loads(json.dumps(old.get_compression_state()))
    new, restored = create_compressed_model(
        SmallNet(), {"compression": PRUNING}, state, example_input=torch.zeros(2, 1, 8, 8)
    )
    restored.load_state_dict(old.model.state_dict())
    assert isinstance(new, CompositeController)
    assert new.settings == old.settings
    assert new.report() == old.report()
    assert torch.equal(outputs(restored), outputs(old.model))


@pytest.mark.parametrize(
    ("compression", "names"), [([], "none"), ([DISTILLATION], "knowledge_distillation"), (DISTILLATION, "knowledge")]
)
def test_a_file_must_name_an_algorithm_that_compresses(compression: Any, names: str) -> None:
    with pytest.raises(ConfigurationError, match=f"must name an algorithm that compresses .* but names {names}"):
        create_compressed_model(SmallNet(), {"compression": compression})


def test_an_algorithm_is_named_once() -> None:
    with pytest.raises(ConfigurationError, match="quantization is there more than once"):
        create_compressed_model(SmallNet(), {"compression": [QUANTIZATION, QUANTIZATION]})


def test_unknown_algorithm_is_an_error_that_names_the_likely_one() -> None:
    with pytest.raises(ConfigurationError, match="Did you mean 'magnitude_sparsity'"):
        create_compressed_model(SmallNet(), {"compression": {"algorithm": "magnitude_sparsty"}})


def test_mistaken_scope_of_the_file_is_an_error() -> None:
    mistaken = {**SPARSITY, "ignored_scopes": ["SmallNet/NNCFLinear[clasifier]/linear_0", "stm"]}
    with pytest.raises(ConfigurationError) as caught:
        create_compressed_model(SmallNet(), {"compression": mistaken})
    assert len(caught.value.mistakes) == 2
