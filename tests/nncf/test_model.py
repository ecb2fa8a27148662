"""`create_compressed_model` and `register_default_init_args`."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from kedro_aat import NNCFConfig, create_compressed_model, register_default_init_args
from kedro_aat.compression.composite import CompositeController
from kedro_aat.compression.controller import ModelController
from kedro_aat.compression.quantization.controller import QuantizationController
from kedro_aat.compression.settings import FilterPruning, MagnitudeSparsity
from kedro_aat.compression.sparsity.controller import MagnitudeSparsityController
from kedro_aat.errors import ConfigurationError, ModelError
from kedro_aat.pipelines.digits.model import ResidualCNN
from kedro_aat.testing.training import assert_same_bits, sgd, train
from tests.nets import SmallNet, images
from tests.nncf.scripts import DISTILLATION, PRUNING, QUANTIZATION, SPARSITY, outputs


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


def mean_before_normalization(model: SmallNet, num_examples: int) -> Tensor:
    batch = torch.cat([inputs for inputs, _ in loader()])[:num_examples]
    with torch.no_grad():
        return model.get_submodule("stem.0")(batch).mean((0, 2, 3))  # type: ignore[no-any-return]


def test_normalization_is_adapted_to_the_sparse_weights() -> None:
    model = adapted()
    assert not model.training or running_mean(model).any()
    torch.testing.assert_close(running_mean(model), mean_before_normalization(model, 96))


@pytest.mark.parametrize(("num_samples", "used"), [(32, 32), (33, 64), (1000, 96)])
def test_number_of_samples_for_the_adaptation(num_samples: int, used: int) -> None:
    model = adapted(num_samples)
    torch.testing.assert_close(running_mean(model), mean_before_normalization(model, used))


def test_nothing_is_adapted_if_nothing_is_compressed_or_the_number_of_samples_is_0() -> None:
    assert not running_mean(adapted(rate=0.0)).any()
    assert not running_mean(adapted(num_samples=0)).any()


def test_batches_for_the_adaptation_may_be_bare_tensors() -> None:
    model = adapted(batches=[inputs for inputs, _ in loader()])
    torch.testing.assert_close(running_mean(model), mean_before_normalization(model, 96))


def test_adaptation_keeps_the_mode_of_the_model() -> None:
    config = NNCFConfig.from_dict({"compression": {"algorithm": "magnitude_sparsity", "sparsity_init": 0.5}})
    register_default_init_args(config, loader())
    for training in (True, False):
        model = SmallNet().train(training)
        create_compressed_model(model, copy.copy(config))
        assert model.training is training


def test_registering_accepts_the_arguments_of_nncf() -> None:
    config = NNCFConfig.from_dict({"compression": SPARSITY})
    batches = loader()
    criterion = nn.CrossEntropyLoss()
    registered = register_default_init_args(
        config, batches, criterion=criterion, criterion_fn=None, val_loader=batches, device="cpu"
    )
    assert registered is config
    assert config["compression"] == SPARSITY
    assert register_default_init_args({"compression": SPARSITY}, batches)["compression"] == SPARSITY


def test_all_keys_of_a_file_are_used() -> None:
    controller, _ = create_compressed_model(SmallNet(), {"compression": SPARSITY})
    settings = controller.settings
    assert isinstance(settings, MagnitudeSparsity)
    schedule = settings.schedule
    assert (settings.importance, settings.ranking) == ("normed_abs", "global")
    assert settings.ignored_scopes == ("{re}NNCFLinear",)
    assert (schedule.kind, schedule.initial_rate, schedule.target_rate) == ("polynomial", 0.1, 0.3)
    assert (schedule.target_epoch, schedule.freeze_epoch, schedule.power, schedule.concave) == (2, 3, 0.9, True)
    assert controller.report().requested_rate == 0.1


def test_an_updated_config_is_read_again() -> None:
    config = NNCFConfig.from_dict({"compression": {"algorithm": "magnitude_sparsity"}})
    config.update({"compression": {"algorithm": "magnitude_sparsity", "sparsity_init": 0.4}})
    controller, _ = create_compressed_model(SmallNet(), config)
    assert controller.report().requested_rate == 0.4


@pytest.mark.parametrize("as_list", [True, False])
def test_compression_may_be_a_list_of_one(as_list: bool) -> None:
    compression = [SPARSITY] if as_list else SPARSITY
    controller, _ = create_compressed_model(SmallNet(), {"compression": compression})
    assert isinstance(controller, MagnitudeSparsityController)


def test_state_survives_json_and_the_rate_can_return_to_0() -> None:
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


def test_state_includes_its_settings() -> None:
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


def created(*algorithms: dict[str, Any], model: nn.Module | None = None, batches: Any = None) -> ModelController:
    contents = {"input_info": {"sample_size": [2, 1, 8, 8]}, "compression": list(algorithms)}
    config = register_default_init_args(NNCFConfig.from_dict(contents), loader() if batches is None else batches)
    torch.manual_seed(0)
    controller, _ = create_compressed_model(SmallNet() if model is None else model, config)
    return controller


def test_ranges_are_taken_from_the_registered_data() -> None:
    spread = [torch.full((16, 1, 8, 8), 1.0), torch.full((16, 1, 8, 8), 3.0), torch.full((16, 1, 8, 8), 500.0)]
    controller = created(QUANTIZATION, batches=[torch.cat([batch, -batch]) for batch in spread])
    assert isinstance(controller, QuantizationController)
    assert controller._fake.ranges[0].tolist() == [-1, 1]  # range of the first 32 examples


def test_ranges_of_the_first_batch_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    without_samples = QUANTIZATION | {"initializer": {"range": {"num_init_samples": 0}}}
    for algorithms, reason in (
        (QUANTIZATION, "no data are registered: call register_default_init_args"),
        ([SPARSITY, QUANTIZATION], "no data are registered"),
        (without_samples, "num_init_samples is 0"),
    ):
        caplog.clear()
        config = NNCFConfig.from_dict({"input_info": {"sample_size": [2, 1, 8, 8]}, "compression": algorithms})
        if algorithms is without_samples:
            register_default_init_args(config, loader())
        controller, _ = create_compressed_model(SmallNet(), config)
        assert f"first batch that the model sees, whatever split that is of, because {reason}" in caplog.text
        caplog.clear()
        create_compressed_model(SmallNet(), config, controller.get_compression_state())  # ranges come from the state
        assert not caplog.text


def test_first_and_strided_convolutions_are_not_pruned_by_default() -> None:
    params = PRUNING["params"]
    config = {"input_info": {"sample_size": [2, 1, 8, 8]}}
    for first, strided, kept in (
        (False, False, ("stem.0", "blocks.1.conv1", "blocks.1.shortcut.0")),
        (True, False, ("blocks.1.conv1", "blocks.1.shortcut.0")),
        (False, True, ("stem.0",)),
        (True, True, ()),
    ):
        changed = {**params, "prune_first_conv": first, "prune_downsample_convs": strided}
        compression = {"algorithm": "filter_pruning", "params": changed, "ignored_scopes": ["classifier"]}
        controller, _ = create_compressed_model(ResidualCNN((4, 8)), {**config, "compression": compression})
        assert isinstance(controller.settings, FilterPruning)
        assert controller.settings.ignored_scopes == ("classifier", *kept)


def test_pruning_requires_an_example_input() -> None:
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


def test_an_algorithm_named_twice_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="quantization is there more than once"):
        create_compressed_model(SmallNet(), {"compression": [QUANTIZATION, QUANTIZATION]})


def test_unknown_algorithm_is_an_error_with_a_suggestion() -> None:
    with pytest.raises(ConfigurationError, match="Did you mean 'magnitude_sparsity'"):
        create_compressed_model(SmallNet(), {"compression": {"algorithm": "magnitude_sparsty"}})


def test_mistaken_scope_of_the_file_is_an_error() -> None:
    mistaken = {**SPARSITY, "ignored_scopes": ["SmallNet/NNCFLinear[clasifier]/linear_0", "stm"]}
    with pytest.raises(ConfigurationError) as caught:
        create_compressed_model(SmallNet(), {"compression": mistaken})
    assert len(caught.value.mistakes) == 2
