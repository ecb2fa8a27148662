"""Chooses among the models that the searches of a run kept, for another budget than the run's; nothing is trained.

The models of all stages are tried, the best by the objective first, and the first one whose files keep budget and
limits is delivered. What keeps a budget keeps a larger one, too, and what a model costs does not depend on the budget.
So a larger budget never gives a worse file by the objective.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from kedro_aat.budget import Budget, DropSettings, GuardSettings
from kedro_aat.compression.controller import ModelController
from kedro_aat.delivery.candidates import Candidate, controller_at, rejection
from kedro_aat.delivery.costs import Costs, cost_by, kept_costs
from kedro_aat.delivery.deliver import Exported, deliver
from kedro_aat.delivery.finished import FinishedSteps
from kedro_aat.delivery.on_device import fall_back, is_unreachable
from kedro_aat.delivery.results import BaselineEvaluation, BudgetResult, ExportResult, SearchResult
from kedro_aat.errors import DamagedCheckpointError, DeviceError, ExportError, ends_run
from kedro_aat.export.settings import ExportSettings
from kedro_aat.model_inputs import ModelInputs
from kedro_aat.search.policy import Goal
from kedro_aat.training.checkpoints import CheckpointStore
from kedro_aat.training.checkpoints.recovery import records_of
from kedro_aat.training.data import Data, example_input
from kedro_aat.training.records import EpochRecord, pareto_front
from kedro_aat.training.settings import TrainingSettings


@dataclass(frozen=True)
class Option:
    """A model that a search kept.

    Attributes:
        name: Name that people read; unique within a run.
        stage: Search stage that made it: 1, 2 or 3.
        record: Its epoch, with rate and metric.
        make: Loads it.
    """

    name: str
    stage: int
    record: EpochRecord
    make: Callable[[], Candidate]


def chosen_budget(evaluation: BaselineEvaluation, choice: DropSettings | None) -> BudgetResult:
    """What is tolerated, if another drop is chosen instead of the run's.

    Args:
        evaluation: The baseline on the validation split.
        choice: The other drop; None for the run's own.
    """
    if choice is None:
        return evaluation.budget
    drop = choice.drop_from(evaluation.validation, higher_is_better=evaluation.metric.higher_is_better)
    lowest = evaluation.budget_of(evaluation.budget.model_copy(update={"drop": drop})).lowest_tolerated
    return BudgetResult(kind=choice.kind, drop=drop, lowest_tolerated=lowest)


def options_of(
    stages: Sequence[tuple[int, ModelController, SearchResult]], checkpoint_store: CheckpointStore
) -> list[Option]:
    """The models that the searches kept: those on each stage's Pareto front, and the one that the stage returned.

    Args:
        stages: Number of each stage that was searched, its controller at any rate, and the result of its search.
        checkpoint_store: Store that keeps the runs.
    """
    options: list[Option] = []
    for number, controller, result in stages:
        for row in kept_records(checkpoint_store, result.run, result.best_checkpoint):
            where = f"checkpoint {row.checkpoint}" if number == 1 else f"stage {number}, checkpoint {row.checkpoint}"
            name = f"{controller.settings.algorithm} at rate {row.achieved_rate:.4f} ({where})"
            make = _Loader(name, number, controller, checkpoint_store, result.run, row)
            options.append(Option(name, number, row, make))
    return options


def kept_records(checkpoint_store: CheckpointStore, run: str, returned: int | None) -> list[EpochRecord]:
    """The epochs of the compressed models that a search kept, by falling rate.

    They are those on its Pareto front, and the one that it returned.

    Args:
        checkpoint_store: Store that keeps its run.
        run: Name of the run's folder.
        returned: Number of the checkpoint that the search returned; None if there is none.
    """
    available = checkpoint_store.numbers_of(run)
    history = _history(checkpoint_store, run, available)
    kept = pareto_front(history, available) | ({returned} & {*available})
    rows = [row for row in history if row.checkpoint in kept and row.achieved_rate > 0]
    return sorted(rows, key=lambda row: -row.achieved_rate)


def choose(
    options: Sequence[Option],
    baseline_model: nn.Module,
    validation_data: Data,
    budget: Budget,
    training: TrainingSettings,
    settings: ExportSettings,
    finished: FinishedSteps | None = None,
    goal: Goal = "size",
    guards: Sequence[GuardSettings] = (),
) -> tuple[Exported | None, ExportResult]:
    """Delivers the best of the models whose files keep a budget and the limits.

    Args:
        options: The models that the searches kept.
        baseline_model: The uncompressed model.
        validation_data: The split that judges the files.
        budget: The budget, with the guards of the run.
        training: Settings that define the metric.
        settings: Tolerances, objective and limits.
        finished: Keeps exports, judgments and measurements, which are then not repeated; None keeps nothing.
        goal: Whether the objective says which model is best, or the metric.
        guards: Further metrics, whose tolerated drops are in `also` of the budget.

    Returns:
        The delivered model with its files, and what is known of it; or None, and why no model is delivered.
    """
    finished = finished or FinishedSteps()
    rejected: dict[str, str] = {}
    inputs = example_input(validation_data, max(settings.batch_sizes), training, baseline_model)
    decides = settings
    try:
        costs = _costs(options, budget, decides, inputs, finished, rejected)
    except DeviceError as error:
        decides = fall_back(settings, str(error))
        costs = _costs(options, budget, decides, inputs, finished, rejected)
    within = [option for option in options if option.name in costs and option.record.keeps(budget)]
    within.sort(key=lambda option: -option.record.margin)
    if goal == "size":  # and among equals, the most accurate one
        within.sort(key=lambda option: costs[option.name])
    reason = f"Chosen from the {len(options)} models that the searches kept, without training."
    unreachable = False
    for option in within:
        try:
            exported, result = deliver(
                [option.make()],
                iter(()),
                baseline_model,
                validation_data,
                budget,
                training,
                decides,
                reason,
                finished,
                goal,
                guards,
            )
        except (ExportError, DamagedCheckpointError) as error:
            rejected[option.name] = rejection(option.name, error)
            continue
        if exported is not None:
            return exported, result.model_copy(update={"rejected": rejected | result.rejected})
        rejected |= result.rejected
        if unreachable := is_unreachable(decides, [result.baseline, *result.candidates]):
            break
    words = f"None of the {len(options)} models that the searches kept is within the chosen budget."
    if unreachable:
        words = (
            f"Models within the chosen budget: {len(within)}. The device measured no file any more, so that its limits "
            "cannot be checked. When it is back, choose again."
        )
    elif within:
        words = f"Models within the chosen budget: {len(within)}. None of their files keeps the budget and the limits."
    _, result = deliver(
        [], iter(()), baseline_model, validation_data, budget, training, settings, words, finished, goal, guards
    )
    return None, result.model_copy(update={"rejected": rejected | result.rejected})


@dataclass(frozen=True)
class _Loader:
    """Loads a model that a search kept."""

    name: str
    stage: int
    controller: ModelController
    checkpoint_store: CheckpointStore
    run: str
    record: EpochRecord

    def __call__(self) -> Candidate:
        controller = controller_at(self.controller, self.checkpoint_store, self.run, self.record.checkpoint)
        return Candidate(
            name=self.name,
            stage=self.stage,
            model=controller.strip().cpu(),
            rate=self.record.achieved_rate,
            weight_names=controller.weight_names,
            requested_rate=self.record.requested_rate,
            standard_error=self.record.standard_error,
            checkpoint=self.record.checkpoint,
        )


def _history(checkpoint_store: CheckpointStore, run: str, available: Sequence[int]) -> list[EpochRecord]:
    """All epochs of a run, as its last undamaged checkpoint knows them."""
    for number in reversed(available):
        try:
            return records_of(checkpoint_store.load(run, number))
        except DamagedCheckpointError:
            continue
    return []


def _costs(
    options: Sequence[Option],
    budget: Budget,
    settings: ExportSettings,
    inputs: ModelInputs,
    finished: FinishedSteps,
    rejected: dict[str, str],
) -> dict[str, float]:
    """What models cost by the objective, by name; what cannot be loaded or exported is rejected.

    Latencies depend on what is measured beside a model, so they are those of all options together.

    Raises:
        DeviceError: If the objective needs the device, and it does not measure one of them.
    """
    is_timed = settings.objective_kind == "latency"

    def measured(some: Sequence[tuple[Option, Candidate]]) -> list[Costs]:
        models = [candidate.model.eval() for _, candidate in some]
        rates = [candidate.rate for _, candidate in some]
        return kept_costs("costs", models, rates, inputs, settings, finished)

    loaded: list[tuple[Option, Candidate]] = []
    costs: dict[str, float] = {}
    for option in options:
        if not is_timed and not option.record.keeps(budget):
            continue
        try:
            pair = option, option.make()
            if is_timed:
                loaded.append(pair)
            else:
                costs[option.name] = cost_by(settings, measured([pair])[0])
        except DeviceError:
            raise
        except Exception as error:
            if ends_run(error) and not isinstance(error, DamagedCheckpointError):
                raise
            rejected[option.name] = rejection(option.name, error)
    if loaded:
        costs = {pair[0].name: cost_by(settings, each) for pair, each in zip(loaded, measured(loaded), strict=True)}
    return costs
