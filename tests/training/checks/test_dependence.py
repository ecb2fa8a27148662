"""Windows that overlap and copies are seen before training; ordinary data raise no alarm."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris, load_wine
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from kedro_aat.config import AatSettings
from kedro_aat.pipelines.aat.baseline import evaluate_baseline
from kedro_aat.training.checks.dependence import dependence_warning

GENERATOR = torch.Generator().manual_seed(0)
SERIES = torch.randn(6000, 3, generator=GENERATOR).cumsum(0)
ROUNDED = (10 + 5 * torch.sin(torch.arange(20000) / 4) + torch.randn(20000, generator=GENERATOR)).round(decimals=1)


class OneByOne(Dataset[Any]):
    def __init__(self, inputs: Any, seconds: float = 0) -> None:
        self.inputs, self.seconds = inputs, seconds

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> Any:
        time.sleep(self.seconds)
        return self.inputs[index], 0


def warning(inputs: Tensor, groups: Tensor | None = None) -> str | None:
    return dependence_warning({"inputs": inputs, "targets": torch.zeros(len(inputs))}, groups=groups)


def windows(length: int, stride: int, series: Tensor = SERIES) -> Tensor:
    """Windows (N, C, T) of a series (T, C), or (N, T) of one (T,)."""
    return series.unfold(0, length, stride)


@pytest.mark.parametrize("shape", ["channels first", "channels last", "one series", "double"])
@pytest.mark.parametrize(("length", "stride"), [(100, 50), (100, 10), (64, 1), (100, 85), (8, 1)])
@pytest.mark.parametrize("is_shuffled", [False, True], ids=["in order", "shuffled"])
def test_windows_that_overlap(shape: str, length: int, stride: int, is_shuffled: bool) -> None:
    inputs = windows(length, stride)
    inputs = {
        "channels first": inputs,
        "channels last": inputs.transpose(1, 2),
        "one series": inputs[:, 0],
        "double": inputs.double(),
    }[shape]
    if is_shuffled:
        inputs = inputs[torch.randperm(len(inputs), generator=torch.Generator().manual_seed(1))]
    words = warning(inputs)
    assert words is not None
    assert f"of the {len(inputs):,} validation examples overlap with another one" in words
    assert "certificate.group" in words


def test_windows_of_rounded_values_and_of_a_part_of_the_split() -> None:
    assert warning(windows(24, 12, ROUNDED)) is not None
    apart = torch.randn(1000, 3, 100, generator=GENERATOR)
    words = warning(torch.cat([apart, windows(100, 20)]))  # 296 of 1,296
    assert words is not None
    assert int(words.split("About ")[1].split("%")[0]) in range(8, 35)


def test_windows_may_overlap_within_their_group() -> None:
    inputs = torch.cat([windows(50, 25, series) for series in SERIES.split(600)])
    series = torch.arange(10).repeat_interleave(23)
    assert warning(inputs) is not None
    assert warning(inputs, series) is None
    assert warning(inputs, torch.arange(230)) is not None


def test_copies() -> None:
    digits = torch.tensor(load_digits().data).float()
    words = warning(torch.cat([digits, digits[:200]])[torch.randperm(1997, generator=GENERATOR)])
    assert words is not None
    assert "10% of the 1,997 validation examples are exact copies" in words
    images = torch.randint(0, 256, (60, 3, 8, 8), generator=GENERATOR).byte()
    twice, groups = images.repeat(2, 1, 1, 1), torch.arange(60).repeat(2)
    assert warning(twice) is not None
    assert warning(twice, groups) is None
    table = torch.randn(300, 5, generator=GENERATOR)
    assert warning(table.repeat(10, 1)) is not None


@pytest.mark.parametrize("load", [load_digits, load_breast_cancer, load_diabetes, load_iris, load_wine])
def test_no_alarm_on_known_data(load: Any) -> None:
    assert warning(torch.tensor(load().data).float()) is None


def _one_hot(number: int) -> Tensor:
    columns = torch.randint(0, 5, (number, 4), generator=GENERATOR)
    return torch.nn.functional.one_hot(columns, 5).flatten(1).float()


def _blank_rows() -> Tensor:
    """Images with blank rows above and below, as in MNIST."""
    inputs = torch.zeros(2000, 28, 28)
    inputs[:, 4:24, 4:24] = (torch.rand(2000, 20, 20, generator=GENERATOR) * 255).round() / 255
    return inputs * (torch.rand(2000, 28, 28, generator=GENERATOR) < 0.3)


@pytest.mark.parametrize(
    "inputs",
    [
        windows(100, 100),
        windows(100, 97),
        windows(24, 24, ROUNDED),
        load_digits(return_X_y=True)[0].reshape(-1, 8, 8),
        load_digits(return_X_y=True)[0].reshape(-1, 1, 8, 8),
        _one_hot(3000),
        torch.cat([_one_hot(3000), torch.randn(3000, 3, generator=GENERATOR)], 1),
        torch.randint(1, 6, (3000, 10), generator=GENERATOR).float(),
        torch.randint(0, 2, (20000, 30), generator=GENERATOR).float(),
        _blank_rows(),
        _blank_rows().flatten(1),
        _blank_rows()[:, None],
        (torch.rand(3000, 64, generator=GENERATOR) ** 6 * 1000).long(),
        torch.zeros(100, 1, 200),
        torch.full((100, 20), float("nan")),
        torch.randn(3, 10),
        torch.randn(50),
        torch.randn(50, 0),
    ],
    ids=[
        *["windows apart", "hardly overlapping", "rounded", "digits", "images of digits", "one-hot", "mixed"],
        *["ratings", "binary", "blank rows", "blank pixels", "images", "tokens", "constant", "missing", "three"],
        *["numbers", "nothing"],
    ],
)
def test_no_alarm(inputs: Any) -> None:
    assert warning(torch.as_tensor(inputs)) is None


def test_datasets_are_read_in_part() -> None:
    inputs = windows(100, 50)
    assert dependence_warning(TensorDataset(inputs, torch.zeros(len(inputs)))) is not None
    words = dependence_warning(OneByOne(windows(40, 1)), "test")
    assert words is not None
    assert "of the 5,961 test examples" in words
    started = time.perf_counter()
    dependence_warning(OneByOne(inputs, seconds=0.02))
    assert time.perf_counter() - started < 1
    assert dependence_warning(OneByOne([torch.zeros(number + 1) for number in range(20)])) is None
    assert dependence_warning(OneByOne([{"text": "a"}] * 20)) is None


def test_the_batches_of_a_loader_are_made_by_its_own_function() -> None:
    inputs = windows(100, 50)
    triples = [(each, float(number), str(number)) for number, each in enumerate(inputs)]

    def pairs(examples: list[Any]) -> tuple[Tensor, Tensor]:
        return torch.stack([each[0] for each in examples]), torch.tensor([each[1] for each in examples])

    words = dependence_warning(DataLoader(triples, batch_size=8, collate_fn=pairs))  # type: ignore[arg-type]
    assert words == dependence_warning(TensorDataset(inputs, torch.zeros(len(inputs))))


@pytest.mark.parametrize("group", [None, "series"])
def test_the_baseline_is_evaluated_with_a_warning(group: str | None, caplog: pytest.LogCaptureFixture) -> None:
    inputs = windows(20, 10)[:, :1].contiguous()
    split = {"inputs": inputs, "targets": torch.arange(len(inputs)) % 2, "series": torch.arange(len(inputs)) // 300}
    metric = {"class_path": "torchmetrics.classification.MulticlassAccuracy", "init_args": {"num_classes": 2}}
    metric["init_args"]["average"] = "micro"  # type: ignore[index]
    settings = AatSettings.model_validate(
        {
            "budget": {"max_drop": 0.01},
            "training": {"metric": metric, "baseline_check": "off"},
            "certificate": {"group": group},
        }
    )
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(20, 2))
    evaluate_baseline(model, split, split, settings)
    assert ("validation examples overlap" in caplog.text) == (group is None)


def test_random_generators_stay_as_they_are() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    dependence_warning(OneByOne(windows(100, 50)))
    assert torch.equal(torch.rand(1), expected)


def test_a_large_split_takes_no_time() -> None:
    inputs = torch.zeros(200_000, 9, 128)
    inputs[:, :, ::16] = torch.randn(200_000, 9, 8, generator=GENERATOR)
    started = time.perf_counter()
    assert warning(inputs) is None
    assert time.perf_counter() - started < 2  # 0.1 s on an idle core
