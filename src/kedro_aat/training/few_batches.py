"""Default training on the first batches of each split, for a rehearsal."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from kedro_aat.budget import GuardSettings
from kedro_aat.compression.controller import ModelController
from kedro_aat.model_inputs import num_examples, take_examples
from kedro_aat.training.data import Data
from kedro_aat.training.default import DefaultTraining
from kedro_aat.training.settings import TrainingSettings


class FewBatches:
    """The first batches of a loader, which are loaded once.

    Args:
        loader: The loader; its other attributes are passed on.
        number: Number of batches.
        num_last: Number of examples in a smaller last batch, which is made of the first one; 0 for none.
    """

    def __init__(self, loader: Any, number: int, num_last: int = 0) -> None:
        self._loader = loader
        self.batches = list(itertools.islice(loader, number))
        if self.batches and 0 < num_last < num_examples(self.batches[0]):
            self.batches.append(take_examples(self.batches[0], slice(num_last)))

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_loader"], name)


class FewBatchesTraining(DefaultTraining):
    """Trains and validates as `DefaultTraining`, on few batches and without standard errors.

    Args:
        model: The model.
        settings: Settings of the training.
        train_data: Training split; None if the model is only validated.
        validation_data: Validation split.
        training: Training batches; None loads none, so that only the settings are used.
        validation: Validation batches.
        seed: Seed of shuffling.
        teacher: The baseline, for distillation; it answers each batch when it is used.
        controller: The model's controller.
        guards: Further metrics.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: TrainingSettings,
        train_data: Data | None,
        validation_data: Data,
        *,
        training: Sequence[Any] | FewBatches | None = None,
        validation: Sequence[Any] | FewBatches | None = None,
        seed: int = 0,
        teacher: nn.Module | None = None,
        controller: ModelController | None = None,
        guards: Sequence[GuardSettings] = (),
    ) -> None:
        super().__init__(
            model,
            settings,
            train_data,
            validation_data,
            seed=seed,
            teacher=teacher,
            controller=controller,
            guards=guards,
        )
        self._few_training, self._few_validation = training, validation
        self._groups = None
        self._validation.leave_out_standard_errors()
        self._is_taught = True  # otherwise the teacher would answer all examples first

    def train_batches(self, epoch: int) -> Any:
        """The few training batches, or all of them if there are no few."""
        if self._few_training is None:
            return super().train_batches(epoch)
        return self._few_training

    def validation_batches(self) -> Any:
        """The few validation batches, or all of them if there are no few."""
        if self._few_validation is None:
            return super().validation_batches()
        return self._few_validation

    def _require_all_seen(self, number: int) -> None:
        if self._few_validation is None:
            super()._require_all_seen(number)
