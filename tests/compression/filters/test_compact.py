"""A cut copy of a masked model computes, and learns, what the masked model would."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kedro_aat.compression.build import build_controller
from kedro_aat.compression.filters.compact import CompactModel, make_compact
from kedro_aat.compression.filters.controller import FilterPruningController
from kedro_aat.compression.filters.cutting import Cut
from kedro_aat.compression.filters.normalization import normalize_over_kept, recognize, set_kept
from kedro_aat.compression.masks import MASK, WeightMasks
from kedro_aat.compression.settings import Composite, FilterPruning, MagnitudeSparsity, Quantization
from kedro_aat.errors import ModelError
from kedro_aat.pipelines.digits.model import ResidualCNN
from kedro_aat.search.tactics import Ranking
from kedro_aat.testing.training import BATCH, SmallNet, assert_same_bits, small_net
from tests.compression.filters.pruned import TOLERANCE, difference, perceptron, pruned, zeroed

INPUTS = BATCH["inputs"]
VECTORS = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))


class Attentive(nn.Module):
    """Attention over 6 tokens of width 8: (B, 6, 8) -> (B, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 4, batch_first=True)
        self.classifier = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.attention(x, x, x, need_weights=False)[0].mean(1))
        return logits


def compact_of(controller: FilterPruningController, **options: Any) -> CompactModel:
    compact = controller.compact(**options)
    assert compact is not None
    return compact


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def kept_elements(model: nn.Module) -> dict[str, Tensor]:
    """1 for each element of a parameter that no mask covers."""
    buffers = dict(model.named_buffers())
    return {name: buffers.get(name + MASK, torch.ones_like(value)) for name, value in model.named_parameters()}


# --- what it computes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "batch"),
    [
        (small_net, INPUTS),
        (lambda: ResidualCNN((8, 16)), INPUTS),
        (lambda: perceptron(nn.ReLU()), VECTORS),
        (Attentive, torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0))),
    ],
)
def test_it_is_smaller_and_computes_the_same(make: Callable[[], nn.Module], batch: Tensor) -> None:
    torch.manual_seed(0)
    controller = pruned(make(), batch, rate=0.5, round_to=1)
    compact = compact_of(controller)
    numbers = [sum(each.numel() for each in model.parameters()) for model in (compact.model, controller.model)]
    assert numbers[0] == pytest.approx((1 - controller.achieved_rate) * numbers[1])
    assert difference(controller.model, compact.model, batch) < TOLERANCE
    assert not any(name.endswith(MASK) for name, _ in compact.model.named_buffers())


def test_making_it_changes_neither_the_model_nor_random_numbers() -> None:
    controller = pruned(small_net(), INPUTS, rate=0.5)
    before, seed = tensors(controller.model), torch.get_rng_state()
    compact_of(controller)
    assert_same_bits(controller.model.state_dict(), before)
    assert torch.equal(torch.get_rng_state(), seed)


def test_what_is_written_lands_in_the_elements_that_are_kept() -> None:
    controller = pruned(small_net(), INPUTS, rate=0.5)
    masked, compact = controller.model, compact_of(controller)
    before, kept = tensors(masked), kept_elements(masked)
    with torch.no_grad():
        for tensor in [*compact.model.parameters(), *compact.model.buffers()]:
            tensor.add_(1)
    compact.write()
    after = tensors(masked)
    torch.testing.assert_close(after["stem.0.weight"], before["stem.0.weight"] + kept["stem.0.weight"])
    torch.testing.assert_close(after["stem.1.running_mean"], before["stem.1.running_mean"] + kept["stem.1.weight"])
    torch.testing.assert_close(after["classifier.bias"], before["classifier.bias"] + 1)
    assert after["stem.1.num_batches_tracked"] == before["stem.1.num_batches_tracked"] + 1
    assert difference(masked, compact.model, INPUTS) < TOLERANCE


def test_the_same_cut_reads_the_present_weights_and_another_cut_is_made_anew() -> None:
    controller = pruned(small_net(), INPUTS, rate=0.5, round_to=1)
    first = compact_of(controller)
    with torch.no_grad():
        controller.model.get_parameter("classifier.bias").add_(1)
        controller.model.get_parameter("conv.bias").requires_grad_(False)
    assert controller.compact(first) is first
    assert difference(controller.model, first.model, INPUTS) < TOLERANCE
    assert not first.model.get_parameter("conv.bias").requires_grad
    controller.compression_rate = 0.7
    second = compact_of(controller, last=first)
    assert second is not first
    assert difference(controller.model, second.model, INPUTS) < TOLERANCE


# --- when there is none ------------------------------------------------------------------------------------------


def test_nothing_is_copied_where_nothing_is_cut() -> None:
    assert pruned(small_net(), INPUTS).compact() is None
    assert build_controller(small_net(), MagnitudeSparsity(), example_input=INPUTS).compact() is None
    parts = Composite(algorithms=(FilterPruning(), Quantization()))
    composite = build_controller(small_net(), parts, example_input=INPUTS)
    composite.disable_scheduler()
    composite.compression_rate = 0.5
    assert composite.compact() is None


def test_a_rate_that_may_change_within_the_epoch_is_trained_with_masks() -> None:
    controller = FilterPruningController(small_net(), FilterPruning(), steps_per_epoch=4, example_input=INPUTS)
    controller.compression_rate = 0.5
    assert controller.compact() is not None
    assert controller.compact(to_train=True) is None  # by its own schedule
    controller.disable_scheduler()
    assert controller.compact(to_train=True) is not None
    controller.scheduler.follow_rate_path((0.3, 0.5))  # type: ignore[union-attr]
    controller.scheduler.epoch_step()
    assert controller.compact() is not None
    assert controller.compact(to_train=True) is None
    controller.scheduler.epoch_step()
    assert controller.compact(to_train=True) is not None


def test_scores_that_follow_the_training_need_its_gradients_until_a_search_samples_them() -> None:
    controller = pruned(small_net(), INPUTS, rate=0.5, importance="taylor")
    assert controller.compact() is not None
    assert controller.compact(to_train=True) is None
    controller.rank_by(Ranking(importance="taylor", ranking="local"))
    assert controller.compact(to_train=True) is not None


class Supervised(SmallNet):
    """In training, it has a second classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        if self.training:
            logits = logits + self.auxiliary(self.stem(x)).mean((2, 3))
        return logits


def test_layers_that_are_used_in_training_only_are_cut_along() -> None:
    torch.manual_seed(0)
    controller = pruned(Supervised(), INPUTS, rate=0.5)
    compact = compact_of(controller)
    auxiliary = compact.model.get_submodule("auxiliary")
    assert isinstance(auxiliary, nn.Conv2d)
    assert auxiliary.in_channels < 8
    for mode in (True, False):
        expected, out = controller.model.train(mode)(INPUTS), compact.model.train(mode)(INPUTS)
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


class Reshaped(SmallNet):
    """In training, it relies on the width of its first layer."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.stem(x).view(len(x), 8, *x.shape[2:])
        return super().forward(x)


def test_a_model_that_trains_in_another_way_than_it_runs_keeps_its_masks() -> None:
    controller = pruned(Reshaped(), INPUTS, rate=0.5)
    with pytest.raises(ModelError, match=r"^No cut copy of Reshaped can be trained: .*invalid for input of size"):
        controller.compact()


def hook_a_layer(model: SmallNet) -> None:
    model.stem.register_forward_hook(lambda module, args, out: None)


def hook_a_parameter(model: SmallNet) -> None:
    model.conv.weight.register_hook(lambda gradient: 0.5 * gradient)


@pytest.mark.parametrize("hook", [hook_a_layer, hook_a_parameter])
def test_a_model_with_hooks_keeps_its_masks(hook: Callable[[SmallNet], None]) -> None:
    model = small_net()
    hook(model)
    with pytest.raises(ModelError, match="it has hooks"):
        pruned(model, INPUTS, rate=0.5).compact()


class Sequential(nn.Module):
    """A recurrent layer and a normalization, with named inputs: (B, 7, 6) -> (B, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent, self.norm = nn.LSTM(6, 8, batch_first=True), nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, None]:
        hidden = self.norm(self.recurrent(x)[0])
        return self.head(hidden[torch.arange(len(x)), lengths]), None


def test_any_layers_and_any_inputs() -> None:
    torch.manual_seed(0)
    kept = [1, 2, 6]
    places = (("recurrent", "hidden_l0"), ("norm", "channels"), ("head", "inputs"))
    plan = [Cut(layer=layer, kind=kind, size=8, kept=tuple(kept)) for layer, kind in places]
    model: Any = zeroed(Sequential(), *(cut.model_dump() for cut in plan[:2]))
    batch = {"lengths": torch.tensor([3]), "x": torch.randn(1, 7, 6)}
    normalization = recognize(model.norm, torch.randn(1, 7, 8))
    assert normalization is not None
    normalize_over_kept(model.norm, normalization)
    set_kept(model.norm, torch.zeros(8).index_fill(0, torch.tensor(kept), 1))
    compact = make_compact(model, WeightMasks([]), plan, np.arange(8) < 3, batch)
    assert compact.model.get_submodule("recurrent").hidden_size == 3
    for mode in (True, False):
        out, expected = compact.model.train(mode)(**batch)[0], model.train(mode)(**batch)[0]
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    before = tensors(model)
    with compact.trained_by([optimizer]):
        compact.model(**batch)[0].square().sum().backward()
        optimizer.step()
    rows = torch.isin(torch.arange(32) % 8, torch.tensor(kept))
    is_same = (model.recurrent.weight_ih_l0 == before["recurrent.weight_ih_l0"]).all(1)
    assert torch.equal(is_same, ~rows)
    torch.testing.assert_close(compact.model(**batch)[0], model(**batch)[0], rtol=1e-5, atol=1e-5)


# --- training ----------------------------------------------------------------------------------------------------

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01, amsgrad=True),
    "adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=0.1, initial_accumulator_value=0.1),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, lr=0.01, momentum=0.9, centered=True),
    "nadam": lambda parameters: torch.optim.NAdam(parameters, lr=0.01),
    "asgd": lambda parameters: torch.optim.ASGD(parameters, lr=0.1),
    "rprop": lambda parameters: torch.optim.Rprop(parameters, lr=0.01),
    "adadelta": torch.optim.Adadelta,
}


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    for _ in range(number):
        optimizer.zero_grad()
        F.mse_loss(model(VECTORS), VECTORS[:, :3].sin()).backward()
        optimizer.step()


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_it_learns_like_the_masked_model_whatever_the_optimizer(make: Callable[[Any], torch.optim.Optimizer]) -> None:
    """The state of the optimizer moves back and forth, and survives a change of the rate."""
    torch.manual_seed(0)
    controller = pruned(perceptron(nn.ReLU()), VECTORS, rate=0.4, round_to=1)
    other = copy.deepcopy(controller)
    optimizer, other_optimizer = make(controller.model.parameters()), make(other.model.parameters())
    for rate in (0.4, 0.4, 0.6):
        if rate != 0.4:
            controller.compression_rate = other.compression_rate = rate
        steps(controller.model, optimizer, 2)
        compact = compact_of(other, to_train=True)
        assert compact.can_be_trained_by([other_optimizer])
        with compact.trained_by([other_optimizer]):
            steps(compact.model, other_optimizer, 2)
        # Weights whose inputs are masked still follow the momentum in the masked model, without effect.
        left, right = (tensors(compact_of(each).model) for each in (controller, other))
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-4)
    states = [each.state_dict()["state"] for each in (optimizer, other_optimizer)]
    shapes = [{(n, key): getattr(v, "shape", ()) for n in state for key, v in state[n].items()} for state in states]
    assert shapes[0] == shapes[1]
    assert [id(p) for p in other_optimizer.param_groups[0]["params"]] == [id(p) for p in other.model.parameters()]


def test_the_state_of_elements_that_are_cut_stays_as_it_is() -> None:
    controller = pruned(perceptron(nn.ReLU()), VECTORS, round_to=1)
    optimizer = OPTIMIZERS["sgd"](controller.model.parameters())
    steps(controller.model, optimizer, 2)
    weight = controller.model.get_parameter("0.weight")
    before = optimizer.state[weight]["momentum_buffer"].clone()
    controller.compression_rate = 0.5
    compact = compact_of(controller, to_train=True)
    with compact.trained_by([optimizer]):
        steps(compact.model, optimizer, 2)
    is_same = optimizer.state[weight]["momentum_buffer"] == before
    is_kept = kept_elements(controller.model)["0.weight"].bool()
    assert is_same[~is_kept].all()
    assert not is_same[is_kept].all()


def test_an_error_gives_the_optimizer_back_to_the_masked_model() -> None:
    controller = pruned(perceptron(nn.ReLU()), VECTORS, rate=0.5)
    optimizer = OPTIMIZERS["adam"](controller.model.parameters())
    compact = compact_of(controller, to_train=True)
    with pytest.raises(RuntimeError), compact.trained_by([optimizer]):
        compact.model(VECTORS[:, :5])
    steps(controller.model, optimizer, 1)
    assert {id(each) for each in optimizer.state} == {id(each) for each in controller.model.parameters()}


def test_only_optimizers_that_treat_each_number_alone_are_known_to_work() -> None:
    controller = pruned(perceptron(nn.ReLU()), VECTORS, rate=0.5)
    compact, parameters = compact_of(controller), list(controller.model.parameters())
    assert compact.can_be_trained_by([OPTIMIZERS["sgd"](parameters[:2]), OPTIMIZERS["adam"](parameters[2:])])
    assert not compact.can_be_trained_by([torch.optim.LBFGS(parameters)])
    assert not compact.can_be_trained_by([OPTIMIZERS["sgd"]([*parameters, nn.Parameter(torch.zeros(1))])])


def test_old_gradients_do_not_pass_for_new_ones() -> None:
    controller = pruned(perceptron(nn.ReLU()), VECTORS, rate=0.5)
    optimizer = OPTIMIZERS["sgd"](controller.model.parameters())
    steps(controller.model, optimizer, 1)
    with compact_of(controller, to_train=True).trained_by([optimizer]):
        pass
    assert all(parameter.grad is None for parameter in controller.model.parameters())
