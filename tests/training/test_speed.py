"""What makes the default training fast: precision, memory format, compilation, and no waiting for the device."""

from __future__ import annotations

import copy
import shutil
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from kedro_aat.pipelines.digits.baseline import Uncompressed
from kedro_aat.testing.training import assert_same_bits
from kedro_aat.training.callables import Evaluation
from tests.nets import Pairs, Perceptron, Probe, SmallNet, images, vectors
from tests.training.training_run import (
    HALVING,
    TrainingRun,
    make_probed_net,
    make_sparse,
    plain_sgd,
    user_function,
)
from tests.training.user_functions import Call

# --- precision -----------------------------------------------------------------------------------------------


def output_types(model: nn.Module) -> set[torch.dtype]:
    assert isinstance(model, Probe)
    return {out.dtype for out in model.outputs}


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_half_precision(precision: str, dtype: torch.dtype) -> None:
    run = TrainingRun(make_probed_net, precision=precision)
    run.runner.train_epoch()
    assert output_types(run.model) == {dtype}
    losses = run.train_epochs(6)
    assert {parameter.dtype for parameter in run.model.parameters()} == {torch.float32}
    assert losses[-1] < 0.5 * losses[0]
    assert 0.7 < run.runner.validate().metric <= 1


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_every_model_is_validated_in_full_precision(precision: str) -> None:
    """As the delivered file computes: rounding of large targets would make the baseline look worse than it is."""
    inputs = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    data = {"inputs": inputs, "targets": inputs[:, :1] * 20 + 100}

    def validated(precision: str) -> Evaluation:
        model = Perceptron([6, 1])
        weights = {"layers.0.weight": torch.eye(1, 6) * 20, "layers.0.bias": torch.tensor([100.05])}
        model.load_state_dict(weights)
        mae: dict[str, Any] = {"loss": "torch.nn.MSELoss", "metric": "torchmetrics.MeanAbsoluteError"}
        run = TrainingRun(lambda: model, train=data, validation=data, precision=precision, **mae)
        return run.runner.validate()

    assert validated(precision).metric == validated("fp32").metric == pytest.approx(0.05, rel=1e-3)


def test_full_precision_has_no_autocast() -> None:
    run = TrainingRun(make_probed_net)
    run.train_epochs(1)
    assert output_types(run.model) == {torch.float32}


def test_loss_scaling_does_not_change_the_gradients() -> None:
    """A step of plain SGD shows the gradient, which fp16 scales up and down again."""
    steps = {}
    for precision in ("fp32", "fp16"):
        run = TrainingRun(precision=precision, train=images(16), optimizer=plain_sgd(1e-3))
        before = run.weights
        run.runner.train_epoch()
        steps[precision] = run.weights["conv.weight"] - before["conv.weight"]
    torch.testing.assert_close(steps["fp16"], steps["fp32"], rtol=0.05, atol=1e-6)


def test_state_of_the_loss_scaler_is_in_the_checkpoint() -> None:
    old, new = TrainingRun(precision="fp16"), TrainingRun(precision="fp16")
    for _ in range(2):
        old.train_epoch()
    checkpoint = copy.deepcopy(old.runner.checkpoint(0, {}))
    scaler = checkpoint.training["callables"]["scaler"]
    assert scaler["_growth_tracker"] > 0  # it has counted steps without overflow
    new.runner.resume(checkpoint)
    assert new.training.state_dict() == old.training.state_dict()
    assert new.train_epoch() == old.train_epoch()
    assert_same_bits(new.weights, old.weights)


def test_new_phase_has_a_new_loss_scaler() -> None:
    run = TrainingRun(precision="fp16")
    initial = run.training.state_dict()
    run.train_epochs(1)
    assert run.training.state_dict() != initial
    run.runner.reset_training()
    assert run.training.state_dict() == initial


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_metric_receives_outputs_in_full_precision(precision: str, calls: list[Call]) -> None:
    run = TrainingRun(precision=precision, metric=user_function("DtypeRecorder"))
    assert run.runner.validate().metric == 1.0
    assert {arguments["outputs"] for _, arguments in calls} == {torch.float32}


# --- memory format -------------------------------------------------------------------------------------------


def test_channels_last() -> None:
    def make() -> nn.Module:
        return Probe(SmallNet(in_channels=3))

    train, validation = images(96, num_channels=3), images(40, num_channels=3, seed=1)
    run, plain = (
        TrainingRun(make, train=train, validation=validation, channels_last=is_last) for is_last in (True, False)
    )
    assert run.train_epochs(1) == pytest.approx(plain.train_epochs(1), rel=1e-4)
    assert batch_formats(run.model) == {torch.channels_last}
    assert batch_formats(plain.model) == {torch.contiguous_format}
    assert not run.model.get_parameter("inner.conv.weight").is_contiguous()
    outputs = [each.model.eval()(validation["inputs"]) for each in (run, plain)]
    torch.testing.assert_close(*outputs)
    assert run.runner.validate().metric == plain.runner.validate().metric


def batch_formats(model: nn.Module) -> set[torch.memory_format]:
    assert isinstance(model, Probe)
    formats = (torch.contiguous_format, torch.channels_last)
    return {each for batch in model.batches for each in formats if batch.is_contiguous(memory_format=each)}


def test_channels_last_ignores_inputs_that_are_no_images() -> None:
    run = TrainingRun(lambda: Perceptron([6, 4]), train=vectors(32), validation=vectors(32), channels_last=True)
    assert run.train_epochs(1)


# --- compilation ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_model_trains_like_the_model() -> None:
    torch._dynamo.reset()
    runs = [TrainingRun(compress=make_sparse, compile=is_compiled) for is_compiled in (True, False)]
    losses = []
    for run in runs:
        losses.append(run.train_epochs(2))
        run.controller.compression_rate = 0.8
        losses[-1] += run.train_epochs(1)
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert runs[0].controller.compression_rate == runs[1].controller.compression_rate == 544 / 680
    assert list(runs[0].model.state_dict()) == list(runs[1].model.state_dict())


# --- no waiting for the device -------------------------------------------------------------------------------


class ReadCounter(TorchDispatchMode):
    """Counts reads of tensors' values (`item()`, `float()`, `if tensor`), for which the host waits for the device."""

    WAITING = (
        torch.ops.aten._local_scalar_dense.default,
        torch.ops.aten.nonzero.default,
        torch.ops.aten.masked_select.default,
    )

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in self.WAITING
        return func(*args, **(kwargs or {}))


def count_reads(run: TrainingRun, *, training: bool) -> int:
    with ReadCounter() as counter:
        _ = run.runner.train_epoch() if training else run.runner.validate()
    return int(counter.count)


def test_reads_are_counted() -> None:
    tensor = torch.ones(3)
    with ReadCounter() as counter:
        float(tensor.sum())
        tensor[0].item()
        bool(tensor.any())
        tensor.nonzero()
    assert counter.count == 4


@pytest.mark.parametrize("is_compressed", [False, True])
@pytest.mark.parametrize("as_dictionary", [True, False])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"precision": "bf16", "gradient_clip_norm": 1.0},
        {"scheduler": HALVING, "scheduler_interval": "step"},
        {"channels_last": True},
    ],
    ids=["plain", "bf16 and clipping", "scheduler", "channels last"],
)
def test_host_reads_as_often_in_long_epochs_as_in_short_ones(
    changes: dict[str, Any], as_dictionary: bool, is_compressed: bool
) -> None:
    counts = []
    for num_steps in (2, 12):
        data: Any = images(16 * num_steps)
        data = data if as_dictionary else Pairs(**data)
        compress = make_sparse if is_compressed else Uncompressed
        run = TrainingRun(compress=compress, train=data, validation=data, **changes)
        counts.append([count_reads(run, training=training) for training in (True, False)])
    assert counts[0] == counts[1]
    # The loss, or the metric and its checks, and whether the model is unchanged; and a random number, which the loader
    # draws on the host.
    assert max(counts[0]) <= 5
