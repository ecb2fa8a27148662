"""The contract of every compression controller, as a test suite to inherit.

@pytest.mark.parametrize("settings", [MySettings()])
class TestMyController(ControllerContract):
    def compress(self, model, settings, schedule=None):
        return MyController(model, settings, schedule or ScheduleSettings(kind="constant"))
"""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kedro_aat.compression.build import build_controller
from kedro_aat.compression.controller import (
    CompressionController,
    CompressionReport,
    CompressionScheduler,
    CompressionStage,
    rates_of,
)
from kedro_aat.compression.quantization.held import counted_parameters
from kedro_aat.compression.quantization.layers import make_quantized, quantized_spec
from kedro_aat.compression.schedule import ScheduleSettings
from kedro_aat.testing.training import BATCH, assert_same_bits, sgd, small_net, train

NUM_BYTES = sum(parameter.nbytes for parameter in small_net().parameters())
RATES = [0.0, 0.2, 0.5, 0.9, 0.998]
# From 0 to 0.5 in two epochs.
RISING = ScheduleSettings(kind="polynomial", target_rate=0.5, target_epoch=2, power=1.0)


def outputs(model: nn.Module) -> Tensor:
    """Logits of the batch in evaluation mode, (B, classes)."""
    model.eval()
    with torch.no_grad():
        logits: Tensor = model(BATCH["inputs"])
    return logits


def dense_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters, by name."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def begin_search(controller: CompressionController) -> None:
    """What the loops do before they set the first rate."""
    controller.disable_scheduler()


def set_reachable(controller: CompressionController, rate: float) -> float:
    """Sets a rate, or the highest one that the model can have, and returns it."""
    reachable = min(rate, controller.maximal_compression_rate)
    controller.compression_rate = reachable
    return reachable


class ControllerContract:
    """What the training loops rely on. A test class inherits it and parametrizes it with `settings`.

    Override `compress` for a controller that `build_controller` does not know, and the other methods if its model
    at rate 0 is not the plain network.
    """

    def compress(self, model: nn.Module, settings: Any, schedule: ScheduleSettings | None = None) -> Any:
        """Compresses a fresh model.

        Args:
            model: A `SmallNet`, changed in place.
            settings: Whatever the suite is parametrized with; by default the settings of one algorithm.
            schedule: Schedule of the rate; by default a constant rate of 0.

        Returns:
            The controller.
        """
        schedule = schedule or ScheduleSettings(kind="constant")
        settings = type(settings)(**{**dict(settings), "schedule": schedule})
        return build_controller(model, settings, example_input=BATCH["inputs"])

    def stripped_at_rate_0(self, settings: Any) -> nn.Module:
        """A fresh model as `strip` returns it at rate 0."""
        return small_net()

    def parameters_at_rate_0(self, settings: Any) -> dict[str, Tensor]:
        """The parameters of a fresh model under compression at rate 0."""
        return dense_parameters(small_net())

    def stage(self, settings: Any, own: CompressionStage) -> CompressionStage:
        """The stage that the controller reports if its schedule is at stage `own`."""
        return own

    def fresh_like(self, stripped: nn.Module) -> nn.Module:
        """A new model that can load the stripped model's tensors."""
        fresh = small_net()
        if (spec := quantized_spec(stripped)) is not None:
            make_quantized(fresh, spec)
        return fresh

    def test_controller_has_the_interface_that_the_loops_use(self, settings: Any) -> None:
        controller = self.compress(small_net(), settings)
        assert isinstance(controller, CompressionController)
        assert isinstance(controller.scheduler, CompressionScheduler)
        assert 0 < controller.maximal_compression_rate <= 1
        assert controller.name

    def test_model_is_compressed_in_place(self, settings: Any) -> None:
        model = small_net()
        controller = self.compress(model, settings)
        assert controller.model is model

    # --- the rate --------------------------------------------------------------------------------------------

    def test_controller_starts_at_the_initial_rate_of_its_schedule(self, settings: Any) -> None:
        controller = self.compress(small_net(), settings, ScheduleSettings(kind="constant", initial_rate=0.5))
        assert rates_of(controller).requested_rate == 0.5
        assert rates_of(controller).achieved_rate > 0.1
        assert self.compress(small_net(), settings).compression_rate == 0

    @pytest.mark.parametrize("rate", RATES)
    def test_rate_is_set_and_read(self, settings: Any, rate: float) -> None:
        controller = self.compress(small_net(), settings)
        rate = set_reachable(controller, rate)
        rates = rates_of(controller)
        assert isinstance(rates, CompressionReport)
        if hasattr(controller, "report"):  # which is optional
            assert rates.requested_rate == rate
        assert 0 <= rates.achieved_rate <= 1
        assert controller.compression_rate == rates.achieved_rate

    def test_higher_rate_removes_more(self, settings: Any) -> None:
        controller = self.compress(small_net(), settings)
        achieved = []
        for rate in RATES:
            set_reachable(controller, rate)
            achieved.append(controller.compression_rate)
        assert achieved == sorted(achieved)
        assert achieved[0] == 0
        assert achieved[1] < achieved[3]

    @pytest.mark.parametrize("rate", [-0.1, -1e-9, 1.0, 1.5, 95, math.nan, math.inf])
    def test_rate_outside_its_limits_is_an_error(self, settings: Any, rate: float) -> None:
        controller = self.compress(small_net(), settings)
        controller.compression_rate = 0.5
        before, rates = outputs(controller.model), rates_of(controller)
        with pytest.raises(ValueError, match=r"\[0, 1\)"):
            controller.compression_rate = rate
        assert rates_of(controller) == rates
        assert torch.equal(outputs(controller.model), before)

    def test_rate_can_fall_and_rise(self, settings: Any) -> None:
        controller = self.compress(small_net(), settings)
        for rate in (0.3, 0.9, 0.5, 0.998, 0.2):
            set_reachable(controller, rate)
            direct = self.compress(small_net(), settings)
            set_reachable(direct, rate)
            assert rates_of(controller) == rates_of(direct)
            assert torch.equal(outputs(controller.model), outputs(direct.model))

    def test_rate_0_restores_the_dense_weights(self, settings: Any) -> None:
        controller = self.compress(small_net(), settings)
        for rate in (0.5, 0.998, 0.3, 0.0):
            set_reachable(controller, rate)
        assert controller.compression_rate == 0
        assert_same_bits(dense_parameters(controller.model), self.parameters_at_rate_0(settings))
        assert_same_bits(dict(controller.strip().state_dict()), dict(self.stripped_at_rate_0(settings).state_dict()))

    def test_training_does_not_change_the_rate(self, settings: Any) -> None:
        controller = self.compress(small_net(), settings)
        begin_search(controller)
        controller.compression_rate = 0.5
        before, weights = rates_of(controller), dense_parameters(controller.model)
        train(controller.model, sgd(controller.model))
        assert rates_of(controller) == before
        after = dense_parameters(controller.model)
        assert any(not torch.equal(weights[name], after[name]) for name in weights)

    # --- state -----------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("model_first", [True, False])
    @pytest.mark.parametrize("rate", [0.0, 0.5, 0.9])
    def test_fresh_controller_continues_from_a_state(self, settings: Any, rate: float, model_first: bool) -> None:
        old = self.compress(small_net(), settings)
        begin_search(old)
        set_reachable(old, rate)
        train(old.model, sgd(old.model))
        state = json.loads(json.dumps(old.get_state()))
        tensors = {name: tensor.clone() for name, tensor in old.model.state_dict().items()}

        new = self.compress(small_net(seed=1), settings)
        if model_first:
            new.model.load_state_dict(tensors)
        new.load_state(state)
        if not model_first:
            new.model.load_state_dict(tensors)

        assert rates_of(new) == rates_of(old)
        assert new.compression_stage() == old.compression_stage()
        assert torch.equal(outputs(new.model), outputs(old.model))
        # Both continue in the same way: more training, then a lower rate, then rate 0.
        for controller in (old, new):
            train(controller.model, torch.optim.SGD(controller.model.parameters(), lr=0.05))
        assert_same_bits(dict(new.model.state_dict()), dict(old.model.state_dict()))
        for next_rate in (0.3, 0.0):
            for controller in (old, new):
                controller.compression_rate = next_rate
            assert_same_bits(dict(new.model.state_dict()), dict(old.model.state_dict()))

    def test_fresh_controller_continues_a_schedule(self, settings: Any) -> None:
        old, new = (self.compress(small_net(), settings, RISING) for _ in range(2))
        for _ in range(2):
            old.scheduler.epoch_step()
        new.model.load_state_dict(old.model.state_dict())
        new.load_state(json.loads(json.dumps(old.get_state())))
        assert rates_of(new).requested_rate == 0.25
        new.scheduler.epoch_step()
        assert rates_of(new).requested_rate == 0.5

    def test_controller_returns_to_an_earlier_state(self, settings: Any) -> None:
        controller = self.compress(small_net(), settings)
        begin_search(controller)
        controller.compression_rate = 0.3
        state, before = controller.get_state(), outputs(controller.model)
        tensors = {name: tensor.clone() for name, tensor in controller.model.state_dict().items()}
        rates = rates_of(controller)
        set_reachable(controller, 0.9)
        train(controller.model, sgd(controller.model))
        controller.model.load_state_dict(tensors)
        controller.load_state(state)
        assert rates_of(controller) == rates
        assert torch.equal(outputs(controller.model), before)

    def test_compression_state_is_plain_data(self, settings: Any) -> None:
        controller = self.compress(small_net(), settings)
        controller.compression_rate = 0.5
        state = controller.get_compression_state()
        assert json.loads(json.dumps(state)) == state

    # --- strip -----------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("rate", RATES)
    def test_strip_leaves_outputs_unchanged(self, settings: Any, rate: float) -> None:
        controller = self.compress(small_net(), settings)
        begin_search(controller)
        set_reachable(controller, rate)
        train(controller.model, sgd(controller.model))
        stripped = controller.strip()
        # An integer may be rounded the other way, which is one step of 8 bits.
        atol = 1e-5 if quantized_spec(stripped) is None else 5e-3
        torch.testing.assert_close(outputs(stripped), outputs(controller.model), rtol=1.3e-6, atol=atol)

    def test_stripped_model_lacks_more_bytes_at_a_higher_rate(self, settings: Any) -> None:
        controller = self.compress(small_net(), settings)
        lacking, achieved = [], []
        for rate in (0.0, 0.5, 0.9):
            set_reachable(controller, rate)
            achieved.append(controller.compression_rate)
            bytes_left = [
                int(each.count_nonzero()) * each.element_size() for each in counted_parameters(controller.strip())
            ]
            lacking.append(1 - sum(bytes_left) / NUM_BYTES)
        assert lacking[0] < lacking[1] <= lacking[2]
        assert (lacking[1] < lacking[2]) == (achieved[1] < achieved[2])  # some rates change by whole layers
        assert lacking[2] > 0.5

    def test_stripped_model_has_no_training_machinery(self, settings: Any) -> None:
        controller = self.compress(small_net(), settings)
        begin_search(controller)
        controller.compression_rate = 0.5
        train(controller.model, sgd(controller.model))
        stripped = controller.strip()
        assert list(stripped.state_dict()) == list(self.fresh_like(stripped).state_dict())
        for module in stripped.modules():
            hooks = [value for name, value in vars(module).items() if name.endswith("_hooks")]
            assert not any(hooks)
        for name, tensor in stripped.state_dict().items():
            assert not ((tensor == 0) & tensor.signbit()).any(), f"{name} holds -0.0"

    def test_strip_keeps_the_users_hooks(self, settings: Any) -> None:
        controller = self.compress(small_net(), settings)
        controller.compression_rate = 0.5
        outputs(controller.model)  # quantization takes the ranges of activations from the first batch
        plain = outputs(controller.strip())
        controller.model.register_forward_hook(lambda module, args, out: out + 100.0)
        controller.model.register_forward_pre_hook(lambda module, args: (torch.zeros_like(args[0]),))
        hooked = outputs(controller.strip())
        assert (hooked.min() > 50) & (plain.max() < 50)
        assert torch.equal(hooked, hooked[:1].expand_as(hooked))  # every image is black

    def test_strip_does_not_change_the_original(self, settings: Any) -> None:
        controller = self.compress(small_net(), settings)
        controller.compression_rate = 0.5
        outputs(controller.model)
        before = {name: tensor.clone() for name, tensor in controller.model.state_dict().items()}
        stripped = controller.strip()
        with torch.no_grad():
            for parameter in stripped.parameters():
                parameter.fill_(7)
        assert stripped is not controller.model
        assert_same_bits(dict(controller.model.state_dict()), before)
        controller.compression_rate = 0.0
        assert_same_bits(dense_parameters(controller.model), self.parameters_at_rate_0(settings))

    # --- copies ----------------------------------------------------------------------------------------------

    def test_deep_copy_is_independent_and_complete(self, settings: Any) -> None:
        original = self.compress(small_net(), settings)
        begin_search(original)
        original.compression_rate = 0.3
        before, rates = outputs(original.model), rates_of(original)
        twin = copy.deepcopy(original)
        assert twin.model is not original.model

        rate = set_reachable(twin, 0.9)
        train(twin.model, sgd(twin.model))
        twin_rates = rates_of(twin)
        assert twin_rates.requested_rate == rate
        assert twin_rates.achieved_rate > rates.achieved_rate
        assert rates_of(original) == rates
        assert torch.equal(outputs(original.model), before)

        original.compression_rate = 0.0
        assert rates_of(twin) == twin_rates

    def test_deep_copy_of_the_model_alone_keeps_its_rate(self, settings: Any) -> None:
        controller = self.compress(small_net(), settings)
        begin_search(controller)
        controller.compression_rate = 0.5
        twin, before = copy.deepcopy(controller.model), outputs(controller.model)
        optimizer = sgd(twin)
        train(twin, optimizer)
        assert torch.equal(outputs(controller.model), before)
        controller.compression_rate = 0.0
        trained = outputs(twin)
        # What was removed stays removed: the copy's state is that of a controller at the copied rate.
        other = self.compress(small_net(seed=1), settings)
        begin_search(other)
        other.compression_rate = 0.5
        other.model.load_state_dict(twin.state_dict())
        assert torch.equal(outputs(other.model), trained)

    # --- the schedule ----------------------------------------------------------------------------------------

    def test_stages_follow_the_schedule(self, settings: Any) -> None:
        controller = self.compress(small_net(), settings, RISING)
        stages = [controller.compression_stage()]
        for _ in range(4):
            controller.scheduler.epoch_step()
            stages.append(controller.compression_stage())
        assert stages == [
            self.stage(settings, CompressionStage.UNCOMPRESSED),
            self.stage(settings, CompressionStage.UNCOMPRESSED),
            CompressionStage.PARTIALLY_COMPRESSED,
            CompressionStage.FULLY_COMPRESSED,
            CompressionStage.FULLY_COMPRESSED,
        ]

    def test_disabled_schedule_does_not_change_the_rate(self, settings: Any) -> None:
        controller = self.compress(small_net(), settings, RISING)
        for _ in range(2):
            controller.scheduler.epoch_step()
        controller.disable_scheduler()
        assert rates_of(controller).requested_rate == 0.25
        assert controller.compression_stage() is CompressionStage.FULLY_COMPRESSED
        for _ in range(3):
            controller.scheduler.epoch_step()
            controller.scheduler.step()
        assert rates_of(controller).requested_rate == 0.25
        controller.compression_rate = 0.0
        assert controller.compression_stage() is CompressionStage.FULLY_COMPRESSED
        controller.disable_scheduler()  # a second call changes nothing

    def test_steps_of_a_constant_schedule_change_nothing(self, settings: Any) -> None:
        controller = self.compress(small_net(), settings, ScheduleSettings(kind="constant", initial_rate=0.3))
        assert controller.compression_stage() is CompressionStage.FULLY_COMPRESSED
        before = outputs(controller.model)
        for _ in range(3):
            controller.scheduler.epoch_step()
            controller.scheduler.step()
        assert torch.equal(outputs(controller.model), before)

    # --- statistics and loss ---------------------------------------------------------------------------------

    def test_statistics_can_be_printed(self, settings: Any) -> None:
        controller = self.compress(small_net(), settings)
        controller.compression_rate = 0.5
        text = controller.statistics().to_str()
        assert f"{controller.compression_rate:.4f}" in text
        assert "classifier" in text

    def test_loss_is_a_finite_scalar(self, settings: Any) -> None:
        controller = self.compress(small_net(), settings)
        loss = controller.loss()
        assert loss.shape == ()
        assert torch.isfinite(loss)
