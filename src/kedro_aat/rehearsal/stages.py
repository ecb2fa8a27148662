"""Each stage's compression on a copy of the model: built, trained, validated, saved, stripped and exported."""

from __future__ import annotations

import contextlib
import copy
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kedro_aat.compression.controller import ModelController
from kedro_aat.compression.settings import CompressionSettings, algorithms_of
from kedro_aat.config import AatSettings
from kedro_aat.delivery.limits import highest_rate
from kedro_aat.disk import disk_errors
from kedro_aat.errors import CheckpointError, DivergedError
from kedro_aat.model_inputs import call_model
from kedro_aat.ranks import group
from kedro_aat.rehearsal.common import Rehearsal, same_state
from kedro_aat.rehearsal.faults import part
from kedro_aat.rehearsal.files import rehearse_files, rehearse_program
from kedro_aat.rehearsal.limited import few_calls
from kedro_aat.training.checkpoints import CheckpointStore
from kedro_aat.training.controllers import NUM_CALIBRATION_BATCHES, stage_controller
from kedro_aat.training.random_state import seed_everything
from kedro_aat.training.ranks.divided_model import divided_copy
from kedro_aat.training.runner import TrainingRunner

LOW_RATE, HIGH_RATE = 0.3, 0.9

_NAMES = {1: "first stage", 2: "second stage", 3: "third stage"}
_KEYS = {1: "compression", 2: "second_stage.compression", 3: "third_stage.compression"}


@dataclass(frozen=True)
class Stage:
    """One stage of the run.

    Attributes:
        number: Its number, from 1.
        compression: Its compression.
        learning_rate_factor: Factor on all learning rates.
        maximal_rate: Highest rate to try, in [0, 1).
        algorithms_before: Algorithms of the stages before.
    """

    number: int
    compression: CompressionSettings
    learning_rate_factor: float
    maximal_rate: float
    algorithms_before: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Its name with the algorithms."""
        return f"{_NAMES[self.number]} ({' and '.join(algorithms_of(self.compression))})"

    @property
    def key(self) -> str:
        """Key of its compression in the settings."""
        return _KEYS[self.number]

    @property
    def identity(self) -> dict[str, Any]:
        """What its rehearsal depends on, as JSON data."""
        own = {"factor": self.learning_rate_factor, "maximal_rate": self.maximal_rate}
        return own | {"number": self.number, "compression": self.compression.model_dump(mode="json")}

    def with_compression(self, compression: CompressionSettings) -> Stage:
        """The same stage with another compression."""
        return replace(self, compression=compression)


def stages_of(settings: AatSettings) -> list[Stage]:
    """The stages that the settings ask for, in order."""
    stages = [Stage(1, settings.compression, 1.0, settings.maximal_rate)]
    for number, later in settings.later_stages.items():
        before = tuple(name for stage in stages for name in algorithms_of(stage.compression))
        stages.append(Stage(number, later.compression, later.learning_rate_factor, settings.maximal_rate, before))
    return stages


def rehearse_stage(
    stage: Stage,
    model: nn.Module,
    rehearsal: Rehearsal,
    *,
    save: Callable[[TrainingRunner], None] | None = None,
) -> nn.Module:
    """Does with a copy of a model what a stage of the run will do, at a low and at a high rate.

    Args:
        stage: The stage.
        model: The uncompressed model, or what the stage before returned; it stays as it is.
        rehearsal: What all parts share.
        save: Saves the training after its first steps; None if nothing is saved.

    Returns:
        The model as it would be exported at the low rate.

    Raises:
        PartFailedError: If a part fails.
    """
    with part("putting the model under compression"):
        seed_everything(rehearsal.settings.seed)
        controller = stage_controller(
            copy.deepcopy(model), stage.compression, rehearsal.synthetic, stage.algorithms_before
        )
    training = rehearsal.default_training(controller.model, controller)
    with part("ranges of activations from training batches"):
        if hasattr(controller, "calibrate"):
            controller.calibrate(training.calibration_batches(NUM_CALIBRATION_BATCHES))
    with part("optimizer"):
        controller.steps_per_epoch = training.steps_per_epoch
        runner = rehearsal.runner(controller, training, stage.learning_rate_factor)
        if rehearsal.trains:
            runner.reset_training()
    if rehearsal.trains and rehearsal.divides:
        _train_divided(controller, rehearsal)
    stripped: list[nn.Module] = []
    rates = _rates(controller, stage.maximal_rate)
    for rate in rates:
        at = f"at rate {rate:.2f}"
        with part(f"setting the rate {rate:.2f}"):
            runner.set_rate((rate,))
        if rehearsal.trains:
            _train(runner, rehearsal, at)
            if save is not None and not stripped:
                save(runner)
        with part(f"strip {at}"):
            ready = controller.strip().cpu().eval()
            with torch.no_grad():
                call_model(ready, rehearsal.inputs)
        if "export" not in rehearsal.broken:
            try:
                # Each kind of file at one of the rates: exports take most of the time of a rehearsal.
                if rate == rates[0]:
                    rehearse_program(ready, rehearsal)
                if rate == rates[-1]:
                    rehearse_files(ready, rehearsal, search=False)
            except Exception as error:
                error.add_note(at)
                raise
        stripped.append(ready)
    return stripped[0]


def _rates(controller: ModelController, maximal_rate: float) -> Sequence[float]:
    highest = highest_rate(controller, maximal_rate)
    return sorted({min(LOW_RATE, highest), min(HIGH_RATE, highest)})


def _train(runner: TrainingRunner, rehearsal: Rehearsal, at: str) -> None:
    """Two steps of training and one validation; a loss that is NaN is no fault of the compression."""
    before = copy.deepcopy(runner.model.state_dict())
    with part(f"training {at}"):
        try:
            rehearsal.train(runner)
        except DivergedError:
            runner.model.load_state_dict(before)
    with part(f"adapting batch statistics {at}"):
        runner.adapt()
    with part(f"validation {at}"):
        try:
            with few_calls(runner.model, rehearsal.settings.training.function("validate_")):
                runner.validate()
        except DivergedError:
            pass


def _train_divided(controller: ModelController, rehearsal: Rehearsal) -> None:
    """Two steps with weights that are divided as among several ranks, though there is only one here."""
    with group.of_one(), part("training with divided weights (training.sharding)"):
        divided = divided_copy(controller, torch.device("cpu"))
        runner = rehearsal.runner(divided, rehearsal.default_training(divided.model, divided))
        runner.reset_training()
        runner.set_rate((LOW_RATE,))
        with contextlib.suppress(DivergedError):
            rehearsal.train(runner)
        runner.rates()


def save_and_resume(runner: TrainingRunner, store: CheckpointStore, *, resume: bool = True) -> None:
    """Writes a checkpoint into a folder of its own in the store, reads it, and removes it.

    Args:
        runner: The training.
        store: The store.
        resume: Whether the training continues from what was read.
    """
    with disk_errors(store.root):
        store.root.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".rehearsal-", dir=store.root))
    try:
        with CheckpointStore(folder).open({"rehearsal": True}) as checkpoints:
            saved = runner.checkpoint(0, {})
            checkpoints.save(saved, runner.dump)
            loaded = checkpoints.load(0)
            if resume:
                runner.resume(loaded)
            if not same_state(saved.model, loaded.model):
                raise CheckpointError(f"what was read from {folder} differs from what was written")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
