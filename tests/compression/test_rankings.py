"""Rankings that a search may try, and masks that forget what they mask."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kedro_aat.compression.controller import ModelController, RanksByTactic
from kedro_aat.compression.settings import MagnitudeSparsity
from kedro_aat.compression.sparsity.controller import MagnitudeSparsityController
from kedro_aat.search.tactics import Ranking
from kedro_aat.testing.training import BATCH, assert_same_bits, sgd, small_net, train
from tests.compression.composites import INT8, PRUNING, SPARSITY, compose
from tests.compression.filters.pruned import perceptron, pruned
from tests.compression.sparsity.sparse import WEIGHTS, sparse

L2, GLOBAL = Ranking(importance="l2", ranking="local"), Ranking(importance="l2", ranking="global")
LAMP, ABS = Ranking(importance="lamp", ranking="global"), Ranking(importance="abs", ranking="global")
TAYLOR = Ranking(importance="taylor", ranking="local")

MAKERS: dict[str, tuple[Callable[[], ModelController], Ranking]] = {
    "filters": (lambda: pruned(small_net(), BATCH["inputs"], round_to=1), GLOBAL),
    "sparsity": (lambda: sparse(small_net()), ABS),
    "composite": (lambda: searching(compose(PRUNING, INT8)), GLOBAL),
}


def searching(controller: ModelController) -> ModelController:
    controller.disable_scheduler()
    return controller


def masks(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers() if "mask" in name}


@pytest.fixture(params=MAKERS)
def case(request: pytest.FixtureRequest) -> tuple[Callable[[], ModelController], Ranking]:
    return MAKERS[request.param]


# --- what is offered -----------------------------------------------------------------------------------------------


def test_configured_ranking_is_offered_first_and_none_twice(
    case: tuple[Callable[[], ModelController], Ranking],
) -> None:
    make, other = case
    controller = make()
    assert isinstance(controller, RanksByTactic)
    assert len(set(controller.rankings)) == len(controller.rankings) > 1
    assert other in controller.rankings[1:]


def test_filters_offer_scales_of_norms_only_if_there_are_any() -> None:
    with_norms = pruned(small_net(), BATCH["inputs"], importance="l1")
    assert with_norms.rankings[0] == Ranking(importance="l1", ranking=with_norms.settings.ranking)
    names = {ranking.importance for ranking in with_norms.rankings}
    assert names == {"l1", "l2", "batch_norm_scale", "taylor"}
    without = pruned(perceptron(nn.ReLU()), torch.randn(4, 6))
    assert {ranking.importance for ranking in without.rankings} == {"l2", "taylor"}


def test_sparsity_offers_both_importances_and_none_with_a_pattern() -> None:
    assert sparse(small_net()).rankings == (LAMP, ABS)
    own = sparse(small_net(), importance="abs", ranking="local")
    assert own.rankings == (Ranking(importance="abs", ranking="local"), LAMP, ABS)
    assert MagnitudeSparsityController(small_net(), MagnitudeSparsity(pattern="2:4")).rankings == ()


def test_composite_offers_what_its_adaptive_algorithm_does() -> None:
    controller = compose(SPARSITY, INT8)
    assert controller.rankings == controller.adaptive.rankings == (LAMP, ABS)
    assert controller.first_target_rate == controller.adaptive.first_target_rate == 0.7
    assert controller.observe_gradients is None


def test_composite_observes_the_gradients_of_its_filters() -> None:
    controller = compose(PRUNING, INT8)
    adaptive: Any = controller.adaptive
    for weight, _ in adaptive._taylor.filters:
        weight.parameter.grad = weight.parameter.detach().clone()
    assert controller.observe_gradients is not None
    controller.observe_gradients()
    assert adaptive._taylor.sampled
    assert all(score.all() for score in adaptive._taylor.sampled.values())


# --- ranking ---------------------------------------------------------------------------------------------------------


def test_rates_after_rank_by_are_those_of_a_controller_with_such_settings() -> None:
    ranked, configured = sparse(small_net()), sparse(small_net(), 0.6, importance="abs")
    ranked.rank_by(ABS)
    ranked.compression_rate = 0.6
    assert_same_bits(masks(ranked.model), masks(configured.model))
    ranked.rank_by(LAMP)
    ranked.compression_rate = 0.0
    ranked.compression_rate = 0.6
    assert ranked.settings.importance == "lamp"
    pruner = pruned(small_net(), BATCH["inputs"], round_to=1)
    other = pruned(small_net(), BATCH["inputs"], round_to=1, ranking="global")
    pruner.rank_by(GLOBAL)
    pruner.compression_rate = other.compression_rate = 0.4
    assert_same_bits(masks(pruner.model), masks(other.model))


def test_a_name_that_the_algorithm_does_not_know_is_an_error() -> None:
    with pytest.raises(ValueError, match="importance"):
        sparse(small_net()).rank_by(Ranking(importance="taylor"))


def test_ranking_is_saved_and_restored(case: tuple[Callable[[], ModelController], Ranking]) -> None:
    make, ranking = case
    controller, restored = make(), make()
    assert "ranking" not in json.dumps(controller.get_state())  # as 0.1.0 wrote it
    controller.rank_by(ranking)
    controller.compression_rate = 0.3
    restored.model.load_state_dict(controller.model.state_dict())
    restored.load_state(json.loads(json.dumps(controller.get_state())))
    assert restored.get_state() == controller.get_state()
    for rate in (0.6, 0.2):  # of which the second shows that the masks forget
        controller.compression_rate = restored.compression_rate = rate
        assert_same_bits(dict(restored.model.state_dict()), dict(controller.model.state_dict()))


def test_state_of_0_1_0_has_the_configured_ranking() -> None:
    controller = sparse(small_net(), 0.5)
    state = controller.get_state()
    assert set(state) == {"requested_rate", "searching", "scheduler"}
    other = sparse(small_net())
    other.load_state(state)
    assert other.get_state() == state


def test_filters_without_sampled_gradients_are_ranked_by_l2() -> None:
    by_taylor, by_l2 = (pruned(small_net(), BATCH["inputs"], round_to=1) for _ in range(2))
    by_taylor.rank_by(TAYLOR)
    by_l2.rank_by(L2)
    by_taylor.compression_rate = by_l2.compression_rate = 0.4
    assert_same_bits(masks(by_taylor.model), masks(by_l2.model))


# --- masks that forget -----------------------------------------------------------------------------------------------


def forgetting(rate: float) -> MagnitudeSparsityController:
    controller = sparse(small_net())
    controller.rank_by(ABS)
    controller.compression_rate = rate
    return controller


def test_what_comes_back_begins_at_zero() -> None:
    controller = forgetting(0.8)
    model = controller.model
    masked = {name: model.get_parameter(name) == 0 for name in WEIGHTS}
    train(model, sgd(model))
    kept = {name: model.get_parameter(name).detach().clone() for name in WEIGHTS}
    controller.compression_rate = 0.3
    for name in WEIGHTS:
        weight = model.get_parameter(name)
        assert not weight[masked[name]].any()
        assert torch.equal(weight[~masked[name]], kept[name][~masked[name]])
    train(model, sgd(model))  # from where it learns
    assert any(bool(model.get_parameter(name)[masked[name]].any()) for name in WEIGHTS)


def test_without_a_ranking_of_the_search_what_comes_back_has_its_old_values() -> None:
    model = small_net()
    before = {name: model.get_parameter(name).detach().clone() for name in WEIGHTS}
    controller = sparse(model, 0.8)
    controller.compression_rate = 0.0
    assert_same_bits({name: model.get_parameter(name).detach() for name in WEIGHTS}, before)


@pytest.mark.parametrize(
    "controller",
    [
        lambda: sparse(small_net()),
        lambda: sparse(small_net(), ranking="local"),
        lambda: pruned(small_net(), BATCH["inputs"], round_to=1),
    ],
)
@pytest.mark.parametrize("rate", [0.3, 0.8])
def test_the_same_rate_again_changes_nothing(controller: Callable[[], ModelController], rate: float) -> None:
    ranked = controller()
    ranked.rank_by(ranked.rankings[0])
    ranked.compression_rate = rate
    weights, before = copy.deepcopy(dict(ranked.model.named_parameters())), masks(ranked.model)
    ranked.compression_rate = rate
    assert_same_bits(masks(ranked.model), before)
    torch.testing.assert_close(dict(ranked.model.named_parameters()), weights, rtol=0, atol=0)
