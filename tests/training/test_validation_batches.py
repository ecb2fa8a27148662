"""Validation batches of another size than those of the training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kedro_aat.ranks import group
from kedro_aat.training.default import DefaultTraining
from kedro_aat.training.loading.loaders import Loaders
from kedro_aat.training.ranks.sharding import Shard
from tests.nets import images
from tests.training.test_out_of_memory import Hungry
from tests.training.training_run import METRIC, TrainingRun, make_probed_net, settings

VALIDATION = images(100, seed=1)
METRICS: dict[str, Any] = {
    "mean": METRIC,
    "linearized": METRIC | {"init_args": {"num_classes": 4, "average": "macro"}},
    "ranks": {"class_path": "torchmetrics.classification.MulticlassAUROC", "init_args": {"num_classes": 4}},
    "resampled": {
        "class_path": "torchmetrics.classification.MulticlassCalibrationError",
        "init_args": {"num_classes": 4},
    },
}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("size", [7, 64, 1000])
def test_scores_do_not_depend_on_the_batch(size: int, metric: str) -> None:
    """BatchNorms compute in evaluation mode, so examples do not depend on each other."""
    runs = [
        TrainingRun(validation=VALIDATION, validation_batch_size=each, metric=METRICS[metric]) for each in (size, None)
    ]
    for run in runs:
        run.runner.train_epoch()
    other, usual = (run.runner.validate() for run in runs)
    assert other.metric == pytest.approx(usual.metric, abs=1e-6)
    assert (other.scores is None, other.resampled is None) == (usual.scores is None, usual.resampled is None)
    if usual.scores is not None and other.scores is not None:
        torch.testing.assert_close(other.scores, usual.scores, rtol=0, atol=1e-6)


def test_size_of_the_batches() -> None:
    def sizes(**changes: Any) -> list[int]:
        run = TrainingRun(make_probed_net, validation=VALIDATION, **changes)
        run.runner.validate()
        return [len(batch) for batch in run.model.batches]  # type: ignore[union-attr]

    assert sizes() == [16] * 6 + [4]  # on a CPU
    assert sizes(validation_batch_size=64) == [64, 36]


def test_on_a_gpu_batches_are_larger_unless_the_user_makes_them() -> None:
    gpu, collate = torch.device("cuda"), {"collate_fn": "torch.utils.data.default_collate"}
    assert Loaders(settings(), gpu, 0).validation_batch_size == 64
    assert Loaders(settings(validation_batch_size=8), gpu, 0).validation_batch_size == 8
    assert Loaders(settings(loader=collate), gpu, 0).validation_batch_size == 16
    assert Loaders(settings(), gpu, 0, plain=True).validation_batch_size == 16


class HungryInValidation(Hungry):
    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.limit:
            torch.empty(1 << 60)
        return super().forward(x)


def test_too_large_a_batch_is_computed_in_pieces(caplog: pytest.LogCaptureFixture) -> None:
    hungry = TrainingRun(HungryInValidation, validation=VALIDATION, validation_batch_size=64)
    usual = TrainingRun(Hungry, validation=VALIDATION)
    for _ in range(2):
        evaluations = [run.runner.validate() for run in (hungry, usual)]
        assert evaluations[0].metric == pytest.approx(evaluations[1].metric, abs=1e-6)
        assert evaluations[0].scores is not None
        torch.testing.assert_close(evaluations[0].scores, evaluations[1].scores)
    assert caplog.text.count("validation batches of 64 are computed in pieces of 16") == 1


class OverwritesOutputs(HungryInValidation):
    """Returns the same memory each time, as a CUDA graph does."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("memory", torch.zeros(100, 4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits if self.training else self.get_buffer("memory")[: len(x)].copy_(logits)


def test_pieces_outlive_the_next_run_of_a_cuda_graph() -> None:
    runs = (
        TrainingRun(make, validation=VALIDATION, validation_batch_size=64, compile_mode="reduce-overhead")
        for make in (OverwritesOutputs, Hungry)
    )
    graph, usual = (run.runner.validate() for run in runs)
    assert graph.scores is not None
    assert usual.scores is not None
    torch.testing.assert_close(graph.scores, usual.scores)


def test_several_ranks_compute_no_pieces() -> None:
    """Each of them calls the model equally often, since it may exchange tensors: the loop halves batches on all."""
    with group.of_one():
        training = DefaultTraining(
            HungryInValidation(), settings(validation_batch_size=64), None, VALIDATION, shard=Shard(0, 1)
        )
        with pytest.raises(RuntimeError, match="memory"):
            training.validate(training.model)


def test_other_errors_of_a_large_batch_are_raised() -> None:
    class Broken(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            raise ZeroDivisionError

    run = TrainingRun(lambda: Broken(1, 1), validation=VALIDATION, validation_batch_size=64)
    with pytest.raises(ZeroDivisionError):
        run.training.validate(run.model)
