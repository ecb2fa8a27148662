"""Files on the user's device: it decides, each file is measured once, and where it fails the run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kedro_aat.compression.build import build_controller
from kedro_aat.compression.settings import parse_compression
from kedro_aat.delivery.finished import FinishedSteps
from kedro_aat.delivery.gains import loss_of
from kedro_aat.delivery.limits import LimitedFile, lowest_rate
from kedro_aat.delivery.on_device import Device, contents_of
from kedro_aat.errors import ConfigurationError, DeviceError
from kedro_aat.export.device import Measured
from kedro_aat.export.settings import ExportSettings
from kedro_aat.export.targets.target import TargetFile
from kedro_aat.imports import Imported
from tests.compression.filters.pruned import pruned
from tests.delivery.made_up import BASELINE, Tools, chosen, device, fast, made, small_file
from tests.nets import Perceptron, SmallNet, images

ASKED: list[bytes] = []


def made_up(path: Path) -> Measured:
    """What a made-up file says of itself; nothing if it is none."""
    ASKED.append(path.read_bytes())
    answer = json.loads(path.read_bytes())
    if answer is None:
        raise TimeoutError("no answer in 60 s")
    return Measured(**answer)


def bytes_of(path: Path) -> dict[str, int]:
    """Says that a file takes its size in memory."""
    ASKED.append(path.read_bytes())
    return {"memory_bytes": path.stat().st_size}


def unreachable(path: Path) -> Measured:
    ASKED.append(path.read_bytes())
    raise ConnectionRefusedError("no route to the board")


class Dying:
    """Answers some times, and then no more."""

    def __init__(self, num_answers: int) -> None:
        self.num_left = num_answers

    def __call__(self, path: Path) -> Measured:
        self.num_left -= 1
        if self.num_left >= 0:
            return made_up(path)
        ASKED.append(path.read_bytes())
        raise TimeoutError("the board is silent")


@pytest.fixture(autouse=True)
def _nothing_asked() -> None:
    ASKED.clear()


@pytest.fixture(autouse=True)
def _device_of_baseline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BASELINE, "on_device", {"latency_ms": 9.0, "memory_bytes": 9000})


def named(name: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": f"{__name__}.{name}", "init_args": arguments}


def on_device(latency_ms: float, memory_bytes: int) -> dict[str, float]:
    return {"latency_ms": latency_ms, "memory_bytes": memory_bytes}


MADE_UP = named("made_up")


@pytest.mark.usefixtures("tools")
@pytest.mark.parametrize(("objective", "delivered"), [("device_latency", "quick"), ("device_memory", "lean")])
def test_the_device_decides(objective: str, delivered: str) -> None:
    quick = made("quick", bytes=2000, on_device=on_device(1.0, 6000))
    lean = made("lean", bytes=3000, on_device=on_device(2.0, 5000))
    _, result = chosen(quick, lean, objective=objective, measure_with=MADE_UP)
    assert result.delivered == delivered
    assert result.baseline.device is not None
    assert (result.baseline.device.latency_ms, result.baseline.device.memory_bytes) == (9.0, 9000)
    assert [each.device.target for each in result.candidates if each.device] == ["onnx", "onnx"]


@pytest.mark.usefixtures("tools")
def test_a_less_compressed_model_that_is_faster_on_the_device_is_delivered() -> None:
    small, large = made("small", on_device=on_device(2.0, 1)), made("large", rate=0.1, on_device=on_device(1.0, 1))
    _, result = chosen(small, others=[large], objective="device_latency", measure_with=MADE_UP)
    assert result.delivered == "large"
    assert len(ASKED) == len(set(ASKED)) == 3  # each file once, the baseline's as well


@pytest.mark.usefixtures("tools")
def test_a_device_that_fails_for_one_file_decides_for_none(caplog: pytest.LogCaptureFixture) -> None:
    slow_there = fast("fast here", 1.0, on_device=on_device(5.0, 1))
    failing = fast("fails there", 2.0)
    fast_there = fast("slow here", 3.0, on_device=on_device(1.0, 1))
    _, result = chosen(slow_there, failing, fast_there, objective="device_latency", measure_with=MADE_UP)
    assert result.delivered == "fast here"
    assert [each.device and each.device.failure for each in result.candidates] == [
        None,
        "TimeoutError: no answer in 60 s",
        None,
    ]
    (words,) = [record.message for record in caplog.records if "decides" in record.message]
    assert "TimeoutError: no answer in 60 s" in words
    assert "latency decides instead of device_latency, for all of them" in words


@pytest.mark.usefixtures("tools")
def test_the_search_for_a_faster_model_goes_on_without_the_device(caplog: pytest.LogCaptureFixture) -> None:
    small, large = fast("small", 2.0), fast("large", 1.0, rate=0.1)
    _, result = chosen(small, others=[large], objective="device_latency", measure_with=MADE_UP)
    assert result.delivered == "large"
    assert caplog.text.count("decides instead of") == 1


@pytest.mark.usefixtures("tools")
def test_a_device_that_decides_nothing_may_fail(caplog: pytest.LogCaptureFixture) -> None:
    _, result = chosen(made("small"), made("large", bytes=5000), measure_with=MADE_UP)
    assert result.delivered == "small"
    assert "did not measure a file: TimeoutError: no answer in 60 s" in caplog.text
    assert "decides" not in caplog.text


@pytest.mark.usefixtures("tools")
def test_limits_of_the_device_are_kept() -> None:
    slow, large = made("slow", on_device=on_device(4.0, 100)), made("large", on_device=on_device(1.0, 7000))
    good = made("good", bytes=2000, on_device=on_device(2.0, 4000))
    limits = {"device_latency_ms": 3.0, "device_memory_bytes": 5000}
    _, result = chosen(slow, large, good, limits=limits, measure_with=MADE_UP)
    assert result.delivered == "good"
    assert result.rejected == {
        "slow": "the latency on the device is 4 ms, above the limit of 3 ms",
        "large": "the memory on the device is 7,000 bytes, above the limit of 5,000",
    }


@pytest.mark.usefixtures("tools")
def test_a_limit_that_cannot_be_checked_is_not_kept() -> None:
    _, result = chosen(made("small"), limits={"device_latency_ms": 3.0}, measure_with=MADE_UP)
    assert result.delivered is None
    assert result.rejected == {
        "small": "device_latency_ms cannot be checked, since the device did not measure the file (TimeoutError: no "
        "answer in 60 s)"
    }


def test_no_more_models_are_tried_for_a_limit_that_nothing_can_check(
    tools: Tools, caplog: pytest.LogCaptureFixture
) -> None:
    small, others = (
        made("small"),
        [made(f"large {rate}", rate=rate, on_device=on_device(1.0, 1)) for rate in (0.2, 0.1)],
    )
    dying = named("Dying", num_answers=1)
    _, result = chosen(small, others=others, limits={"device_latency_ms": 3.0}, measure_with=dying)
    assert result.delivered is None
    assert len(ASKED) == 3  # the baseline's file, the small one, and the baseline's again, which had been measured
    assert ("files", others[0].model) not in [call[:2] for call in tools.calls]
    assert "did not measure the file (TimeoutError: the board is silent)" in result.rejected["small"]
    assert "The device measured no file any more, so that less compressed models were not tried" in result.reason
    assert "export.measure_with failed for a file that it has measured before, too, so that" in caplog.text


@pytest.mark.usefixtures("tools")
def test_what_was_measured_before_the_device_failed_is_delivered() -> None:
    early, late = made("early", bytes=5000, on_device=on_device(2.0, 1)), made("late", on_device=on_device(1.0, 1))
    last = made("last", on_device=on_device(1.0, 1))
    dying = named("Dying", num_answers=2)
    _, result = chosen(early, late, last, limits={"device_latency_ms": 3.0}, measure_with=dying)
    assert result.delivered == "early"
    assert len(ASKED) == 4  # the third one fails, and the first one again
    assert "not asked, since the device measures no file any more: TimeoutError" in result.rejected["last"]


@pytest.mark.usefixtures("tools")
def test_a_file_that_the_device_cannot_run_is_no_reason_to_stop() -> None:
    good = made("good", rate=0.1, on_device=on_device(1.0, 1))
    _, result = chosen(made("too large"), others=[good], limits={"device_latency_ms": 3.0}, measure_with=MADE_UP)
    assert result.delivered == "good"
    assert set(result.rejected) == {"too large"}


@pytest.mark.usefixtures("tools")
def test_a_device_that_measures_neither_of_two_files_is_not_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    several = [made(name, on_device=on_device(1.0, 1)) for name in ("one", "two", "three")]
    _, result = chosen(*several, measure_with=named("unreachable"))
    assert result.delivered == "one"
    assert len(ASKED) == 2
    assert [bool(each.device and each.device.is_unreachable) for each in result.candidates] == [True, True, True]
    assert "export.measure_with failed for two files, so that" in caplog.text


@pytest.mark.usefixtures("tools")
def test_an_answer_without_what_is_needed_is_a_failure() -> None:
    half = made("half", on_device={"latency_ms": 1.0})
    _, result = chosen(half, objective="device_memory", measure_with=MADE_UP)
    assert result.candidates[0].device is not None
    assert "it returned no memory_bytes" in (result.candidates[0].device.failure or "")


def test_answers_are_kept_per_file_and_function(tmp_path: Path) -> None:
    for _ in range(2):
        again = device(named("bytes_of"), tmp_path)
        assert again.measured(small_file(1.0)) == again.measured(small_file(1.0))
    assert len(ASKED) == 1
    device(named("bytes_of"), tmp_path).measured(small_file(2.0))
    assert len(ASKED) == 2
    FinishedSteps(tmp_path).remove_others()
    device(named("bytes_of"), tmp_path).measured(small_file(2.0))
    of_a_choice = FinishedSteps(tmp_path / "chosen", [tmp_path])  # which uses what the run has kept
    export = ExportSettings.model_validate({"measure_with": named("bytes_of"), "objective": "device_memory"})
    again = Device(Imported.model_validate(named("bytes_of")), export, of_a_choice)
    again.measured(small_file(2.0))
    assert len(ASKED) == 2
    of_other_settings = FinishedSteps(tmp_path, export={"tolerance": 1e-3}, training={"batch_size": 8})
    Device(Imported.model_validate(named("bytes_of")), export, of_other_settings).measured(small_file(2.0))
    assert len(ASKED) == 2
    assert "no route" in (device(named("unreachable"), tmp_path).costs(small_file(1.0)).failure or "")
    assert len(ASKED) == 3


def test_failures_are_not_kept(tmp_path: Path) -> None:
    one = device(named("unreachable"), tmp_path)
    for _ in range(2):
        assert one.costs(small_file(1.0)).failure == "ConnectionRefusedError: no route to the board"
    assert len(ASKED) == 2


def test_a_device_gets_all_parts_of_a_file() -> None:
    assert set(contents_of(small_file(1.0).onnx)) == {"model.onnx"}
    openvino = TargetFile("openvino", {".xml": b"graph", ".bin": b"weights"}, ("x",), ("y",))
    assert contents_of(openvino) == {"model.xml": b"graph", "model.bin": b"weights"}
    described = contents_of(TargetFile("litert", {".tflite": b"all"}, ("x",), ("y",)))
    assert list(described) == ["model.tflite", "model.tflite.json"]
    assert json.loads(described["model.tflite.json"])["inputs"] == ["x"]


INPUTS = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("is_exported", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_gain_is_judged_here_if_the_device_fails(
    is_exported: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_exported:
        monkeypatch.setattr("kedro_aat.delivery.costs.files_of", lambda *_: small_file(1.0))
    torch.manual_seed(0)
    model = Perceptron([32, 64, 4])
    controller = build_controller(model, parse_compression({"algorithm": "magnitude_sparsity"}), example_input=INPUTS)

    def loss(function: str, objective: str) -> str | None:
        settings = ExportSettings.model_validate(
            {"measure_with": named(function), "objective": objective, "dynamic_axes": {}}
        )
        return loss_of(model, 0.0, controller, 0.9, INPUTS, settings, FinishedSteps(tmp_path))

    found = loss("bytes_of", "device_memory")
    assert found is not None
    assert "take 1x as much memory on the device" in found
    assert "decides" not in caplog.text
    found = loss("unreachable", "device_memory")
    assert found is not None
    assert "make the file 1x as large" in found
    assert "bytes decides instead of device_memory" in caplog.text


def limited(function: str, **limits: Any) -> tuple[Any, LimitedFile]:
    torch.manual_seed(0)
    inputs = images(4)["inputs"]
    settings = {"limits": limits, "dynamic_axes": {}, "measure_with": named(function)}
    return pruned(SmallNet(width=32), inputs), LimitedFile(ExportSettings.model_validate(settings), None, inputs)


@pytest.mark.slow
def test_a_limit_of_the_device_holds_from_the_rate_on(tmp_path: Path) -> None:
    controller, file = limited("bytes_of", device_memory_bytes=20_000)
    rate = lowest_rate(controller, file, 0.99, controller.rankings[0], FinishedSteps(tmp_path))
    num_asked = len(ASKED)
    assert max(len(each) for each in ASKED) > 20_000
    assert lowest_rate(controller, file, 0.99, controller.rankings[0], FinishedSteps(tmp_path)) == rate
    assert len(ASKED) == num_asked
    (at_rate,) = file.costs(
        [_cut(controller, rate)], [rate], file.settings.limits, Device.of(file.settings, FinishedSteps())
    )
    assert at_rate.device is not None
    assert 12_000 < (at_rate.device.memory_bytes or 0) <= 20_000


def _cut(controller: Any, rate: float) -> torch.nn.Module:
    controller.compression_rate = rate
    model: torch.nn.Module = controller.strip().eval()
    return model


@pytest.mark.parametrize("is_exported", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_rate_cannot_be_found_without_the_device(is_exported: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not is_exported:
        monkeypatch.setattr("kedro_aat.delivery.costs.files_of", lambda *_: small_file(1.0))
    controller, file = limited("unreachable", device_latency_ms=3.0)
    with pytest.raises(ConfigurationError, match="no route to the board") as caught:
        lowest_rate(controller, file, 0.99, controller.rankings[0], FinishedSteps())
    assert isinstance(caught.value.__cause__, DeviceError)
    assert "remove the limits of the device" in str(caught.value)
    assert len(ASKED) == 1
