"""Several algorithms on one model: the search sets the rate of one, the others follow their own schedules."""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import nn

from kedro_aat.compression.controller import CompressionReport, CompressionStage, ModelController
from kedro_aat.compression.distillation import DistillationLoss
from kedro_aat.compression.filters.controller import FilterPruningController
from kedro_aat.compression.filters.cutting import Cut
from kedro_aat.compression.layer_table import LayerTables
from kedro_aat.compression.own_buffers import exclude_from_ddp
from kedro_aat.compression.quantization.controller import QuantizationController
from kedro_aat.compression.quantization.fake import refuse_compressed
from kedro_aat.compression.schedule import PathScheduler
from kedro_aat.compression.scheduled import ScheduledController
from kedro_aat.compression.settings import Composite
from kedro_aat.compression.sparsity.controller import MagnitudeSparsityController
from kedro_aat.errors import ConfigurationError
from kedro_aat.model_inputs import ModelInputs
from kedro_aat.search.tactics import Ranking

CONTROLLERS: dict[str, type[ScheduledController[Any]]] = {
    controller.name: controller
    for controller in (FilterPruningController, MagnitudeSparsityController, QuantizationController)
}


class CompositeController(ModelController):
    """Compresses one model with several algorithms.

    In any order of the settings, filters are masked first, then single weights, and the result is quantized. `strip`
    cuts the filters and then converts the rest to integers. The rates are those of the `adaptive` algorithm.

    Args:
        model: The model, changed in place.
        settings: Settings of all algorithms.
        steps_per_epoch: Optimizer steps per epoch, for rates that change within an epoch; counted if None.
        example_input: What the model is called with, in any structure, for `export_model`; filter pruning needs it to
            trace the model.

    Attributes:
        children: One controller per algorithm with a rate, in the order in which they were put on the model.
        adaptive: The child whose rate is this controller's rate.

    Raises:
        ConfigurationError: If a scope matches no layer.
        ModelError: If one of the algorithms cannot compress the model.
    """

    name = "composite"
    settings: Composite
    scheduler: CompositeScheduler

    def __init__(
        self,
        model: nn.Module,
        settings: Composite,
        *,
        steps_per_epoch: int | None = None,
        example_input: ModelInputs | None = None,
    ) -> None:
        super().__init__(model, settings, example_input)
        refuse_compressed(model)
        if settings.distillation:  # the teacher is a copy of the uncompressed model, so it comes first
            self.loss = DistillationLoss(model, settings.distillation)
        # The first one is the adaptive one: masks come before rounding, filters before single weights.
        self.children: list[ScheduledController[Any]] = []
        for part in settings.compressing:
            try:
                child = CONTROLLERS[part.algorithm](
                    model, part, steps_per_epoch=steps_per_epoch, example_input=example_input, is_part=True
                )
                self.children.append(child)
            except Exception:
                self._restore_model()
                raise
        exclude_from_ddp(model)
        self.adaptive = self.children[0]
        self.maximal_compression_rate = self.adaptive.maximal_compression_rate
        self.first_target_rate = self.adaptive.first_target_rate
        self.rankings = self.adaptive.rankings
        self.regrows = self.adaptive.regrows
        self.scheduler = CompositeScheduler(self.children)

    @property
    def quantization(self) -> QuantizationController | None:
        """The child that quantizes, if there is one."""
        return next((child for child in self.children if isinstance(child, QuantizationController)), None)

    def calibrate(self, batches: Iterable[ModelInputs]) -> None:
        """Sets the ranges of activations from batches, with the masks applied; without quantization it does nothing.

        See `QuantizationController.calibrate`.
        """
        if (quantization := self.quantization) is not None:
            self._apply_masks()
            quantization.calibrate(batches)

    def compiled(self, mode: str | None = None) -> Callable[..., Any]:
        """Returns the model for training, as the child that quantizes compiles it, if there is one."""
        return super().compiled(mode) if self.quantization is None else self.quantization.compiled(mode)

    def _mask_before(self, compiled: nn.Module) -> None:
        for child in self.children:
            child._mask_before(compiled)

    def _restore_model(self) -> None:
        """Undoes the changes to the model, so that the caller can correct the mistake and try again."""
        for child in reversed(self.children):
            child.compression_rate = 0.0
            child.strip(do_copy=False)
        if isinstance(self.loss, DistillationLoss):
            self.loss.detach()

    def _apply_masks(self) -> None:
        for child in self.children:
            child.apply_masks()

    def _set_rate(self, rate: float) -> None:
        self.adaptive.compression_rate = rate

    def rank_by(self, ranking: Ranking) -> None:
        """Ranks what the adaptive algorithm removes."""
        self.adaptive.rank_by(ranking)

    @property
    def observe_gradients(self) -> Callable[[], object] | None:
        """What the adaptive algorithm does with the gradients of a batch; None if it does not rank by them."""
        return getattr(self.adaptive, "observe_gradients", None)

    @property
    def achieved_rate(self) -> float:
        """The achieved rate of the adaptive algorithm, in [0, 1]."""
        return self.adaptive.achieved_rate

    @property
    def weight_names(self) -> list[str]:
        """Names of sparse weights; empty with quantization, whose integers have other names and more zeros."""
        return [] if self.quantization else self.adaptive.weight_names

    @property
    def rate_words(self) -> str | None:
        """What the rate of the adaptive algorithm is the share of."""
        return self.adaptive.rate_words

    @property
    def rated_parameters(self) -> tuple[int, int] | None:
        """What the rate of the adaptive algorithm counts, and all parameters."""
        return self.adaptive.rated_parameters

    @property
    def steps_per_epoch(self) -> int | None:
        """Optimizer steps per epoch, for rates that change within an epoch; None if unknown."""
        return self.adaptive.steps_per_epoch

    @steps_per_epoch.setter
    def steps_per_epoch(self, number: int) -> None:
        for child in self.children:
            child.steps_per_epoch = number

    def report(self) -> CompressionReport:
        """Returns the rates of the adaptive algorithm."""
        return self.adaptive.report()

    def compression_stage(self) -> CompressionStage:
        """Returns the sum of the stages of all algorithms with a rate."""
        return functools.reduce(operator.add, (child.compression_stage() for child in self.children))

    def disable_scheduler(self) -> None:
        """Ends the schedule of the adaptive algorithm; the others continue theirs."""
        self.adaptive.disable_scheduler()

    def statistics(self, quickly_collected_only: bool = False) -> LayerTables:
        """Returns the layer tables of all algorithms."""
        return LayerTables(tuple(table for child in self.children for table in child.statistics().tables))

    def get_state(self) -> dict[str, Any]:
        """Returns the state of each algorithm, by its name."""
        return {child.name: child.get_state() for child in self.children}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continues from `get_state`; the tensors are in the model's `state_dict`.

        Raises:
            ConfigurationError: If the state belongs to other algorithms.
        """
        names = [child.name for child in self.children]
        if sorted(names) != sorted(state):
            mistake = f"the state is of {', '.join(sorted(state))}, but this composite has {', '.join(sorted(names))}"
            raise ConfigurationError("compression", [mistake])
        for child in self.children:
            child.load_state(state[child.name])

    def strip(self, do_copy: bool = True) -> nn.Module:
        """Returns the model without training machinery: filters cut, weights set to zero, layers in integers.

        Args:
            do_copy: Whether to strip a copy and leave the model under training unchanged.

        Raises:
            ModelError: If the cut model's outputs differ from the masked model's, or ranges of activations are unknown.
        """
        controller = copy.deepcopy(self) if do_copy else self
        model, quantization = controller.model, controller.quantization
        controller._apply_masks()
        if isinstance(controller.loss, DistillationLoss):
            controller.loss.detach()
        scales = quantization.end_training() if quantization is not None else {}
        is_cut = False
        # In reverse order: single weights are set to zero for good before whole filters are cut.
        for child in reversed(controller.children):
            if isinstance(child, FilterPruningController):
                plan = child.cut_plan()
                is_cut = bool(plan)
                for cut in plan:
                    if isinstance(cut, Cut) and cut.kind == "outputs" and cut.layer in scales:
                        scales[cut.layer] = scales[cut.layer][list(cut.kept)]
            if child is not quantization:
                child.strip(do_copy=False)
        if quantization is not None:
            quantization.hold_integers(scales, is_cut=is_cut)
        exclude_from_ddp(model)
        return model


class CompositeScheduler:
    """Steps the schedulers of all children; it looks them up at each step, since a search replaces one of them.

    Args:
        children: The children of the composite, the adaptive one first.
    """

    def __init__(self, children: Sequence[ScheduledController[Any]]) -> None:
        self._children = children

    def step(self, next_step: int | None = None) -> None:
        """Begins an optimizer step: the next one, or the given one."""
        for child in self._children:
            child.scheduler.step(next_step)

    def epoch_step(self, next_epoch: int | None = None) -> None:
        """Begins an epoch: the next one, or the given one."""
        for child in self._children:
            child.scheduler.epoch_step(next_epoch)

    def follow_rate_path(self, path: tuple[float, ...]) -> None:
        """Sets the rate path of the adaptive algorithm for the next epoch, once its schedule is disabled."""
        scheduler = self._children[0].scheduler
        assert isinstance(scheduler, PathScheduler)  # the runner disables the schedule first
        scheduler.follow_rate_path(path)

    @property
    def on_step(self) -> Callable[[float], None] | None:
        """What the adaptive algorithm's scheduler calls in every step."""
        scheduler = self._children[0].scheduler
        return scheduler.on_step if isinstance(scheduler, PathScheduler) else None

    @on_step.setter
    def on_step(self, function: Callable[[float], None] | None) -> None:
        scheduler = self._children[0].scheduler
        assert isinstance(scheduler, PathScheduler)  # as above
        scheduler.on_step = function

    def get_state(self) -> dict[str, Any]:
        """Returns the state of each algorithm's scheduler, by the algorithm's name."""
        return {child.name: child.scheduler.get_state() for child in self._children}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continues from what `get_state` returned."""
        for child in self._children:
            child.scheduler.load_state(state[child.name])
