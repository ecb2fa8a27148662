"""What a function may say of a file on a device, and how settings name it."""

from __future__ import annotations

import functools
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kedro_aat.errors import ConfigurationError, DeviceError
from kedro_aat.export.device import Measured, ask, measuring_function
from kedro_aat.export.settings import ExportSettings

PATH = Path("model.onnx")
FUNCTION = "examples.device.measure.Board"


@pytest.mark.parametrize(
    "answer",
    [Measured(latency_ms=2.5, memory_bytes=4096), {"latency_ms": 2.5, "memory_bytes": 4096}],
)
def test_an_answer_may_be_a_mapping(answer: object) -> None:
    assert ask(lambda path: answer, PATH) == Measured(latency_ms=2.5, memory_bytes=4096)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "it returned None, which is no Measured. Return Measured(latency_ms=..., memory_bytes=...)"),
        (12.5, "it returned 12.5"),
        ({"latency_ms": math.nan}, "(latency_ms should be a finite number)"),
        ({"latency_ms": -1.0}, "(latency_ms should be greater than 0). Return Measured("),
        ({"memory_bytes": 0}, "memory_bytes should be greater than 0"),
        ({"latency": 1.0}, "(unknown key latency)"),
        ({}, "neither latency_ms nor memory_bytes is given"),
        ({"latency_ms": "2.5"}, "(latency_ms should be a number)"),
        ({"latency_ms": "fast"}, "(latency_ms should be a number)"),
        ({"latency_ms": True}, "(latency_ms should be a number)"),
        ({"memory_bytes": 4096.5}, "memory_bytes should be a valid integer"),
        ("2.5", "it returned '2.5', which is no Measured"),
    ],
)
def test_nonsense_is_named(answer: object, words: str) -> None:
    with pytest.raises(DeviceError) as caught:
        ask(lambda path: answer, PATH)
    assert words in str(caught.value)


@pytest.mark.parametrize("error", [TimeoutError("no answer in 60 s"), SystemExit(1)])
def test_whatever_a_function_raises_is_named(error: BaseException) -> None:
    def fail(path: Path) -> Measured:
        raise error

    with pytest.raises(DeviceError, match=f"^{type(error).__name__}: {error}$"):
        ask(fail, PATH)


def test_nonsense_in_what_a_function_makes_is_named() -> None:
    with pytest.raises(
        DeviceError, match=r"^it made no Measured \(latency_ms should be greater than 0\)\. Return Measu"
    ):
        ask(lambda path: Measured(latency_ms=-1.0), PATH)


def test_an_interruption_goes_through() -> None:
    def interrupted(path: Path) -> Measured:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(interrupted, PATH)


def test_the_answer_needs_no_torch() -> None:
    code = "import sys, kedro_aat.export.device; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    "settings",
    [
        {"objective": "device_latency"},
        {"objective": {"target": "openvino", "device": "memory"}},
        {"limits": {"device_latency_ms": 5.0}},
        {"limits": {"device_memory_bytes": 5000}},
    ],
)
def test_what_a_device_decides_needs_a_device(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"needs export\.measure_with"):
        ExportSettings.model_validate(settings)
    assert ExportSettings.model_validate({"measure_with": FUNCTION, **settings}).device_needs


def test_an_objective_names_one_property() -> None:
    objective = {"target": "openvino", "device": "latency", "latency_ms": 1}
    with pytest.raises(ConfigurationError, match="must not be set beside latency_ms"):
        ExportSettings.model_validate({"measure_with": FUNCTION, "objective": objective})


@pytest.mark.parametrize(
    ("objective", "kind", "without"),
    [
        ("device_latency", "device_latency", "latency"),
        ("device_memory", "device_memory", "bytes"),
        ({"target": "openvino", "device": "latency"}, "device_latency", "latency for OpenVINO"),
        ({"target": "openvino", "device": "memory"}, "device_memory", "bytes for OpenVINO"),
        ("macs", "macs", "macs"),
    ],
)
def test_something_else_decides_without_the_device(objective: Any, kind: str, without: str) -> None:
    settings = ExportSettings.model_validate({"measure_with": FUNCTION, "objective": objective})
    assert settings.objective_kind == kind
    assert settings.without_device.objective_words == without
    assert settings.without_device.shipped == settings.shipped
    assert settings.without_device.device_needs == set()


def test_a_function_that_is_not_there_is_a_mistake_in_the_settings() -> None:
    settings = ExportSettings.model_validate({"measure_with": "examples.device.measure.Bo_ard"})
    (mistake,) = settings.lookup_mistakes("aat.export")
    assert mistake.startswith("aat.export.measure_with.class_path: ")
    assert "Did you mean 'Board'?" in mistake


def measure(path: Path, port: int = 4000) -> Measured:
    return Measured(latency_ms=float(port), memory_bytes=len(path.name))


def without_arguments() -> Measured:
    return Measured(latency_ms=1.0)


def of_two(path: Path, port: int) -> Measured:
    return measure(path, port)


def by_name(*, path: Path) -> Measured:
    return measure(path)


async def later(path: Path) -> Measured:
    return measure(path)


class Callable:
    def __init__(self, port: int) -> None:
        self.port = port

    def __call__(self, path: Path) -> Measured:
        return measure(path, self.port)


class Uncallable:
    def measure(self, path: Path) -> Measured:
        return measure(path)


class WithoutPath:
    def __call__(self) -> Measured:
        return Measured(latency_ms=1.0)


class Static:
    @staticmethod
    def __call__(path: Path) -> Measured:
        return measure(path)


bound = functools.partial(of_two, port=5000)
ready = Callable(6000)
words = "adb shell"


def named(name: str, **arguments: Any) -> ExportSettings:
    return ExportSettings.model_validate({"measure_with": {"class_path": f"{__name__}.{name}", "init_args": arguments}})


@pytest.mark.parametrize(
    ("name", "arguments", "latency_ms"),
    [
        ("measure", {}, 4000.0),
        ("measure", {"port": 3000}, 3000.0),
        ("of_two", {"port": 3000}, 3000.0),
        ("Callable", {"port": 3000}, 3000.0),
        ("Static", {}, 4000.0),
        ("bound", {}, 5000.0),
        ("ready", {}, 6000.0),
    ],
)
def test_whatever_takes_a_path_may_be_named(name: str, arguments: dict[str, Any], latency_ms: float) -> None:
    settings = named(name, **arguments)
    assert settings.lookup_mistakes("aat.export") == []
    assert settings.measure_with is not None
    assert ask(measuring_function(settings.measure_with), PATH).latency_ms == latency_ms


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("without_arguments", {}, "cannot be called with the path of a file (too many positional arguments). It must"),
        ("by_name", {}, "cannot be called with the path of a file (too many positional arguments)"),
        ("of_two", {}, "cannot be called with the path of a file (missing a required argument: 'port')"),
        ("measure", {"path": "model.onnx"}, "cannot be called with the path of a file (multiple values for argument"),
        ("WithoutPath", {}, "cannot be called with the path of a file (too many positional arguments)"),
        (
            "Uncallable",
            {},
            "Uncallable cannot be called; the class needs `def __call__(self, path: Path)`. It",
        ),
        ("Callable", {}, "Callable cannot be built with them (missing a required argument: 'port')"),
        ("later", {}, "later is async, and nothing would wait for its answer"),
        ("words", {}, "must name a class or a function, but tests.export.test_device.words is 'adb shell'"),
        ("no_such", {}, "has no 'no_such'"),
        ("no.such", {}, "has no 'no'"),
    ],
)
def test_what_cannot_measure_files_is_told_before_the_run(name: str, arguments: dict[str, Any], words: str) -> None:
    (mistake,) = named(name, **arguments).lookup_mistakes("aat.export")
    assert mistake.startswith("aat.export.measure_with")
    assert words in mistake
    if "cannot be called" in mistake:
        assert "return Measured(latency_ms=..., memory_bytes=...), as in `def measure(path: Path)" in mistake
