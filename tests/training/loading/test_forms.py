"""Data and models in every form train, are validated and resume in the default training."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from kedro_aat.model_inputs import call_model, num_examples
from kedro_aat.pipelines.digits.baseline import Uncompressed
from kedro_aat.testing.training import assert_same_bits
from kedro_aat.training.data import data_fingerprint, example_count, example_input, synthetic_input
from kedro_aat.training.default import DefaultTraining
from kedro_aat.training.random_state import seed_everything
from kedro_aat.training.settings import TrainingSettings
from tests.training.loading import cases
from tests.training.loading.cases import IDS, MAP, MASK, PIXELS, RAGGED, TENSORS, Examples, X, Y, loader

HERE = "tests.training.loading.cases."
ACCURACY = {
    "class_path": "torchmetrics.classification.MulticlassAccuracy",
    "init_args": {"num_classes": 3, "average": "micro"},
}
CE = "torch.nn.CrossEntropyLoss"
BCE, MSE, MAE = "torch.nn.BCEWithLogitsLoss", "torch.nn.MSELoss", "torchmetrics.MeanAbsoluteError"
BINARY = "torchmetrics.classification.BinaryAccuracy"
LEFT, RIGHT = X[:, :2], X[:, 2:]
SIDES = {"left": LEFT, "right": RIGHT}
KINDS = [
    # Batches.
    ("pairs", cases.Plain, Examples(lambda i: (X[i], Y[i])), {}),
    ("dictionaries", cases.Plain, Examples(lambda i: {"image": X[i], "label": Y[i], "path": f"{i}.png"}), {}),
    ("named as parameters", cases.Plain, Examples(lambda i: {"x": X[i], "weight": X[i], "y": Y[i]}), {}),
    ("in double precision", cases.Plain, Examples(lambda i: (X[i].double().numpy(), int(Y[i]))), {}),
    ("named tuples", cases.Plain, Examples(lambda i: cases.Point(Y[i], X[i])), {}),
    ("dataclass", cases.Plain, Examples(lambda i: (X[i], Y[i])), {"loader": {"collate_fn": HERE + "collate_records"}}),
    ("triples", cases.Plain, Examples(lambda i: (X[i], Y[i], i)), {"batch": {"inputs": 0, "targets": 1}}),
    ("positions", cases.TwoInputs, TensorDataset(LEFT, RIGHT, Y), {"batch": {"inputs": [0, 1], "targets": 2}}),
    (
        "keywords",
        cases.TwoInputs,
        Examples(lambda i: {"right": RIGHT[i], "of": {"left": LEFT[i]}, "kind": Y[i]}),
        {"batch": {"inputs": ["right", "of.left"], "targets": "kind"}},
    ),
    ("one dictionary", cases.TakesDict, {"inputs": SIDES, "targets": Y}, {}),
    ("tuple of inputs", cases.TwoInputs, Examples(lambda i: ((LEFT[i], RIGHT[i]), Y[i])), {}),
    ("tensors by name", cases.Plain, {"x": X, "y": Y}, {}),
    ("arrays by name", cases.Plain, {"x": X.double().numpy(), "y": Y.int().numpy()}, {}),
    ("arrays", cases.Plain, {"inputs": X.numpy(), "targets": Y.numpy()}, {}),
    ("arrays within", cases.TwoInputs, {"inputs": (LEFT.numpy(), RIGHT.numpy()), "targets": Y.numpy()}, {}),
    ("tables", cases.Plain, {"inputs": pd.DataFrame(X.numpy()), "targets": pd.Series(Y.numpy())}, {}),
    ("a pair of arrays", cases.Plain, (X.numpy(), Y.numpy()), {}),
    ("a pair of tensors", cases.Plain, (X, Y), {}),
    ("further tensors", cases.TwoInputs, SIDES | {"labels": Y, "age": Y}, {}),
    ("as Hugging Face", cases.Words, {"input_ids": IDS, "attention_mask": MASK, "labels": Y, "idx": Y}, {}),
    # Where they come from.
    ("stream with a length", cases.Plain, cases.SizedStream(), {}),
    ("stream", cases.Plain, cases.Stream(), {}),
    ("stream by epoch", cases.Plain, cases.EpochStream(), {}),
    ("loader", cases.Plain, loader(), {}),
    ("loader of a stream", cases.Plain, loader(cases.Stream()), {}),
    ("loader of batches", cases.Plain, loader(cases.BatchStream(), batch_size=None), {}),
    ("padded", cases.Recurrent, RAGGED, {"loader": {"collate_fn": HERE + "collate_padded"}}),
    (
        "padded to a length",
        cases.Recurrent,
        RAGGED,
        {"loader": {"collate_fn": {"class_path": HERE + "PadTo", "init_args": {"length": 6}}}},
    ),
    (
        "weighted sampler",
        cases.Plain,
        TENSORS,
        {
            "loader": {
                "sampler": {
                    "class_path": "torch.utils.data.WeightedRandomSampler",
                    "init_args": {"weights": [1.0] * 31 + [9.0], "num_samples": 24},
                }
            }
        },
    ),
    ("batch sampler", cases.Plain, TENSORS, {"loader": {"batch_sampler": "torch.utils.data.BatchSampler"}}),
    ("steps", cases.Plain, Examples(lambda i: (X[i], Y[i])), {"loader": {"steps_per_epoch": 2}}),
    # Outputs and targets.
    (
        "two heads",
        cases.TwoHeads,
        {"x": X, "kind": Y, "size": X[:, 0]},
        {
            "batch": {"inputs": "x", "targets": ["kind", "size"]},
            "output": ["kind", "size"],
            "loss": HERE + "TwoLosses",
        },
    ),
    ("one of two heads", cases.TwoHeads, TENSORS, {"output": "kind"}),
    ("first of a tuple", cases.Pair, TENSORS, {"output": 0}),
    ("auxiliary output", cases.Auxiliary, TENSORS, {}),
    ("weighted outputs", cases.Auxiliary, TENSORS, {"output": {0: 1.0, 1: 0.4}}),
    ("class weights", cases.Plain, TENSORS, {"loss": {"class_path": CE, "init_args": {"weight": [1.0, 2, 3]}}}),
    ("column of numbers", cases.OneOutput, TensorDataset(X, X[:, 0]), {"loss": MSE, "metric": MAE}),
    ("one logit", cases.OneOutput, TensorDataset(X, Y.clamp(max=1)), {"loss": BCE, "metric": BINARY}),
    (
        "several labels",
        cases.FiveOutputs,
        TensorDataset(X, (X[:, :5] > 0).long()),
        {
            "loss": {"class_path": BCE, "init_args": {"pos_weight": [1.0, 2, 3, 4, 5]}},
            "metric": {
                "class_path": "torchmetrics.classification.MultilabelF1Score",
                "init_args": {"num_labels": 5},
            },
        },
    ),
    (
        "masks",
        cases.Segmenter,
        TensorDataset(PIXELS, torch.where(PIXELS[:, 0] > 1, 255, MAP)),
        {
            "loss": {"class_path": CE, "init_args": {"ignore_index": 255}},
            "metric": {
                "class_path": "torchmetrics.classification.MulticlassJaccardIndex",
                "init_args": {"num_classes": 3, "ignore_index": 255},
            },
        },
    ),
]  # fmt: skip


def settings(**changes: Any) -> TrainingSettings:
    defaults: dict[str, Any] = {
        "batch_size": 8,
        "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05}},
        "metric": ACCURACY,
        "device": "cpu",
    }
    return TrainingSettings.model_validate(defaults | changes)


class Run:
    """A model in the default training, on copies of the data as Kedro hands them to nodes."""

    def __init__(self, make: Callable[[], nn.Module], data: Any, validation: Any = None, **changes: Any) -> None:
        torch.manual_seed(0)
        self.model = make()
        teacher = copy.deepcopy(self.model)
        with torch.no_grad():
            for parameter in teacher.parameters():
                parameter.mul_(1.1)
        validation = data if validation is None else validation
        if isinstance(validation, cases.EpochStream):
            validation = cases.SizedStream()
        self.training = DefaultTraining(
            self.model, settings(**changes), copy.deepcopy(data), copy.deepcopy(validation), teacher=teacher
        )
        self.optimizer, _ = self.training.configure_optimizers()

    def train(self, epoch: int) -> float:
        controller = Uncompressed(self.model)
        return self.training.train_epoch(
            controller, self.model, epoch=epoch, optimizer=self.optimizer, lr_scheduler=None
        )


@pytest.mark.parametrize(("make", "data", "changes"), [kind[1:] for kind in KINDS], ids=[kind[0] for kind in KINDS])
def test_every_form_trains_and_resumes(
    make: Callable[[], nn.Module], data: Any, changes: dict[str, Any], recwarn: pytest.WarningsRecorder
) -> None:
    run = Run(make, data, **changes)
    seed_everything(1)
    first = run.train(0)
    between = copy.deepcopy(run.model.state_dict())
    run.training.adapt(run.model)
    run.model.load_state_dict(between)
    second = run.train(1)
    assert second < 1.2 * first
    evaluation = run.training.validate(run.model)
    assert evaluation.scores is None or len(evaluation.scores) == 32
    # What the rest of a run needs of the data.
    given = example_input(data, 3, run.training.settings, run.model)
    made_up = synthetic_input(data, 4, run.training.settings, run.model)
    run.model.eval()
    assert num_examples(given) == 3
    assert num_examples(made_up) == 4
    call_model(run.model, given)
    call_model(run.model, made_up)
    assert example_count(data) == 32
    assert data_fingerprint(copy.deepcopy(data)) == data_fingerprint(data)
    run.training.sample_gradients(lambda: None)
    # A run that is resumed, with other random numbers, sees the same.
    seed_everything(99)
    resumed = Run(make, data, **changes)
    resumed.model.load_state_dict(between)
    resumed.train(1)
    weights = {name: tensor for name, tensor in run.model.state_dict().items() if "num_batches" not in name}
    again = {name: tensor for name, tensor in resumed.model.state_dict().items() if "num_batches" not in name}
    assert_same_bits(weights, again)
    assert not [each for each in recwarn if "broadcast" in str(each.message)]
