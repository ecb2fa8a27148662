"""Mistakes in the settings and data of the default training are found before it starts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kedro_aat.errors import ConfigurationError, DataError
from kedro_aat.training.data import as_dataset, data_fingerprint, example_input
from kedro_aat.training.default import DefaultTraining
from kedro_aat.training.device import pick_device
from tests.nets import Pairs, SmallNet, images
from tests.training.training_run import (
    HALVING,
    METRIC,
    SGD,
    TRAIN,
    VALIDATION,
    TrainingRun,
    settings,
    user_function,
)

# --- mistakes in the settings ----------------------------------------------------------------------------------


def test_all_mistakes_are_listed_in_one_error() -> None:
    mistaken = settings(
        optimizer={"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "momentun": 0.9}},
        scheduler="torch.optim.lr_scheduler.CosineAnealingLR",
        loss="torch.n.CrossEntropyLoss",
        metric="MulticlassAccuracy",
        train_epoch="tests.training.user_functions.train_epok",
        validate="no_such_module.validate",
    )
    with pytest.raises(ConfigurationError) as caught:
        mistaken.check()
    mistakes = "\n".join(caught.value.mistakes)
    assert len(caught.value.mistakes) == 6
    for expected in (
        "optimizer.init_args.momentun: torch.optim.SGD takes no such argument. Did you mean 'momentum'?",
        "scheduler.class_path: 'torch.optim.lr_scheduler' has no 'CosineAnealingLR'. Did you mean 'CosineAnnealingLR'?",
        "loss.class_path: 'torch' has no 'n'. Did you mean 'nn'?",
        "metric.class_path: must be a dotted import path",
        "train_epoch.class_path: 'tests.training.user_functions' has no 'train_epok'. Did you mean 'train_epoch'?",
        "validate.class_path: 'no_such_module.validate' cannot be imported",
    ):
        assert expected in mistakes


def test_correct_settings_have_no_mistakes() -> None:
    settings(scheduler=HALVING, train_epoch=user_function("train_epoch"), validate=user_function("validate")).check()


@pytest.mark.parametrize(
    ("mistaken", "named_in_error"),
    [
        ({"metric": METRIC | {"init_args": {"num_clases": 4}}}, ["metric", "num_clases"]),
        ({"metric": "torchmetrics.classification.MulticlassAccuracy"}, ["metric", "num_classes"]),
        ({"scheduler": "torch.optim.lr_scheduler.StepLR"}, ["scheduler", "step_size"]),
        ({"metric": METRIC, "loss": "tests.training.user_functions.WeightedLoss"}, ["loss", "weights"]),
        ({"optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": -1.0}}}, ["optimizer", "-1.0"]),
    ],
)
def test_missing_and_invalid_arguments_are_found_before_training(
    mistaken: dict[str, Any], named_in_error: list[str]
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        settings(**mistaken).check()
    for part in named_in_error:
        assert part in str(caught.value)


@pytest.mark.parametrize("metric", ["torchmetrics.MeanMetric", "torchmetrics.classification.BinaryConfusionMatrix"])
def test_metric_without_a_direction_needs_the_setting(metric: str) -> None:
    with pytest.raises(ConfigurationError, match=f"higher_is_better: {metric} does not say"):
        settings(metric=metric).check()
    settings(metric=metric, higher_is_better=False).check()
    assert settings(metric=metric, higher_is_better=False).direction() is False


@pytest.mark.parametrize(
    ("mistaken", "message"),
    [
        ({"batch_size": 0}, "batch_size: .*greater than or equal to 1, but got 0"),
        ({"precision": "fp8"}, "precision: must be one of fp32, bf16, fp16, but got 'fp8'"),
        ({"device": "gpu"}, "device: must be auto, cpu, cuda, cuda:1 ..., but got 'gpu'"),
        ({"gradient_clip_norm": 0}, "gradient_clip_norm: .*greater than 0, but got 0"),
        ({"optimizers": SGD}, "optimizers: unknown key .*Did you mean 'optimizer'"),
        ({"optimizer": {"class_path": "torch.optim.SGD", "args": {}}}, r"optimizer\.args: unknown key"),
        ({"scheduler_interval": "batch"}, "scheduler_interval: must be one of epoch, step"),
        ({"num_workers": -1}, "num_workers: .*but got -1"),
    ],
)
def test_invalid_value_is_an_error(mistaken: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        settings(**mistaken)


# --- mistakes in the data --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "validation", "message"),
    [
        (images(0), VALIDATION, "The training split has 0 examples"),
        (TRAIN, images(0), "The validation split has 0 examples"),
        (Pairs(**images(0)), VALIDATION, "The training split has 0 examples"),
        (TRAIN | {"targets": TRAIN["targets"][:-1]}, VALIDATION, "The training split has 96 inputs, but 95 targets"),
        (TRAIN, {"inputs": VALIDATION["inputs"]}, "The validation split needs targets, but has inputs"),
        (TRAIN, {}, "The validation split needs inputs and targets, but has nothing"),
    ],
)
def test_unusable_data_is_an_error(train: Any, validation: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        DefaultTraining(SmallNet(), settings(), train, validation)


def test_data_may_have_further_keys() -> None:
    assert TrainingRun(train=TRAIN | {"weights": torch.ones(3)}).train_epochs(1)


def test_fingerprint_distinguishes_splits() -> None:
    same = {name: tensor.clone() for name, tensor in TRAIN.items()}
    assert data_fingerprint(same) == data_fingerprint(TRAIN)
    other = same | {"targets": same["targets"].flip(0)}
    assert data_fingerprint(other) != data_fingerprint(TRAIN)
    assert data_fingerprint(Pairs(**TRAIN)) == data_fingerprint(Pairs(**same))
    assert data_fingerprint(Pairs(**TRAIN)) != data_fingerprint(Pairs(**images(95)))


def test_example_input_holds_the_first_examples() -> None:
    for data in (TRAIN, Pairs(**TRAIN)):
        assert torch.equal(example_input(data), TRAIN["inputs"][:2])
        assert torch.equal(example_input(data, 1000), TRAIN["inputs"])


def test_dataset_is_used_unchanged() -> None:
    pairs = Pairs(**TRAIN)
    assert as_dataset(pairs, "training") is pairs


def test_device() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
