"""The lowest rate at which the limits of the delivered file hold, found without training."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

from kedro_aat.compression.filters.controller import FilterPruningController
from kedro_aat.compression.filters.costs import num_macs, num_parameters
from kedro_aat.compression.settings import Quantization
from kedro_aat.delivery import costs as module
from kedro_aat.delivery.files import Files
from kedro_aat.delivery.finished import FinishedSteps
from kedro_aat.delivery.limits import LATENCY_SHARE, LimitedFile, lowest_rate
from kedro_aat.errors import ConfigurationError
from kedro_aat.export.measure import Latency
from kedro_aat.export.onnx_file import to_onnx
from kedro_aat.export.settings import ExportSettings
from kedro_aat.search.tactics import Ranking
from kedro_aat.testing.training import SmallNet, images
from tests.compression.filters.pruned import pruned

IMAGES = images(4)["inputs"]
GLOBAL = Ranking(importance="l2", ranking="global")


def controller_of(**settings: Any) -> FilterPruningController:
    torch.manual_seed(0)
    return pruned(SmallNet(width=32), IMAGES, **settings)


def file_of(second: Quantization | None = None, **limits: Any) -> LimitedFile:
    return LimitedFile(ExportSettings.model_validate({"limits": limits, "dynamic_axes": {}}), second, IMAGES)


def found(
    controller: FilterPruningController, file: LimitedFile, *, highest: float = 0.99, folder: Path | None = None
) -> float:
    return lowest_rate(controller, file, highest, controller.rankings[0], FinishedSteps(folder))


def model_at(controller: FilterPruningController, rate: float) -> nn.Module:
    copied = copy.deepcopy(controller)
    copied.compression_rate = rate
    return copied.strip().eval()


def costs(model: nn.Module) -> dict[str, int]:
    return {
        "parameters": num_parameters(model),
        "macs": num_macs(model, IMAGES),
        "onnx_bytes": len(to_onnx(model, IMAGES, search=False).SerializeToString()),
    }


@pytest.mark.parametrize(
    ("key", "rate_of"),
    [
        pytest.param("parameters", "parameters", marks=pytest.mark.slow),
        ("macs", "filters"),
        pytest.param("parameters", "macs", marks=pytest.mark.slow),
        pytest.param("onnx_bytes", "macs", marks=pytest.mark.slow),
    ],
)
def test_limit_holds_at_the_rate_and_not_far_below_it(key: str, rate_of: str) -> None:
    controller = controller_of(rate_of=rate_of)
    limit = costs(model_at(controller, 0.0))[key] // 3
    rate = found(controller, file_of(None, **{key: limit}))
    assert costs(model_at(controller, rate))[key] <= limit
    assert costs(model_at(controller, 1 - 1.2 * (1 - rate)))[key] > limit
    assert controller.compression_rate == 0  # only copies of it were cut


def test_a_limit_of_bytes_holds_at_the_rate_and_not_far_below_it() -> None:
    torch.manual_seed(0)
    controller = pruned(SmallNet(width=3), IMAGES)  # few filters, so that few files are exported
    limit = int(0.8 * costs(model_at(controller, 0.0))["onnx_bytes"])
    rate = found(controller, file_of(onnx_bytes=limit), highest=0.8)
    assert costs(model_at(controller, rate))["onnx_bytes"] <= limit
    assert costs(model_at(controller, rate - 0.01))["onnx_bytes"] > limit


def test_all_limits_hold() -> None:
    controller = controller_of()
    whole = costs(model_at(controller, 0.0))
    limits: dict[str, Any] = {"parameters": whole["parameters"] // 2, "macs": whole["macs"] // 5}
    left = costs(model_at(controller, found(controller, file_of(**limits))))
    assert all(left[key] <= limit for key, limit in limits.items())


@pytest.mark.slow
def test_bytes_are_those_of_the_second_stages_file() -> None:
    controller = controller_of()
    limit = 12_000
    in_full_precision = found(controller, file_of(onnx_bytes=limit))
    file = file_of(Quantization(), onnx_bytes=limit)
    rate = found(controller, file)
    assert 0 < rate < in_full_precision
    controller.compression_rate = rate
    quantized = file.model_of(controller)
    assert len(to_onnx(quantized, IMAGES, search=False).SerializeToString()) <= limit


def test_what_no_rate_can_keep_is_an_error_with_the_smallest_reachable_file() -> None:
    controller = controller_of()
    smallest = costs(model_at(controller, 0.8))
    with pytest.raises(ConfigurationError) as caught:
        found(controller, file_of(parameters=100, onnx_bytes=10_000_000), highest=0.8)
    (mistake,) = caught.value.mistakes
    assert mistake.startswith("export.limits: no rate up to 0.8 keeps them.")
    assert f"{smallest['parameters']:,} parameters" in mistake
    assert "above the limit of 100" in mistake
    assert "maximal_rate" in mistake


def test_what_the_uncompressed_model_keeps_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="the uncompressed model keeps them"):
        found(controller_of(), file_of(parameters=10**9))


def test_latency_is_below_its_limit_by_a_share(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(files: Sequence[bytes], *_: Any, batch_sizes: Sequence[int], **__: Any) -> list[dict[int, Latency]]:
        times = [len(file) / 1000 for file in files]
        return [{size: Latency(time, (time, time), time) for size in batch_sizes} for time in times]

    monkeypatch.setattr(module, "measure_latency", measured)
    controller = controller_of()
    limit = costs(model_at(controller, 0.0))["onnx_bytes"] / 2000
    rate = found(controller, file_of(latency_ms={1: limit}), highest=0.8)
    time = costs(model_at(controller, rate))["onnx_bytes"] / 1000
    assert 0.7 * limit < time <= LATENCY_SHARE * limit


@pytest.mark.slow
def test_a_run_that_goes_on_has_the_same_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    controller, file = controller_of(), file_of(onnx_bytes=20_000)
    rate = found(controller, file, folder=tmp_path)
    monkeypatch.setattr(module, "files_of", None)
    assert found(controller, file, folder=tmp_path) == rate


def test_a_target_is_written_only_where_a_limit_needs_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[list[str]] = []

    def files_of(model: nn.Module, inputs: object, settings: object, targets: Sequence[str]) -> Files:
        written.append(list(targets))
        return Files(onnx.ModelProto())

    monkeypatch.setattr(module, "files_of", files_of)
    file = file_of(onnx_bytes=10**6, targets={"litert": {"latency_ms": {1: 5.0}}})
    assert file.limit(0.5).holds(controller_of())  # a step of the schedule, which knows no latency
    assert written == [[]]


@pytest.mark.slow
def test_another_ranking_keeps_the_limit_as_well() -> None:
    """The same share of the parameters is another share of the operations, if other layers are cut."""
    convolutions = (nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    linear = nn.Linear(8, 128)
    with torch.no_grad():
        linear.weight[8:] *= 1e-3
    model = nn.Sequential(*convolutions, nn.Flatten(), linear, nn.ReLU(), nn.Linear(128, 4))
    controller = pruned(model, IMAGES)
    limit = costs(model_at(controller, 0.0))["macs"] // 4
    file = file_of(macs=limit)
    rate = found(controller, file)
    controller.rank_by(GLOBAL)
    assert costs(model_at(controller, rate))["macs"] > limit
    controller.limit = file.limit(rate)
    controller.compression_rate = rate
    assert costs(controller.strip())["macs"] <= limit
    controller.compression_rate = rate / 2  # on the way there, anything may be tried
    assert costs(controller.strip())["macs"] > limit
