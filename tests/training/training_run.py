"""A model in the default training, driven as the loops drive it, and settings for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from kedro_aat import TrainingRunner
from kedro_aat.compression.controller import CompressionController, ModelController
from kedro_aat.compression.sparsity.controller import MagnitudeSparsityController
from kedro_aat.pipelines.digits.baseline import Uncompressed
from kedro_aat.training.default import DefaultTraining
from kedro_aat.training.random_state import seed_everything
from kedro_aat.training.settings import TrainingSettings
from tests.nets import Probe, SmallNet, images

METRIC = {
    "class_path": "torchmetrics.classification.MulticlassAccuracy",
    "init_args": {"num_classes": 4, "average": "micro", "validate_args": False},
}
SGD = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.03, "momentum": 0.9}}
TRAIN = images(96)  # 6 batches
VALIDATION = images(40, seed=1)  # 3 batches, the last one smaller
HALVING = {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 1, "gamma": 0.5}}


def settings(**changes: Any) -> TrainingSettings:
    defaults: dict[str, Any] = {"batch_size": 16, "optimizer": SGD, "metric": METRIC, "device": "cpu"}
    return TrainingSettings.model_validate(defaults | changes)


class TrainingRun:
    """A model in training, driven as the loops drive it.

    Args:
        make: Makes the model.
        seed: Seed of the weights and of the training.
        train: Training split.
        validation: Validation split.
        compress: Makes the controller of the model.
        **changes: Settings that differ from the defaults of `settings`.
    """

    def __init__(
        self,
        make: Callable[[], nn.Module] = SmallNet,
        *,
        seed: int = 0,
        train: Any = TRAIN,
        validation: Any = VALIDATION,
        compress: Callable[[nn.Module], CompressionController] = Uncompressed,
        **changes: Any,
    ) -> None:
        seed_everything(seed)
        self.model = make()
        self.controller = compress(self.model)
        controller = self.controller if isinstance(self.controller, ModelController) else None
        self.training = DefaultTraining(
            self.model, settings(**changes), train, validation, seed=seed, controller=controller
        )
        self.runner = TrainingRunner(self.model, self.controller, self.training.callables())
        self.runner.reset_training()

    def train_epoch(self) -> float | None:
        """Trains and validates one epoch, updates the learning rate, and returns the loss."""
        loss = self.runner.train_epoch()
        metric = self.runner.validate().metric
        self.runner.update_learning_rate(metric, loss)
        return loss

    def train_epochs(self, number: int) -> list[float]:
        """Trains several epochs and returns their losses."""
        losses = [self.train_epoch() for _ in range(number)]
        return [loss for loss in losses if loss is not None]

    @property
    def weights(self) -> dict[str, Tensor]:
        """A copy of the current weights and buffers."""
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}


def make_probed_net() -> Probe:
    return Probe(SmallNet())


def make_sparse(model: nn.Module) -> MagnitudeSparsityController:
    """Sets 60% of the weights to zero, without a schedule."""
    controller = MagnitudeSparsityController(model)
    controller.disable_scheduler()
    controller.compression_rate = 0.6
    return controller


def user_function(name: str) -> str:
    """Import path of a function or class in `user_functions`."""
    return f"tests.training.user_functions.{name}"


def plain_sgd(learning_rate: float = 1.0) -> dict[str, Any]:
    """Settings of SGD without momentum, whose step is the gradient times the learning rate."""
    return {"class_path": "torch.optim.SGD", "init_args": {"lr": learning_rate}}
