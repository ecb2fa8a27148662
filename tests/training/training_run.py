"""A model in the default training, driven as the loops drive it, and settings for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from kedro_aat import TrainingRunner
from kedro_aat.compression.controller import CompressionController
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
TRAIN, VALIDATION = images(96), images(40, seed=1)
HALVING = {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 1, "gamma": 0.5}}


def settings(**more: Any) -> TrainingSettings:
    given: dict[str, Any] = {"batch_size": 16, "optimizer": SGD, "metric": METRIC, "device": "cpu"}
    return TrainingSettings.model_validate(given | more)


class TrainingRun:
    """A model in training, driven as the loops drive it."""

    def __init__(
        self,
        make: Callable[[], nn.Module] = SmallNet,
        *,
        seed: int = 0,
        train: Any = TRAIN,
        validation: Any = VALIDATION,
        compress: Callable[[nn.Module], CompressionController] = Uncompressed,
        **more: Any,
    ) -> None:
        seed_everything(seed)
        self.model = make()
        self.controller = compress(self.model)
        self.training = DefaultTraining(self.model, settings(**more), train, validation, seed=seed)
        self.runner = TrainingRunner(self.model, self.controller, self.training.callables())
        self.runner.reset_training()

    def epoch(self) -> float | None:
        loss = self.runner.train_epoch()
        metric = self.runner.validate().metric
        self.runner.update_learning_rate(metric, loss)
        return loss

    def epochs(self, number: int) -> list[float]:
        losses = [self.epoch() for _ in range(number)]
        return [loss for loss in losses if loss is not None]

    @property
    def weights(self) -> dict[str, Tensor]:
        """A copy of them as they are now."""
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}


def probed() -> Probe:
    return Probe(SmallNet())


def masked(model: nn.Module) -> MagnitudeSparsityController:
    controller = MagnitudeSparsityController(model)
    controller.disable_scheduler()
    controller.compression_rate = 0.6
    return controller


def named(function: str) -> str:
    return f"tests.training.user_functions.{function}"


def plain_sgd(learning_rate: float = 1.0) -> dict[str, Any]:
    return {"class_path": "torch.optim.SGD", "init_args": {"lr": learning_rate}}
