"""What a search's tactics change in the training: the learning rate within an epoch, the ranking, the distillation."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kedro_aat import TrainingRunner
from kedro_aat.budget import Budget
from kedro_aat.compression.filters.controller import FilterPruningController
from kedro_aat.compression.settings import FilterPruning
from kedro_aat.compression.sparsity.controller import MagnitudeSparsityController
from kedro_aat.pipelines.digits.baseline import Uncompressed
from kedro_aat.search.policy import Epoch, EpochResult, Problem, SearchState, Stop
from kedro_aat.search.tactics import Ranking, Tactic
from kedro_aat.testing.training import assert_same_bits
from kedro_aat.training.checkpoints import CheckpointStore
from kedro_aat.training.default import LEAST_EPOCH_COST, NUM_SAMPLED_BATCHES, DefaultTraining
from kedro_aat.training.loop import adaptive_problem, fine_tune
from kedro_aat.training.progress import LoopProgress
from kedro_aat.training.records import EpochRecord, epochs_used
from tests.compression.composites import INT8, PRUNING
from tests.compression.composites import compose as composite_of
from tests.nets import SmallNet, images
from tests.scripted import ScriptedController, ScriptedModel
from tests.training.training_run import TRAIN, VALIDATION, TrainingRun, make_sparse, plain_sgd, settings, user_function

TAYLOR = Ranking(importance="taylor", ranking="local")


def prune(model: nn.Module, rate: float = 0.0, **options: Any) -> FilterPruningController:
    controller = FilterPruningController(model, FilterPruning(round_to=1, **options), example_input=TRAIN["inputs"][:2])
    controller.disable_scheduler()
    controller.compression_rate = rate
    return controller


def pruned_run(rate: float = 0.0, **changes: Any) -> TrainingRun:
    return TrainingRun(compress=lambda model: prune(model, rate), **changes)


# --- the learning rate within an epoch -----------------------------------------------------------------------------


def learning_rates(run: TrainingRun, scale: float, scale_at_end: float | None) -> list[float]:
    """The learning rate in each step of an epoch, as shares of the configured one."""
    found: list[float] = []
    step = run.runner.optimizer.step

    def recording(*args: Any) -> Any:
        found.append(run.runner.learning_rate or 0.0)
        return step(*args)

    run.runner.optimizer.step = recording
    with run.runner.annealing(scale, scale_at_end):
        run.runner.train_epoch()
    del run.runner.optimizer.step
    return [rate / 0.1 for rate in found]


def searching_run(**changes: Any) -> TrainingRun:
    run = TrainingRun(compress=lambda model: MagnitudeSparsityController(model, **changes), optimizer=plain_sgd(0.1))
    run.runner.set_rate((0.5,))
    return run


def test_learning_rate_moves_linearly_within_the_epoch() -> None:
    run = searching_run(steps_per_epoch=6)
    middles = [(step + 0.5) / 6 for step in range(6)]
    assert learning_rates(run, 3.0, 1.0) == pytest.approx([3 - 2 * share for share in middles])
    assert learning_rates(run, 1.0, 4.0) == pytest.approx([1 + 3 * share for share in middles])
    assert learning_rates(run, 2.0, None) == pytest.approx([2.0] * 6)


def test_learning_rate_is_the_mean_while_the_number_of_steps_is_unknown() -> None:
    run = searching_run()
    assert learning_rates(run, 3.0, 1.0) == pytest.approx([2.0] * 6)
    assert learning_rates(run, 3.0, 1.0)[0] > 2.5  # they have been counted


@pytest.mark.parametrize("controller", [make_sparse, Uncompressed])
def test_learning_rate_is_the_mean_without_steps_of_the_scheduler(controller: Callable[[nn.Module], Any]) -> None:
    """Neither a training function that never steps the scheduler nor a controller without one anneals."""
    run = TrainingRun(compress=controller, optimizer=plain_sgd(0.1), train_epoch=user_function("train_epoch"))
    run.runner.set_rate((0.5,))
    with run.runner.annealing(3.0, 1.0):
        run.runner.train_epoch()
        assert run.runner.learning_rate == pytest.approx(0.2)
    assert run.runner.learning_rate == pytest.approx(0.2)


def test_controller_can_be_copied_after_an_epoch_even_if_it_failed() -> None:
    run = searching_run(steps_per_epoch=6)

    def fail() -> None:
        with run.runner.annealing(2.0, 1.0):
            assert run.runner.compression_controller.scheduler.on_step is not None  # type: ignore[attr-defined]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    learning_rates(run, 2.0, 1.0)
    scheduler: Any = run.runner.compression_controller.scheduler
    assert scheduler.on_step is None
    assert "on_step" not in scheduler.get_state()
    copy.deepcopy(run.controller)
    pickle.dumps(run.controller)


def test_composite_anneals_through_its_adaptive_algorithm() -> None:
    controller: Any = composite_of(PRUNING, INT8)
    controller.disable_scheduler()
    shares: list[float] = []
    controller.steps_per_epoch = 4
    controller.scheduler.on_step = shares.append
    controller.scheduler.epoch_step()
    for _ in range(4):
        controller.scheduler.step()
    assert shares == [0.125, 0.375, 0.625, 0.875]
    controller.scheduler.on_step = None
    assert controller.scheduler.on_step is None


def test_scheduler_of_a_user_needs_no_more_than_to_follow_a_path() -> None:
    class Follower:
        path: tuple[float, ...] = ()

        def follow_rate_path(self, path: tuple[float, ...]) -> None:
            self.path = path

    model = ScriptedModel(0.0)
    controller: Any = ScriptedController(model)
    runner = TrainingRunner(model, controller, TrainingRun().training.callables())
    runner.set_rate((0.1,))
    controller.scheduler = Follower()
    runner.set_rate((0.2, 0.4))
    assert controller.scheduler.path == (0.2, 0.4)
    with runner.annealing(3.0, 1.0):
        assert runner.lr_scale == 2.0


# --- rankings, and the gradients that they need --------------------------------------------------------------------


def taylor_scores(model: nn.Module, batches: list[Any]) -> Tensor:
    """By hand: squares of the sums of weight times gradient over each filter of `conv`, added up over the batches."""
    model.eval()
    total = torch.zeros(len(model.get_parameter("conv.weight")))
    for inputs, targets in batches:
        model.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        weight = model.get_parameter("conv.weight")
        assert weight.grad is not None
        total += (weight * weight.grad).detach().flatten(1).sum(1).square()
    return total


def test_taylor_ranks_by_the_gradients_of_the_first_batches() -> None:
    run = pruned_run(train=images(16 * (NUM_SAMPLED_BATCHES + 2)), optimizer=plain_sgd(0.0))
    before = run.weights
    batches = list(run.training.train_batches(0))
    observed = taylor_scores(copy.deepcopy(run.model), [batch[:2] for batch in batches[:NUM_SAMPLED_BATCHES]])
    run.runner.use(Tactic(ranking=TAYLOR))
    assert_same_bits(run.weights, before)
    assert all(parameter.grad is None for parameter in run.model.parameters())
    run.controller.compression_rate = 0.4
    kept = run.model.get_parameter("conv.weight").flatten(1).any(1)
    assert not kept.all()
    assert observed[kept].min() > observed[~kept].max()


def test_sampled_gradients_are_used_once() -> None:
    run = pruned_run()
    run.runner.use(Tactic(ranking=TAYLOR))
    controller: Any = run.controller
    assert controller._taylor.sampled
    controller.compression_rate = 0.4
    assert not controller._taylor.sampled


def test_gradients_that_were_sampled_in_vain_do_not_count() -> None:
    once, twice = pruned_run(), pruned_run()
    twice.runner.use(Tactic(ranking=TAYLOR))
    for run in (once, twice):
        run.runner.use(Tactic(ranking=TAYLOR))
    controllers: list[Any] = [once.controller, twice.controller]
    first, second = (controller._taylor.sampled for controller in controllers)
    assert all(torch.equal(first[place], second[place]) for place in first)


def test_sampling_gradients_keeps_the_mode_of_every_module() -> None:
    run = pruned_run()
    run.model.train()
    run.model.get_submodule("conv").eval()
    before = [module.training for module in run.model.modules()]
    run.runner.use(Tactic(ranking=TAYLOR))
    assert [module.training for module in run.model.modules()] == before


def test_a_tactic_without_a_ranking_keeps_the_configured_one() -> None:
    run = pruned_run()
    run.runner.use(Tactic())
    assert "ranking" not in run.controller.get_state()


# --- distillation --------------------------------------------------------------------------------------------------


def distilling(**changes: Any) -> DefaultTraining:
    torch.manual_seed(3)
    teacher = SmallNet()
    torch.manual_seed(0)
    model = SmallNet()
    return DefaultTraining(model, settings(optimizer=plain_sgd(0.1), **changes), TRAIN, VALIDATION, teacher=teacher)


def trained(training: DefaultTraining) -> dict[str, Tensor]:
    runner = TrainingRunner(training.model, Uncompressed(training.model), training.callables())
    runner.reset_training()
    runner.train_epoch()
    return dict(training.model.state_dict())


def test_without_distillation_the_model_learns_from_the_targets_alone() -> None:
    training, on = distilling(), distilling()
    training.distill(False)
    on.distill(False)
    on.distill(True)
    alone = trained(training)
    assert_same_bits(alone, trained(distilling(distillation=None)))
    taught = trained(on)
    assert_same_bits(taught, trained(distilling()))
    assert any(not torch.equal(taught[name], tensor) for name, tensor in alone.items())


def test_distillation_is_saved_and_restored() -> None:
    training, other = distilling(), distilling()
    assert "distills" not in training.state_dict()  # as 0.1.0 wrote it
    training.distill(False)
    other.load_state_dict(training.state_dict())
    assert_same_bits(trained(other), trained(training))
    other.load_state_dict(distilling().state_dict())
    assert "distills" not in other.state_dict()


def test_training_says_what_it_can_do() -> None:
    can = distilling().callables()
    assert can.sample_gradients is not None
    assert can.distill is not None
    assert can.cost is not None
    cannot = distilling(distillation=None, train_epoch=user_function("train_epoch")).callables()
    assert (cannot.sample_gradients, cannot.distill, cannot.cost) == (None, None, None)


# --- costs ---------------------------------------------------------------------------------------------------------


def test_an_epoch_of_a_cut_copy_costs_its_share_of_the_macs() -> None:
    costs = []
    for rate in (0.0, 0.2, 0.9):
        run = pruned_run(rate)
        run.train_epoch()
        costs.append(run.runner.epoch_cost)
        share: float = run.controller.macs_share  # type: ignore[attr-defined]
        assert costs[-1] == max(share, LEAST_EPOCH_COST)
    assert costs[0] == 1.0 > costs[1] > costs[2] == LEAST_EPOCH_COST == 0.4


def test_an_epoch_without_a_cut_copy_costs_a_whole_one() -> None:
    compiled_away = pruned_run(0.9)
    compiled_away.training._controller = None
    compiled_away.train_epoch()
    assert compiled_away.runner.epoch_cost == 1.0
    own = pruned_run(0.9, train_epoch=user_function("train_epoch"))
    own.train_epoch()
    assert own.runner.epoch_cost == 1.0


def record(cost: float, *, trained: bool = True) -> EpochRecord:
    fields: dict[str, Any] = dict.fromkeys(EpochRecord.__dataclass_fields__, 0)
    return EpochRecord(**fields | {"cost": cost, "trained": trained})


@pytest.mark.parametrize(
    ("costs", "expected"), [([], 0), ([1.0, 1.0], 2), ([0.4], 1), ([0.4] * 5, 2), ([0.4] * 6, 3), ([0.1] * 10, 1)]
)
def test_epochs_used_are_the_sum_of_their_costs_rounded_up(costs: list[float], expected: int) -> None:
    assert epochs_used([record(0.0, trained=False), *map(record, costs)]) == expected


def test_a_validation_uses_no_epoch_whatever_an_older_version_wrote() -> None:
    assert epochs_used([record(1.0, trained=False)]) == 0


# --- through the loop ----------------------------------------------------------------------------------------------


class Asking:
    """A policy that asks for a list of epochs."""

    def __init__(self, *moves: Epoch) -> None:
        self.moves, self.told = moves, list[EpochResult]()
        self.maximal_total_epochs = len(moves)

    def initial(self, problem: Problem) -> SearchState:
        return SearchState()

    def ask(self, state: SearchState) -> Epoch | Stop:
        return self.moves[len(self.told)] if len(self.told) < len(self.moves) else state.stop("It is over.")

    def tell(self, state: SearchState, result: EpochResult) -> SearchState:
        self.told.append(result)
        return state

    def load(self, state: str) -> SearchState:
        return SearchState()


def test_the_loop_tells_costs_and_follows_tactics(tmp_path: Path) -> None:
    run = pruned_run(optimizer=plain_sgd(0.1))
    run.controller.steps_per_epoch = run.training.steps_per_epoch  # type: ignore[attr-defined]
    budget = Budget(baseline=0.5, drop=0.5)
    problem = adaptive_problem(
        run.runner.compression_controller,
        budget,
        minimal_rate=0.0,
        maximal_rate=0.9,
        callables=run.training.callables(),
    )
    assert problem.can_sample
    assert not problem.can_distill
    assert problem.rankings == prune(SmallNet()).rankings
    policy = Asking(
        Epoch(train=False, new_optimizer=True),
        Epoch(rate_path=(0.8,), lr_scale=2.0, lr_scale_at_end=1.0, tactic=Tactic(ranking=TAYLOR), new_optimizer=True),
        Epoch(),
    )
    with CheckpointStore(tmp_path).open({}) as checkpoints:
        ended = fine_tune(run.runner, policy, problem, budget, checkpoints, LoopProgress(verbose=False, total=None))
    assert [result.cost for result in policy.told] == [0.0, *[row.cost for row in ended.history[1:]]]
    assert all(LEAST_EPOCH_COST <= row.cost < 1 for row in ended.history[1:])
    assert ended.history[1].learning_rate == pytest.approx(0.1 * (2 - 5.5 / 6))
    assert ended.history[2].learning_rate == pytest.approx(0.1)
    assert [row.tactic for row in ended.history] == [None, Tactic(ranking=TAYLOR), Tactic(ranking=TAYLOR)]
