"""The search `frontier` in a script for NNCF 2.x."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from kedro_aat import (
    AdaptiveCompressionTrainingLoop,
    NNCFConfig,
    Outcome,
    create_compressed_model,
    register_default_init_args,
)
from kedro_aat.compression.build import build_controller
from kedro_aat.compression.distillation import DistillationLoss
from kedro_aat.compression.settings import parse_compression
from kedro_aat.errors import ConfigurationError
from kedro_aat.nncf.config import AccuracyAwareSettings
from kedro_aat.nncf.parameters import parameters_from_nncf
from kedro_aat.search import Frontier
from kedro_aat.search.tactics import Ranking
from kedro_aat.testing.training import BATCH, assert_same_bits
from tests.nets import SmallNet, images
from tests.nncf import user_script
from tests.nncf.files import DROP, SEARCH, adaptive, pruning, sparsity
from tests.nncf.scripts import DISTILLATION, PRUNING, SPARSITY, write
from tests.training.scripted_loop import ScriptedLoop

PARAMS: dict[str, Any] = {"maximal_absolute_accuracy_degradation": 20.0, "maximal_total_epochs": 8}
FRONTIER: dict[str, Any] = {"search": {"kind": "frontier"}}
HIGH_RATE: dict[str, dict[str, Any]] = {
    "sparsity": {"algorithm": "magnitude_sparsity", "sparsity_init": 0.985, "params": {"sparsity_target": 0.985}},
    "filters": PRUNING | {"pruning_init": 0.8, "params": PRUNING["params"] | {"pruning_target": 0.8}},
}


class Script:
    """A script with the search `frontier`, and what its functions saw.

    Args:
        compression: The section `compression`.
        search: Further keys of `search`.
        registers: Whether the data and the loss are registered.
        steps: Whether the training function steps the controller's scheduler.
        build: Makes the controller instead of `create_compressed_model`.
    """

    def __init__(
        self,
        compression: Any,
        *,
        search: dict[str, Any] | None = None,
        registers: bool = True,
        steps: bool = True,
        build: Callable[[nn.Module], Any] | None = None,
        **loop_args: Any,
    ) -> None:
        torch.manual_seed(0)
        data = images(96, seed=0)
        self.loader = DataLoader(TensorDataset(data["inputs"], data["targets"]), batch_size=32, shuffle=True)
        contents = adaptive(**PARAMS, search={"kind": "frontier", **(search or {})})
        contents |= {"compression": compression, "input_info": {"sample_size": [2, 1, 8, 8]}}
        config = NNCFConfig.from_dict(contents, warn=False)
        if registers:
            register_default_init_args(config, self.loader, criterion=nn.CrossEntropyLoss())
        self.model: nn.Module = SmallNet()
        user_script.pretrain(self.model, self.loader)
        self.before = copy.deepcopy(self.model.state_dict())
        self.controller: Any = build(self.model) if build else create_compressed_model(self.model, config)[0]
        self.steps = steps
        self.stops_in: int | None = None
        self.train_epoch: Callable[..., None] | None = None
        self.learning_rates: list[list[float]] = []
        self.validated: list[dict[str, Tensor]] = []
        self.loop = AdaptiveCompressionTrainingLoop(
            config, self.controller, self.validate(self.model), verbose=False, **loop_args
        )
        self.validated.clear()

    def train(self, controller: Any, model: nn.Module, epoch: int, optimizer: Any, lr_scheduler: Any) -> None:
        model.train()
        self.learning_rates.append([])
        if len(self.learning_rates) == self.stops_in:
            raise KeyboardInterrupt
        for inputs, targets in self.loader:
            if self.steps:
                controller.scheduler.step()
            self.learning_rates[-1].append(optimizer.param_groups[0]["lr"])
            optimizer.zero_grad()
            (nn.functional.cross_entropy(model(inputs), targets) + controller.loss()).backward()
            optimizer.step()

    def validate(self, model: nn.Module) -> float:
        state = model.state_dict()
        self.validated.append({name: tensor.clone() for name, tensor in state.items()})
        return user_script.validate(model, self.loader)

    def configure(self) -> tuple[Any, Any]:
        return torch.optim.SGD(self.model.parameters(), lr=0.02, momentum=0.9), None

    def run(self, folder: Path) -> None:
        torch.manual_seed(0)
        self.loop.run(self.model, self.train_epoch or self.train, self.validate, self.configure, log_dir=folder)


# --- the configuration ---------------------------------------------------------------------------------------


def test_keys_of_the_other_searches_are_named_in_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    contents = adaptive(**DROP, **SEARCH, **FRONTIER) | sparsity(
        sparsity_init=0.1, params={"sparsity_target": 0.7, "weight_importance": "abs"}
    )
    config = NNCFConfig.from_dict(contents)
    (record,) = caplog.records
    message = record.getMessage()
    for key in SEARCH.keys() - {"maximal_total_epochs"}:
        assert f"accuracy_aware_training.params.{key}" in message
    assert "magnitude_sparsity.sparsity_init" in message
    assert "magnitude_sparsity.params.sparsity_target" in message
    assert "weight_importance" not in message
    assert "maximal_total_epochs" not in message
    assert AccuracyAwareSettings.from_config(config).search == Frontier(maximal_total_epochs=50)


def test_there_is_no_warning_without_such_keys(caplog: pytest.LogCaptureFixture) -> None:
    NNCFConfig.from_dict(adaptive(**DROP, maximal_total_epochs=40, **FRONTIER) | pruning(pruning_flops_target=0.3))
    assert not caplog.records


def test_only_the_schedule_of_the_searched_algorithm_is_named(caplog: pytest.LogCaptureFixture) -> None:
    quantization = {"algorithm": "quantization", "params": {"weights_quant_start_epoch": 2}}
    compression = [quantization, {"algorithm": "filter_pruning", "pruning_init": 0.2}]
    NNCFConfig.from_dict(adaptive(**DROP, **FRONTIER) | {"compression": compression})
    (record,) = caplog.records
    assert "filter_pruning.pruning_init" in record.getMessage()
    assert "quant" not in record.getMessage()


def test_tactics_and_other_settings_stand_in_search() -> None:
    search = {
        "kind": "frontier",
        "acceptance_z": 1.0,
        "tactics": {"importance": "lamp", "learning_rate_factor": [1, 3]},
    }
    settings = AccuracyAwareSettings.from_config(NNCFConfig.from_dict(adaptive(**DROP, search=search)))
    assert isinstance(settings.search, Frontier)
    assert settings.search.acceptance_z == 1.0
    assert settings.search.tactics.importance == ("lamp",)
    assert settings.search.tactics.learning_rate_factor == (1.0, 3.0)


def test_a_key_of_nncf_inside_search_is_a_mistake_that_is_named() -> None:
    contents = adaptive(**DROP, search={"kind": "frontier", "patience_epochs": 3})
    with pytest.raises(ConfigurationError, match=r"params\.search\.patience_epochs: unknown key"):
        NNCFConfig.from_dict(contents)


def test_importance_lamp() -> None:
    controller, _ = create_compressed_model(SmallNet(), sparsity(params={"weight_importance": "lamp"}))
    assert controller.rankings[0] == Ranking(importance="lamp", ranking="global")


@pytest.mark.parametrize(
    ("kind", "rate", "expected"),
    [
        ("frontier", None, 0.998),
        ("frontier", 0.95, 0.95),
        ("uniform_decrease", None, 0.95),
    ],
)
def test_highest_rate(kind: str, rate: float | None, expected: float) -> None:
    arguments: dict[str, Any] = {} if rate is None else {"maximal_compression_rate": rate}
    subject = ScriptedLoop(params=DROP | {"search": {"kind": kind}}, **arguments)
    assert subject.loop._problem.maximal_rate == expected


def test_a_translated_file_has_the_highest_rate_of_its_search(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(adaptive(**DROP, **FRONTIER) | sparsity()))
    template = "aat:\n" + "".join(
        f"  {key}: x\n" for key in ("budget", "minimal_rate", "maximal_rate", "compression", "search", "second_stage")
    )
    text, _ = parameters_from_nncf(path, template)
    assert "maximal_rate: 0.998" in text
    assert "kind: frontier" in text


# --- the start at rate 0 -------------------------------------------------------------------------------------


@pytest.mark.parametrize("registers", [True, False])
@pytest.mark.parametrize("name", HIGH_RATE)
def test_the_search_begins_with_the_very_model_whatever_the_schedule(
    name: str, registers: bool, tmp_path: Path
) -> None:
    script = Script(HIGH_RATE[name], registers=registers)
    script.run(tmp_path)
    assert script.loop.history[0].requested_rate == 0
    first = script.validated[0]
    assert_same_bits({key: first[key] for key in script.before}, script.before)


@pytest.mark.parametrize(
    ("settings", "rate"),
    [({"algorithm": "magnitude_sparsity"}, 0.985), ({"algorithm": "filter_pruning"}, 0.8)],
    ids=["sparsity", "filters"],
)
def test_a_controller_at_a_high_rate_gets_its_weights_back(
    settings: dict[str, Any], rate: float, tmp_path: Path
) -> None:
    compression = parse_compression(settings | {"schedule": {"initial_rate": rate}})
    script = Script(
        SPARSITY,
        registers=False,
        build=lambda model: build_controller(model, compression, example_input=BATCH["inputs"]),
    )
    assert script.controller.compression_rate > 0.5
    script.run(tmp_path)
    assert script.loop.history[0].requested_rate == 0
    first = script.validated[0]
    assert_same_bits({key: first[key] for key in script.before}, script.before)


# --- the search ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", [SPARSITY, PRUNING], ids=["sparsity", "filters"])
def test_script_with_frontier(compression: dict[str, Any], tmp_path: Path) -> None:
    training = {"mode": "adaptive_compression_level", "params": PARAMS | FRONTIER}
    loop, controller, accuracy = user_script.main(
        write(tmp_path, training=training, compression=compression), str(tmp_path / "model.onnx")
    )
    assert loop.outcome is Outcome.WITHIN_BUDGET
    assert loop.statistics.accuracy_budget >= 0
    assert loop.statistics.compressed_accuracy == accuracy
    assert controller.compression_rate > 0
    assert sum(row.trained for row in loop.history) == PARAMS["maximal_total_epochs"]
    assert len({row.lr_scale for row in loop.history if row.trained}) > 1


def test_rates_of_filters_are_shares_of_the_parameters_or_of_the_macs() -> None:
    flops = PRUNING | {"params": {"pruning_flops_target": 0.3, "prune_first_conv": True}}
    assert Script(PRUNING).controller.settings.rate_of == "parameters"
    assert Script(flops).controller.settings.rate_of == "macs"


def test_rankings_of_the_controller_reach_the_search() -> None:
    problem = Script(PRUNING).loop._problem
    assert "taylor" in {each.importance for each in problem.rankings}
    assert problem.can_sample
    assert not problem.can_distill
    assert Script(SPARSITY).loop._problem.first_target_rate == 0.7
    assert not Script(PRUNING, registers=False).loop._problem.can_sample


@pytest.mark.parametrize(
    "batch", [{"inputs": torch.zeros(2, 1, 8, 8)}, (torch.zeros(2, 1, 8, 8), {"boxes": torch.zeros(2)}), [None] * 3]
)
def test_taylor_is_left_out_if_registered_batches_are_no_pairs(batch: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A user's own form of batches ends no search that has trained for hours."""
    script = Script(PRUNING)
    observed: list[int] = []
    registered = script.loop._more_callables["sample_gradients"].__self__
    registered._config.train_loader = [batch]
    registered.sample_gradients(lambda: observed.append(1))
    assert not observed
    assert (
        f"taylor ranks as l2 does: it needs registered batches of (inputs, targets), but got {type(batch).__name__}."
        in caplog.text
    )


def test_taylor_ranks_by_the_gradients_of_the_registered_data(tmp_path: Path) -> None:
    script = Script(PRUNING, search={"tactics": {"importance": "taylor", "ranking": "local"}})
    observed: list[int] = []
    observe = script.controller.observe_gradients

    def counting() -> None:
        assert all(parameter.grad is not None for parameter in script.model.parameters())
        observed.append(1)
        observe()

    script.controller.observe_gradients = counting
    script.run(tmp_path)
    assert len(observed) >= len(script.loader)
    assert script.controller.get_state()["ranking"] == {"importance": "taylor", "ranking": "local"}


def test_normalizations_are_adapted_to_each_new_rate(tmp_path: Path) -> None:
    script = Script(PRUNING)
    means: list[Tensor] = []
    train = script.train

    def noting(controller: Any, model: nn.Module, **more: Any) -> None:
        train(controller, model, **more)
        means.append(model.get_buffer("stem.1.running_mean").clone())

    script.train_epoch = noting
    script.run(tmp_path)
    validated = [state["stem.1.running_mean"] for state in script.validated[1:]]
    assert any(not torch.equal(*pair) for pair in zip(means, validated, strict=False))

    off = PRUNING | {"initializer": {"batchnorm_adaptation": {"num_bn_adaptation_samples": 0}}}
    assert "adapt" not in Script(off).loop._more_callables
    assert "adapt" not in Script(PRUNING, registers=False).loop._more_callables


def test_the_search_may_switch_distillation_off(tmp_path: Path) -> None:
    script = Script([SPARSITY, DISTILLATION], search={"tactics": {"distillation": False}})
    assert script.loop._problem.can_distill
    assert isinstance(script.controller.loss, DistillationLoss)
    assert script.controller.loss.is_on
    losses: list[float] = []
    train = script.train

    def noting(controller: Any, model: nn.Module, **more: Any) -> None:
        train(controller, model, **more)
        model.train()(BATCH["inputs"])
        losses.append(float(controller.loss()))

    script.train_epoch = noting
    script.run(tmp_path)
    assert losses
    assert not any(losses)


@pytest.mark.parametrize(("steps", "registers"), [(True, True), (True, False), (False, True), (False, False)])
def test_learning_rate_within_an_epoch(steps: bool, registers: bool, tmp_path: Path) -> None:
    script = Script(SPARSITY, steps=steps, registers=registers)
    script.run(tmp_path)
    trained = [row for row in script.loop.history if row.trained]
    for number, (row, rates) in enumerate(zip(trained, script.learning_rates, strict=True)):
        scales = [rate / 0.02 for rate in rates]
        if steps and (registers or number):  # the first epoch of a script without registered data counts its steps
            steady = len(set(scales)) == 1
            middle = sum(scales) / len(scales)
            assert scales[0] - middle == pytest.approx(middle - scales[-1])
            assert steady or row.lr_scale > scales[0] > scales[-1]
        else:
            assert len(set(scales)) == 1
            assert scales[0] <= row.lr_scale * (1 + 1e-12)
    moving = [rates for rates in script.learning_rates if len(set(rates)) > 1]
    assert bool(moving) == steps


def test_a_script_that_was_stopped_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    compression, search = [SPARSITY, DISTILLATION], {"tactics": {"distillation": [False, True]}}
    whole, stopped, resumed = (Script(compression, search=search) for _ in range(3))
    whole.run(tmp_path / "whole")
    stopped.stops_in = 5
    stopped.run(tmp_path / "stopped")
    assert stopped.loop.outcome is Outcome.INTERRUPTED
    resumed.run(tmp_path / "stopped")
    assert len(resumed.learning_rates) < len(whole.learning_rates)
    histories = [[replace(row, seconds=0.0) for row in each.loop.history] for each in (whole, resumed)]
    assert histories[0] == histories[1]
    assert_same_bits(resumed.model.state_dict(), whole.model.state_dict())
