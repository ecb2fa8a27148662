"""TF32 and cuDNN's trials hold for training steps on a GPU alone; every validation multiplies in float32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kedro_aat.compression.build import build_controller
from kedro_aat.compression.settings import FilterPruning
from kedro_aat.numerics import exact_float32, fast_training
from kedro_aat.training.callables import evaluate
from kedro_aat.training.default import DefaultTraining
from tests.nets import SmallNet
from tests.training.training_run import TRAIN, TrainingRun, settings

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
OPERATIONS: tuple[Any, ...] = (
    torch.backends.cuda.matmul,
    *(getattr(torch.backends.cudnn, kind) for kind in ("conv", "rnn")),
    *(getattr(torch.backends.mkldnn, kind) for kind in ("matmul", "conv", "rnn")),
)


def precisions() -> list[str]:
    return [operation.fp32_precision for operation in OPERATIONS]


def all_settings() -> list[Any]:
    older: tuple[Any, ...] = (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)
    return [*precisions(), *older, torch.backends.cudnn.benchmark]


@pytest.fixture(autouse=True)
def settings_as_before() -> Iterator[None]:
    before = precisions(), torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(before[1])
    torch.backends.cudnn.allow_tf32 = before[2]
    for operation, precision in zip(OPERATIONS, before[0], strict=True):
        operation.fp32_precision = precision


@pytest.mark.parametrize("set_by_user", ["highest", "high", "medium"])
def test_training_on_a_gpu_is_fast_and_leaves_the_settings(set_by_user: str) -> None:
    torch.set_float32_matmul_precision(set_by_user)
    before = all_settings()
    with fast_training(CUDA, tf32=True, cudnn_benchmark=True):
        assert all_settings() == [*["tf32"] * 3, *["ieee"] * 3, "high", True, True]
        with exact_float32():
            assert all_settings() == [*["ieee"] * 6, "highest", False, False]
        assert all_settings() == [*["tf32"] * 3, *["ieee"] * 3, "high", True, True]
    assert all_settings() == before
    with fast_training(CUDA, tf32=False, cudnn_benchmark=False):
        assert all_settings() == [*["ieee"] * 6, "highest", False, False]
    assert all_settings() == before
    with fast_training(CPU, tf32=True, cudnn_benchmark=True):
        assert all_settings() == before


def test_operations_that_the_user_has_set_one_by_one_are_restored() -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32"  # torch then refuses to read its older setting
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # type: ignore[attr-defined]  # torch's stubs lack it
    before = precisions()
    with exact_float32():
        assert precisions() == ["ieee"] * 6
    assert precisions() == before


def test_a_validation_is_exact_whatever_torch_is_set_to() -> None:
    """As the delivered file computes; `medium` is bfloat16 on some CPUs, and convolutions are in TF32 by default."""
    found: list[list[str]] = []

    class Watching(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            found.append(precisions())
            return super().forward(x)

    torch.set_float32_matmul_precision("medium")
    torch.manual_seed(0)
    model, inputs = Watching(64, 1, bias=False), torch.randn(8, 64)
    exact = (inputs.double() @ model.weight.double().T).sum()
    metric = evaluate(model, lambda model: float(model(inputs).sum())).metric
    assert metric == pytest.approx(float(exact.detach()), rel=1e-5)
    assert found == [["ieee"] * 6]


def test_default_training_validates_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_float32_matmul_precision("medium")
    run, found = TrainingRun(), list[list[str]]()
    run.model.register_forward_hook(lambda module, args, out: found.append(precisions()))
    run.train_epochs(1)
    assert found[:6] == [precisions()] * 6
    assert found[6:] == [["ieee"] * 6] * 3


def test_the_teacher_answers_as_in_training_whoever_asks_first() -> None:
    """Its answers are kept, so a resumed run, which may ask at another time, has the same ones."""
    found: list[list[str]] = []
    torch.set_float32_matmul_precision("medium")
    teacher = SmallNet()
    teacher.register_forward_hook(lambda module, args, out: found.append(precisions()))
    training = DefaultTraining(SmallNet(), settings(), TRAIN, None, teacher=teacher)
    training.sample_gradients(lambda: None)
    assert found == [precisions()] * 2  # the first example, and then all


def test_a_cut_model_is_compared_in_exact_float32() -> None:
    """A GPU's convolutions in TF32, torch's default, differ between widths by more than a wrong cut may."""
    found: list[list[str]] = []

    def note(module: nn.Module, args: Any, output: Tensor) -> None:
        found.append(precisions())

    torch.set_float32_matmul_precision("medium")
    torch.manual_seed(0)
    inputs = torch.randn(4, 3, 8, 8)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 4))
    model.register_forward_hook(note)
    controller = build_controller(model, FilterPruning(), example_input=inputs)
    controller.disable_scheduler()
    controller.compression_rate = 0.5
    found.clear()
    controller.strip()
    assert len(found) >= 2
    assert found == [["ieee"] * 6] * len(found)
