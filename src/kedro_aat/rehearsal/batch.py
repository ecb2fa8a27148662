"""One batch through the uncompressed model, the loss and the metric: in training, then in evaluation mode."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

from torch import Tensor, nn

from kedro_aat.compression.controller import CompressionLoss, CompressionReport, CompressionStage
from kedro_aat.errors import DivergedError
from kedro_aat.model_inputs import describe_inputs
from kedro_aat.rehearsal.common import Rehearsal
from kedro_aat.rehearsal.faults import Blame, Fault, blamed, cause_of, part
from kedro_aat.training.checks.targets import label_mistakes, takers_of_labels, target_mistakes
from kedro_aat.training.few_batches import FewBatches, FewBatchesTraining
from kedro_aat.training.settings import TrainingSettings

# A metric may need more than one batch, for example one example of each class.
NUM_BATCHES_FOR_METRIC = 16


class _NoScheduler:
    def step(self, next_step: int | None = None) -> None: ...

    def epoch_step(self, next_epoch: int | None = None) -> None: ...

    def get_state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None: ...


class Uncompressed:
    """Stands for the controller of a model that is not compressed.

    Args:
        model: The model.
    """

    name = "none"
    compression_rate = 0.0
    maximal_compression_rate = 0.0

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.loss = CompressionLoss()
        self.scheduler = _NoScheduler()

    def report(self) -> CompressionReport:
        """The rates, which are 0."""
        return CompressionReport(0.0, 0.0)

    def compression_stage(self) -> CompressionStage:
        """That nothing is compressed."""
        return CompressionStage.UNCOMPRESSED

    def disable_scheduler(self) -> None:
        """Does nothing."""

    def statistics(self) -> Any:
        """Nothing to show."""
        return None

    def get_compression_state(self) -> dict[str, Any]:
        """Nothing to keep."""
        return {}

    def get_state(self) -> dict[str, Any]:
        """Nothing to keep."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Does nothing."""

    def strip(self) -> nn.Module:
        """The model."""
        return self.model

    def export_model(self, path: Any, *args: Any, **kwargs: Any) -> None:
        """Does nothing.

        Args:
            path: Not used.
            *args: Not used.
            **kwargs: Not used.
        """


def misread_targets(rehearsal: Rehearsal) -> Fault | None:
    """What metric or loss would misread, in words that name the setting to change; None if nothing is known.

    What torch raises for the same mistake names neither, and for some it raises nothing. Only the default validation
    says which outputs and targets belong together.
    """
    settings = rehearsal.settings.training
    if settings.baseline_check != "error":
        return None
    takers = takers_of_labels(settings)
    for split, few in (("validation", rehearsal.validation), ("training", rehearsal.training)):
        for outputs, targets in _first_outputs(few.batches[:1], rehearsal):
            found = target_mistakes(outputs, targets, settings) or label_mistakes(outputs, targets, takers, split)
            if found:
                part = f"targets, with a {split} batch of {describe_inputs(few.batches[0])}"
                return Fault(part, found[0], "Set training.baseline_check to warn to go on all the same")
    return None


def _first_outputs(batches: list[Any], rehearsal: Rehearsal) -> list[tuple[Tensor, Tensor]]:
    """Outputs and targets of batches, as the metric gets them; none if the model fails or the validation is another."""
    seen: list[tuple[Tensor, Tensor]] = []
    training = FewBatchesTraining(
        copy.deepcopy(rehearsal.model),
        rehearsal.settings.training,
        None,
        rehearsal.validation_data,
        validation=batches,
    )
    training.observe = lambda outputs, targets: seen.append((outputs, targets))
    with contextlib.suppress(Exception):  # whatever it is, the parts below tell it
        rehearsal.validate(training.model, training, "the baseline")
    return seen


def rehearse_training_batch(rehearsal: Rehearsal) -> None:
    """Trains a copy of the uncompressed model for two steps.

    Raises:
        PartFailedError: If that fails.
    """
    model = copy.deepcopy(rehearsal.model)
    training = rehearsal.default_training(model)
    with part("training"):
        runner = rehearsal.runner(Uncompressed(model), training)
        runner.reset_training()
        rehearsal.train(runner)


def rehearse_validation_batch(rehearsal: Rehearsal) -> None:
    """Validates a copy of the uncompressed model on the first batch, or on more if the metric needs them.

    Raises:
        PartFailedError: If that fails.
    """
    training = rehearsal.default_training(copy.deepcopy(rehearsal.model))
    with part("validation"):
        try:
            rehearsal.validate(training.model, training, "the baseline")
        except Exception as error:
            if blamed(error, training._loss).part != "metric":
                raise
            more = FewBatches(super(FewBatchesTraining, training).validation_batches(), NUM_BATCHES_FOR_METRIC)
            if len(more) < 2:
                raise
            rehearsal.validation.batches[:] = more.batches
            rehearsal.validate(training.model, training, "the baseline")


def fault_of_batch(error: BaseException, rehearsal: Rehearsal, *, is_training: bool) -> Fault:
    """What failed: the model, the loss, the metric, a function of the user's, or the batch itself.

    Args:
        error: The error.
        rehearsal: What all parts share.
        is_training: Whether the model was trained, or validated.
    """
    settings = rehearsal.settings.training
    mode = "training" if is_training else "evaluation"
    batches = (rehearsal.training if is_training else rehearsal.validation).batches
    batch = f"with a batch of {describe_inputs(batches[0])}" if batches else "without a batch"
    blame = blamed(error, settings.loss.load())
    cause = cause_of(error)
    outputs = _outputs(rehearsal, is_training=is_training) if blame.part in ("loss", "metric") else ""
    if isinstance(error.__cause__, DivergedError):
        return Fault(f"loss in {mode} mode, {batch}", cause, "Train the baseline again, or use fp32 precision")
    own = settings.train_epoch if is_training else settings.validate_
    if own is not None:
        key = "train_epoch" if is_training else "validate"
        return Fault(f"training.{key} ({own}), {batch}", cause, "Mend that function")
    mends = _mends(blame, settings, is_training=is_training)
    name = {"model": "model", "loss": "loss", "metric": "metric"}.get(blame.part, "training" if is_training else "data")
    if blame.layer:
        name += f" (layer {blame.layer})"
    return Fault(f"{name} in {mode} mode, {batch}{outputs}", cause, mends)


def _mends(blame: Blame, settings: TrainingSettings, *, is_training: bool) -> str:
    function = "training.train_epoch" if is_training else "training.validate"
    output = "training.output names the one of several outputs to read; "
    if blame.part == "loss":
        return (
            f"{output}training.loss ({settings.loss.class_path}) must take these outputs and targets; or let "
            "training.train_epoch name a function of your own"
        )
    if blame.part == "metric":
        metric = settings.metric.class_path if settings.metric else "none"
        return (
            f"{output}training.metric ({metric}) and the metrics of budget.also must take these outputs and targets; "
            "or let training.validate name a function of your own"
        )
    if blame.part == "model":
        return f"The model is called with the batch's inputs; or let {function} name a function of your own"
    return (
        "A batch must hold inputs and targets; training.batch names what is input and what is target; or let "
        f"{function} name a function of your own"
    )


def _outputs(rehearsal: Rehearsal, *, is_training: bool) -> str:
    """The model's outputs in words, if it can be run."""
    seen: list[str] = []
    model = copy.deepcopy(rehearsal.model)
    hook = model.register_forward_hook(lambda module, inputs, outputs: seen.append(describe_inputs(outputs)))
    training = rehearsal.default_training(model)
    try:
        if is_training:
            runner = rehearsal.runner(Uncompressed(model), training)
            runner.reset_training()
            rehearsal.train(runner)
        else:
            rehearsal.validate(model, training, "the baseline")
    except Exception:  # it fails as before
        pass
    finally:
        hook.remove()
    return f" and outputs of {seen[0]}" if seen else ""
