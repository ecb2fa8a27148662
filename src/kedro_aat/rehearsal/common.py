"""What all parts of a rehearsal share: the first batches, the settings, and how models are trained and judged."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kedro_aat.compression.controller import CompressionController, ModelController
from kedro_aat.config import AatSettings
from kedro_aat.errors import DivergedError
from kedro_aat.rehearsal.faults import part
from kedro_aat.rehearsal.limited import few_calls
from kedro_aat.training.data import Data, example_count, example_input, synthetic_input
from kedro_aat.training.default import DefaultTraining
from kedro_aat.training.few_batches import FewBatches, FewBatchesTraining
from kedro_aat.training.runner import TrainingRunner, evaluate
from kedro_aat.training.teacher import as_teacher

NUM_STEPS = 2
NUM_COMPARED = 8  # examples on which a file and its model are compared
# Two steps must not spoil the model: what is tried is whether they work.
LEARNING_RATE_FACTOR = 0.01


@dataclass(frozen=True)
class Rehearsal:
    """The first batches and the settings.

    Attributes:
        model: The uncompressed model; it stays as it is.
        settings: Settings of the pipeline.
        train_data: Training split.
        validation_data: Validation split.
        training: Its first batches.
        validation: First batch of the validation split, and a smaller one like the last.
        synthetic: Made-up inputs, which controllers are built with.
        inputs: First inputs of the validation split, which files are compared on.
        broken: What is known to fail, and so is left out of other parts: `training`, `validation`, `export`,
            `validation of files`.
    """

    model: nn.Module
    settings: AatSettings
    train_data: Data
    validation_data: Data
    training: FewBatches
    validation: FewBatches
    synthetic: Tensor
    inputs: Tensor
    broken: set[str] = field(default_factory=set)

    @property
    def trains(self) -> bool:
        """Whether models are trained and validated."""
        return not {"training", "validation"} & self.broken

    @property
    def divides(self) -> bool:
        """Whether the weights will be divided among devices."""
        return self.settings.training.sharding != "none"

    @classmethod
    def of(cls, model: nn.Module, settings: AatSettings, train_data: Data, validation_data: Data) -> Rehearsal:
        """Loads the first batches.

        Args:
            model: The uncompressed model.
            settings: Settings of the pipeline.
            train_data: Training split.
            validation_data: Validation split.

        Raises:
            PartFailedError: If a batch cannot be loaded.
        """
        loading = FewBatchesTraining(nn.Identity(), settings.training, train_data, validation_data, seed=settings.seed)
        with part("training batch"):
            training = FewBatches(loading.train_batches(0), NUM_STEPS)
        with part("validation batch"):
            num_last = example_count(validation_data) % loading.validation_batch_size
            validation = FewBatches(loading.validation_batches(), 1, num_last)
            inputs = example_input(validation_data, NUM_COMPARED, settings.training, model, "validation")
        with part("made-up inputs like the training data's"):
            synthetic = synthetic_input(train_data, training=settings.training, model=model)
        return cls(model, settings, train_data, validation_data, training, validation, synthetic, inputs)

    def on_cpu(self) -> nn.Module:
        """A copy of the uncompressed model on the CPU, in evaluation mode."""
        return copy.deepcopy(self.model).cpu().eval()

    def default_training(self, model: nn.Module, controller: ModelController | None = None) -> FewBatchesTraining:
        """How the settings train a model, on the few batches."""
        training = self.settings.training
        if self.divides:  # a device may be too small for the whole model
            training = training.model_copy(update={"device": "cpu"})
        return FewBatchesTraining(
            model,
            training,
            self.train_data,
            self.validation_data,
            training=self.training,
            validation=self.validation,
            seed=self.settings.seed,
            teacher=as_teacher(self.model) if training.teaching is not None else None,
            controller=controller,
            guards=self.settings.budget.also,
        )

    def runner(
        self, controller: CompressionController, training: DefaultTraining, learning_rate_factor: float = 1.0
    ) -> TrainingRunner:
        """Calls the functions that train and validate, as the loop does.

        Args:
            controller: The controller with its model.
            training: The functions.
            learning_rate_factor: Factor of the stage on all learning rates.
        """
        higher_is_better = self.settings.training.direction()
        assert higher_is_better is not None  # settings.check() made sure of it
        return TrainingRunner(
            controller.model,
            controller,
            training.callables(),
            uncompressed_model_accuracy=0.0,
            minimal_tolerable_accuracy=0.0,
            higher_is_better=higher_is_better,
            learning_rate_factor=learning_rate_factor * LEARNING_RATE_FACTOR,
        )

    def train(self, runner: TrainingRunner) -> None:
        """Trains for two steps.

        Raises:
            DivergedError: If the loss is NaN or infinite.
        """
        with few_calls(runner.model, self.settings.training.function("train_epoch")):
            runner.train_epoch()

    def validate(self, model: nn.Module, training: FewBatchesTraining, subject: str) -> None:
        """Validates on the few batches, where a metric may be NaN that is not on the whole split.

        Args:
            model: The model, or a file as a module.
            training: The functions.
            subject: What is validated, for errors.
        """
        own = self.settings.training.function("validate_")
        try:
            with few_calls(model, own):
                evaluate(model, training.callables().validate, subject=subject)
        except DivergedError:
            pass


def same_state(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two states have the same tensors, which may be on different devices."""
    return one.keys() == other.keys() and all(
        torch.equal(one[name].cpu(), other[name].cpu()) for name in one if isinstance(one[name], Tensor)
    )
