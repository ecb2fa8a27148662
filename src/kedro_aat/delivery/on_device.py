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

_UNREACHABLE = (
    "export.measure_with failed for %s, so that it is not the file's fault. The device is not asked again by this "
    "step; a run that goes on, and `kedro aat choose`, ask it again."
)


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
        self._measurable: dict[str, bytes] | None = None  # a file that the device has measured
        self._failed: set[str] = set()
        self._unreachable: str | None = None  # why it is not asked again

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
                DEVICE, Measured, lambda: self._ask_unless_unreachable(key, contents), file=key, **self.identity
            )
            self._measurable = contents
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
            return DeviceCosts(target=target, failure=str(error), is_unreachable=self._unreachable is not None)

    def _ask_unless_unreachable(self, key: str, contents: dict[str, bytes]) -> Measured:
        """Asks the device, unless it has measured no file any more: it may take a minute until it fails again."""
        if self._unreachable is not None:
            raise DeviceError(f"not asked, since the device measures no file any more: {self._unreachable}")
        try:
            return self._ask(contents)
        except DeviceError as error:
            self._failed.add(key)
            if self._measures_nothing():
                self._unreachable = str(error)
                files = "two files" if self._measurable is None else "a file that it has measured before, too"
                logger.warning(_UNREACHABLE, files, extra={"markup": False})
            raise

    def _measures_nothing(self) -> bool:
        """Whether it fails for a file that it has measured before; without one, whether it failed for two files."""
        if self._measurable is None:
            return len(self._failed) > 1
        try:
            self._ask(self._measurable)
        except DeviceError:
            return True
        return False

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


def is_unreachable(settings: ExportSettings, measured: Iterable[Latencies]) -> bool:
    """Whether limits of the device can be checked for no more files, since it measures none.

    Args:
        settings: They have limits of the device or not.
        measured: The files that it was asked for.
    """
    return bool(settings.limits.of_device) and any(each.device and each.device.is_unreachable for each in measured)


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
