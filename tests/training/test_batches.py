"""Batches of the default training: their order, their sizes, and the kinds of data."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn

from kedro_aat.testing.training import assert_same_bits
from kedro_aat.training.default import DefaultTraining
from kedro_aat.training.random_state import seed_everything
from tests.nets import Pairs, Perceptron, Probe, SmallNet, images
from tests.training.training_run import (
    TRAIN,
    VALIDATION,
    TrainingRun,
    make_probed_net,
    settings,
)


def pop_batch_sizes(model: nn.Module) -> list[int]:
    """Sizes of the batches since the last call."""
    assert isinstance(model, Probe)
    batch_sizes = [len(batch) for batch in model.batches]
    model.batches.clear()
    return batch_sizes


@pytest.mark.parametrize("as_dictionary", [True, False])
@pytest.mark.parametrize(
    ("num_examples", "training", "validation"),
    [(40, [16, 16], [16, 16, 8]), (32, [16, 16], [16, 16]), (17, [16], [16, 1]), (16, [16], [16]), (5, [5], [5])],
)
def test_only_training_drops_a_smaller_last_batch(
    num_examples: int, training: list[int], validation: list[int], as_dictionary: bool
) -> None:
    data: Any = images(num_examples)
    data = data if as_dictionary else Pairs(**data)
    run = TrainingRun(make_probed_net, train=data, validation=data)
    run.runner.train_epoch()
    assert pop_batch_sizes(run.model) == training
    assert run.training.steps_per_epoch == len(training)
    run.runner.validate()
    assert pop_batch_sizes(run.model) == validation


def order_of_examples(seed: int, epoch: int) -> list[int]:
    data = {"inputs": torch.arange(64.0).view(64, 1), "targets": torch.arange(64)}
    training = DefaultTraining(Perceptron([1, 4]), settings(), data, data, seed=seed)
    return torch.cat([targets for _, targets in training.train_batches(epoch)]).tolist()


def test_order_depends_on_seed_and_epoch_alone() -> None:
    orders = [order_of_examples(seed=0, epoch=epoch) for epoch in range(5)]
    assert all(sorted(each) == list(range(64)) for each in orders)
    assert len(set(map(tuple, orders))) == 5
    torch.manual_seed(99)  # the global generator plays no part
    assert order_of_examples(seed=0, epoch=3) == orders[3]


def test_neighboring_seeds_share_no_order() -> None:
    orders = [tuple(order_of_examples(seed, epoch)) for seed, epoch in itertools.product(range(3), range(4))]
    assert len(set(orders)) == 12


def test_validation_keeps_its_order() -> None:
    run = TrainingRun()
    batches = [targets for _, targets in run.training.validation_batches()]
    assert torch.equal(torch.cat(batches), VALIDATION["targets"])


def test_the_seed_determines_the_weights() -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Dropout(0.2), SmallNet())

    first, again, other = (TrainingRun(make, seed=seed) for seed in (0, 0, 1))
    start = first.weights
    losses = []
    for seed, run in ((0, first), (0, again), (1, other)):
        run.model.load_state_dict(start)
        seed_everything(seed)
        losses.append(run.train_epochs(2))
    assert losses[0] == losses[1] != losses[2]
    assert_same_bits(first.weights, again.weights)
    assert not torch.equal(first.weights["1.conv.weight"], other.weights["1.conv.weight"])


def test_dataset_of_pairs_trains_like_a_dictionary_of_tensors() -> None:
    tensors, pairs = TrainingRun(), TrainingRun(train=Pairs(**TRAIN), validation=Pairs(**VALIDATION))
    assert tensors.train_epochs(2) == pairs.train_epochs(2)
    assert_same_bits(tensors.weights, pairs.weights)
    assert tensors.runner.validate().metric == pairs.runner.validate().metric


@pytest.mark.parametrize("as_dictionary", [True, False])
def test_loading_data_in_another_process_changes_nothing(as_dictionary: bool) -> None:
    train, validation = (data if as_dictionary else Pairs(**data) for data in (TRAIN, VALIDATION))
    here, elsewhere = (TrainingRun(train=train, validation=validation, num_workers=number) for number in (0, 1))
    assert here.train_epochs(1) == elsewhere.train_epochs(1)
    assert_same_bits(here.weights, elsewhere.weights)
