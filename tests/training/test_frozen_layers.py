"""Training of models that are frozen in part: the optimizer, and BatchNorms that stay in evaluation mode."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from kedro_aat.errors import ModelError
from kedro_aat.training.batch_norms import adapt_batch_norms
from kedro_aat.training.default import DefaultTraining
from kedro_aat.training.settings import TrainingSettings
from tests.nets import SmallNet

SPLIT = {"inputs": torch.randn(32, 1, 8, 8), "targets": torch.randint(0, 10, (32,))}
SETTINGS = {
    "loss": "torch.nn.CrossEntropyLoss",
    "metric": {
        "class_path": "torchmetrics.classification.MulticlassAccuracy",
        "init_args": {"num_classes": 10, "average": "micro"},
    },
    "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "weight_decay": 0.1}},
    "batch_size": 8,
    "device": "cpu",
}


class FrozenStem(nn.Module):
    """Its first BatchNorm stays in evaluation mode in training, as detectors have it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).requires_grad_(False)
        self.stem.get_buffer("1.running_mean").fill_(0.5)
        self.stem.get_buffer("1.running_var").fill_(2.0)
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10))

    def train(self, mode: bool = True) -> FrozenStem:
        super().train(mode)
        self.stem.eval()
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.body(self.stem(images))  # type: ignore[no-any-return]


def statistics(norm: nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in norm.named_buffers()}


@pytest.mark.parametrize("training", [False, True])
def test_frozen_batch_norms_keep_their_statistics_and_the_others_are_as_of_torch(training: bool) -> None:
    torch.manual_seed(0)
    model = FrozenStem()
    model.train(training)
    frozen, other = model.stem[1], model.body[1]
    before = statistics(frozen)
    batches = [torch.randn(8, 1, 8, 8) for _ in range(3)]
    adapt_batch_norms(model, batches)
    assert all(torch.equal(buffer, before[name]) for name, buffer in statistics(frozen).items())
    assert model.training is training
    assert not frozen.training
    assert other.momentum == 0.1
    adapted = statistics(other)

    bare = nn.Sequential(model.body[0], nn.BatchNorm2d(8))
    torch.optim.swa_utils.update_bn([model.stem(batch) for batch in batches], bare)
    assert all(torch.allclose(buffer, adapted[name]) for name, buffer in statistics(bare[1]).items())


def test_model_without_batch_norms_is_not_called() -> None:
    adapt_batch_norms(nn.Sequential(nn.Linear(4, 4)), [torch.zeros(1, 99)])


def test_optimizer_gets_what_trains_and_the_frozen_part_stays() -> None:
    model = FrozenStem()
    before = {name: tensor.clone() for name, tensor in model.stem.state_dict().items()}
    settings = TrainingSettings.model_validate(SETTINGS)
    training = DefaultTraining(model, settings, SPLIT, SPLIT)
    optimizer, _ = training.configure_optimizers()
    assert [len(group["params"]) for group in optimizer.param_groups] == [len(list(model.body.parameters()))]

    controller = SimpleNamespace(scheduler=SimpleNamespace(step=lambda: None), loss=lambda: 0.0)
    training.train_epoch(controller, model, epoch=0, optimizer=optimizer, lr_scheduler=None)
    training.adapt(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.stem.state_dict().items())


def test_model_that_is_frozen_as_a_whole_has_no_optimizer() -> None:
    training = DefaultTraining(
        SmallNet().requires_grad_(False), TrainingSettings.model_validate(SETTINGS), SPLIT, SPLIT
    )
    with pytest.raises(ModelError, match=r"0 of the [\d,]+ parameters of SmallNet can be trained"):
        training.configure_optimizers()
