"""Files on the user's device: measured once each, without an end of the run where the device fails."""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from onnx import ModelProto

from kedro_aat.delivery.files import Files
from kedro_aat.delivery.finished import DEVICE, FinishedSteps, source_of
from kedro_aat.delivery.measurements import DeviceCosts, Latencies
from kedro_aat.errors import DeviceError
from kedro_aat.export.device import Measured, ask, measuring_function
from kedro_aat.export.settings import ExportSettings
from kedro_aat.export.targets.target import TargetFile
from kedro_aat.imports import Imported
from kedro_aat.messages import doing

logger = logging.getLogger(__name__)


class Device:
    """The function of `export.measure_with`, which is asked once for each file; a failure is not remembered.

    Args:
        measure_with: The function.
        settings: Says the file of which target it gets, and what is needed of it.
        finished: Keeps its answers.
    """

    def __init__(self, measure_with: Imported, settings: ExportSettings, finished: FinishedSteps) -> None:
        self._measure_with, self._settings, self._finished = measure_with, settings, finished.independent()
        self._function: Callable[[Path], object] | None = None
        self._known: dict[str, Measured] = {}

    @classmethod
    def of(cls, settings: ExportSettings, finished: FinishedSteps) -> Device | None:
        """The device that the settings name; None if they name none."""
        return None if settings.measure_with is None else cls(settings.measure_with, settings, finished)

    @property
    def identity(self) -> dict[str, object]:
        """What its answers depend on beside the file: the function with its arguments and its source."""
        source = source_of([self._measure_with.load()])
        return {"function": self._measure_with.model_dump(mode="json"), "source": source}

    def measured(self, files: Files) -> Measured:
        """What it says of one of the files.

        Raises:
            DeviceError: If it does not answer, or not with what the objective and the limits need.
        """
        contents = contents_of(files.of(self._settings.shipped))
        digest = hashlib.sha256()
        for name, data in contents.items():
            digest.update(f"{name} {len(data)} ".encode() + data)
        key = digest.hexdigest()
        if key not in self._known:
            self._known[key] = self._finished.result(
                DEVICE, Measured, lambda: self._ask(contents), file=key, **self.identity
            )
        answer = self._known[key]
        if missing := sorted(name for name in self._settings.device_needs if getattr(answer, name) is None):
            raise DeviceError(f"it returned no {' and no '.join(missing)}, which export.objective or limits need")
        return answer

    def costs(self, files: Files) -> DeviceCosts:
        """What it says of one of the files, or why it says nothing."""
        target = self._settings.shipped
        try:
            return DeviceCosts(target=target, **self.measured(files).model_dump())
        except DeviceError as error:
            logger.warning("export.measure_with did not measure a file: %s", error, extra={"markup": False})
            return DeviceCosts(target=target, failure=str(error))

    def _ask(self, contents: dict[str, bytes]) -> Measured:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, doing("a measurement on the device"):
            paths = [Path(folder, name) for name in contents]
            for path, data in zip(paths, contents.values(), strict=True):
                path.write_bytes(data)
            return ask(self._call, paths[0])

    def _call(self, path: Path) -> object:
        if self._function is None:  # a class may connect to the device when it is built
            self._function = measuring_function(self._measure_with)
        return self._function(path)


def contents_of(file: ModelProto | TargetFile) -> dict[str, bytes]:
    """Names of the files that a device needs, with their contents; the first one is the graph."""
    if not isinstance(file, TargetFile):
        return {"model.onnx": file.SerializeToString()}
    parts = {f"model{suffix}": data for suffix, data in file.parts.items()}
    return parts if len(parts) > 1 else {**parts, f"{next(iter(parts))}.json": file.description}


def objective_among(settings: ExportSettings, compared: Iterable[Latencies]) -> ExportSettings:
    """The settings with the objective that decides among files: another one if the device failed for any of them.

    Args:
        settings: What the user asked for.
        compared: The files.
    """
    return settings if failure_among(settings, compared) is None else settings.without_device


def failure_among(settings: ExportSettings, compared: Iterable[Latencies]) -> str | None:
    """Why the device cannot decide among files; None if it can, or need not."""
    if settings.without_device is settings:
        return None
    return next((each.device.failure for each in compared if each.device and each.device.failure is not None), None)


def fallback_words(settings: ExportSettings, failure: str) -> str:
    """Says what decides instead of the device.

    Args:
        settings: What the user asked for.
        failure: Why the device failed.
    """
    return (
        f"export.measure_with did not measure all files that are compared ({failure}). "
        f"{settings.without_device.objective_words} decides instead of {settings.objective_words}, for all of them."
    )


def fall_back(settings: ExportSettings, failure: str) -> ExportSettings:
    """The settings that decide without the device; warns that they do."""
    logger.warning("%s", fallback_words(settings, failure), extra={"markup": False})
    return settings.without_device
