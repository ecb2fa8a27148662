"""Several algorithms on one model: the search moves the rate of one, the others follow their own schedules."""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from kedro_aat.compression.controller import CompressionReport, CompressionStage, ModelController
from kedro_aat.compression.distillation import DistillationLoss
from kedro_aat.compression.filters.controller import FilterPruningController
from kedro_aat.compression.layer_table import LayerTables
from kedro_aat.compression.quantization.controller import QuantizationController
from kedro_aat.compression.schedule import PathScheduler
from kedro_aat.compression.scheduled import ScheduledController
from kedro_aat.compression.settings import Composite, FilterPruning, MagnitudeSparsity, SingleAlgorithm
from kedro_aat.compression.sparsity.controller import MagnitudeSparsityController
from kedro_aat.errors import ConfigurationError


class CompositeController(ModelController):
    """Puts several algorithms on one model.

    Filters are masked first, then single weights, and what is left is rounded, whatever the order of the settings;
    `strip` cuts the filters and then holds the rest in integers. Rates are those of the `adaptive` algorithm.

    Args:
        model: The model, changed in place.
        settings: Of all algorithms.
        steps_per_epoch: Optimizer steps in an epoch, for rates that move within one; counted if None.
        example_input: A batch, (N, ...); filter pruning needs it.

    Attributes:
        children: One controller for each algorithm with a rate, in the order in which they were put on the model.
        adaptive: The child whose rate this controller's rate is.

    Raises:
        ConfigurationError: For scopes that match no layer.
        ModelError: As the algorithms raise it.
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
        example_input: Tensor | None = None,
    ) -> None:
        super().__init__(model, settings, example_input)
        if settings.distillation:  # the teacher is the model as it is given, so it is copied first
            self.loss = DistillationLoss(model, settings.distillation)
        # The first on the model is the adaptive one: masks come before rounding, filters before single weights.
        self.children: list[ScheduledController] = []
        options: dict[str, Any] = {"steps_per_epoch": steps_per_epoch, "example_input": example_input}
        for part in settings.compressing:
            try:
                self.children.append(build_single(model, part, **options, is_part=True))
            except Exception:
                self._take_off()
                raise
        self.adaptive = self.children[0]
        self.maximal_compression_rate = self.adaptive.maximal_compression_rate
        self.scheduler = CompositeScheduler(self.children)

    @property
    def quantization(self) -> QuantizationController | None:
        """The child that quantizes, if there is one."""
        return next((child for child in self.children if isinstance(child, QuantizationController)), None)

    def calibrate(self, batches: Iterable[Tensor | tuple[Any, ...] | list[Any]]) -> None:
        """Takes the ranges of activations from batches, the masks applied; see `QuantizationController.calibrate`.

        Without quantization it does nothing.
        """
        if (quantization := self.quantization) is not None:
            self._apply_masks()
            quantization.calibrate(batches)

    def _take_off(self) -> None:
        """Leaves the model as it was given, so that it can be tried again with what was wrong put right."""
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

    @property
    def achieved_rate(self) -> float:
        """That of the adaptive algorithm, in [0, 1]."""
        return self.adaptive.achieved_rate

    @property
    def weight_names(self) -> list[str]:
        """Of sparse weights, unless they are exported as integers, under other names and with more zeros."""
        return [] if self.quantization else self.adaptive.weight_names

    @property
    def steps_per_epoch(self) -> int | None:
        """Optimizer steps in an epoch, for rates that move within one; None if unknown."""
        return self.adaptive.steps_per_epoch

    @steps_per_epoch.setter
    def steps_per_epoch(self, number: int) -> None:
        for child in self.children:
            child.steps_per_epoch = number

    def report(self) -> CompressionReport:
        """The rates of the adaptive algorithm."""
        return self.adaptive.report()

    def compression_stage(self) -> CompressionStage:
        """The stages of all algorithms with a rate, added up."""
        return functools.reduce(operator.add, (child.compression_stage() for child in self.children))

    def disable_scheduler(self) -> None:
        """Ends the schedule of the adaptive algorithm; the others go on with theirs."""
        self.adaptive.disable_scheduler()

    def statistics(self) -> LayerTables:
        """The tables of all algorithms."""
        return LayerTables(tuple(table for child in self.children for table in child.statistics().tables))

    def get_state(self) -> dict[str, Any]:
        """Algorithm -> its state."""
        return {child.name: child.get_state() for child in self.children}

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes on from `get_state`; tensors come with the model's `state_dict`. A search is never undone.

        Raises:
            ConfigurationError: If it is the state of other algorithms.
        """
        own = [child.name for child in self.children]
        if sorted(own) != sorted(state):
            raise ConfigurationError("compression", [f"the state is of {sorted(state)}, but this composite has {own}"])
        for child in self.children:
            child.load_state(state[child.name])

    def strip(self, do_copy: bool = True) -> nn.Module:
        """The model without training machinery: filters cut, zeros in place, quantized layers in integers.

        Args:
            do_copy: Whether to leave the model under training as it is.

        Raises:
            ModelError: As the algorithms raise it.
        """
        controller = copy.deepcopy(self) if do_copy else self
        model, quantization = controller.model, controller.quantization
        controller._apply_masks()
        if isinstance(controller.loss, DistillationLoss):
            controller.loss.detach()
        scales = quantization.end_training() if quantization is not None else {}
        is_cut = False
        # What was put on last comes off first: single zeros are made for good before whole filters are cut.
        for child in reversed(controller.children):
            if isinstance(child, FilterPruningController):
                plan = child.cut_plan()
                is_cut = bool(plan)
                for cut in plan:
                    if cut.kind == "outputs" and cut.layer in scales:
                        scales[cut.layer] = scales[cut.layer][list(cut.kept)]
            if child is not quantization:
                child.strip(do_copy=False)
        if quantization is not None:
            quantization.hold_integers(scales, is_cut=is_cut)
        return model


def build_single(
    model: nn.Module,
    settings: SingleAlgorithm,
    *,
    steps_per_epoch: int | None = None,
    example_input: Tensor | None = None,
    is_part: bool = False,
) -> ScheduledController:
    """The controller of one algorithm; see `build.build_controller`."""
    common: dict[str, Any] = {"steps_per_epoch": steps_per_epoch, "example_input": example_input}
    if isinstance(settings, FilterPruning):  # always the first of a composite
        return FilterPruningController(model, settings, **common)
    if isinstance(settings, MagnitudeSparsity):
        return MagnitudeSparsityController(model, settings, is_part=is_part, **common)
    return QuantizationController(model, settings, is_part=is_part, **common)


class CompositeScheduler:
    """Steps the schedulers of all children; each is looked up anew, since a search replaces one of them.

    Args:
        children: The first is the adaptive one.
    """

    def __init__(self, children: Sequence[ScheduledController]) -> None:
        self._children = children

    def step(self, next_step: int | None = None) -> None:
        """Begins an optimizer step: the next, or the one named."""
        for child in self._children:
            child.scheduler.step(next_step)

    def epoch_step(self, next_epoch: int | None = None) -> None:
        """Begins an epoch: the next, or the one named."""
        for child in self._children:
            child.scheduler.epoch_step(next_epoch)

    def follow_rate_path(self, path: tuple[float, ...]) -> None:
        """Gives the adaptive algorithm a path of rates for one epoch, once its schedule is disabled."""
        scheduler = self._children[0].scheduler
        assert isinstance(scheduler, PathScheduler)  # the runner disables the schedule first
        scheduler.follow_rate_path(path)

    def get_state(self) -> dict[str, Any]:
        """Algorithm -> plain data from which `load_state` goes on."""
        return {child.name: child.scheduler.get_state() for child in self._children}

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes on from what `get_state` gave."""
        for child in self._children:
            child.scheduler.load_state(state[child.name])
