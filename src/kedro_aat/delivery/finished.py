"""Keeps the results of finished steps, so that a run that goes on after a kill does not repeat them."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from torch import nn

import kedro_aat
from kedro_aat.budget import GuardSettings
from kedro_aat.errors import StorageError
from kedro_aat.export.targets.registry import TARGETS
from kedro_aat.storage import replacing
from kedro_aat.training.callables import Linearization
from kedro_aat.training.device import pick_device
from kedro_aat.training.fingerprints.contents import ContentHash
from kedro_aat.training.fingerprints.sources import sources_of
from kedro_aat.training.runner import Evaluation
from kedro_aat.training.settings import TrainingSettings

logger = logging.getLogger(__name__)

# Folders of a checkpoint store that its runs share: what was rehearsed, and what was found on untrained models.
REHEARSALS, ESTIMATES = "rehearsals", "estimates"
DEVICE = "device"  # step that keeps what a device has measured

T = TypeVar("T")

# What exports, runs and judges a file.
_PACKAGES = (
    *("numpy", "onnx", "onnx-ir", "onnxruntime", "onnxscript", "torch", "torchmetrics"),
    *(package for target in TARGETS.values() for package in target.packages),
)


class FinishedSteps:
    """A folder with a file for each finished step: its inputs, its result as JSON, and a checksum. It is a handle.

    A result is used only if nothing that it depends on has changed: the step's inputs, the models with their source,
    the versions of the packages, and the CPU. Whatever cannot be read is computed again; whatever cannot be written
    is not kept.

    Args:
        folder: The folder, which is created with the first file; None keeps nothing.
        others: Folders of other handles, whose results are used, too, but neither changed nor removed.
        inputs: What all steps depend on, as JSON data.
    """

    def __init__(self, folder: Path | None = None, others: Sequence[Path] = (), /, **inputs: Any) -> None:
        self.folder = folder
        self._others = others
        self._inputs = inputs
        self._used: set[Path] = set()

    def independent(self) -> FinishedSteps:
        """A handle of the same folders, for steps that depend on nothing but what they name themselves."""
        handle = FinishedSteps(self.folder, self._others)
        handle._used = self._used
        return handle

    def result(self, step: str, kind: type[T], compute: Callable[[], T], *models: nn.Module, **inputs: Any) -> T:
        """Returns the result that was kept of a step, or else computes and keeps it.

        Args:
            step: Name of the step.
            kind: Type of the result, which pydantic writes as JSON.
            compute: Computes the result.
            *models: Models that the step works on.
            **inputs: What else it depends on, as JSON data.
        """
        if self.folder is None:
            return compute()
        models_ = [identity_of(model) for model in models]
        text = json.dumps({**_environment(), **self._inputs, **inputs, "models": models_}, sort_keys=True).encode()
        name, adapter = f"{step}-{hashlib.sha256(text).hexdigest()[:16]}.json", TypeAdapter(kind)
        path = self.folder / name
        for known in (path, *(other / name for other in self._others)):
            try:
                checksum, kept = known.read_bytes().split(b"\n", 1)
                if checksum != _checksum(kept):
                    raise ValueError("its checksum is wrong")
                kept_text, kept_result = kept.split(b"\n", 1)
                if kept_text == text:
                    result = adapter.validate_json(kept_result)
                    if step != DEVICE and all(path.name.startswith(DEVICE) for path in self._used):
                        logger.info("Finished steps are not repeated. To repeat them, remove %s", known.parent)
                    self._used.add(known)
                    return result
            except FileNotFoundError:
                pass
            except (OSError, ValueError) as error:
                logger.warning("%s cannot be read (%s); this step is done again.", known, error)
        result = compute()
        contents = text + b"\n" + adapter.dump_json(result)
        try:
            with replacing(path) as new:
                new.write_bytes(_checksum(contents) + b"\n" + contents)
        except StorageError as error:
            logger.warning("%s cannot be written (%s); the step would be repeated after a kill.", path, error)
        self._used.add(path)
        return result

    def remove_others(self, num_kept: int = 0) -> None:
        """Removes what is kept of steps that this object was not asked for, such as those of other settings.

        What a device has measured is kept: it takes little space, and more than time to measure again.

        Args:
            num_kept: Number of these to keep, the latest ones.
        """
        with suppress(OSError):  # they only take space
            others = set(self.folder.glob("*.json") if self.folder else ()) - self._used
            others -= set(self.folder.glob(f"{DEVICE}-*.json") if self.folder else ())
            for path in sorted(others, key=lambda path: -path.stat().st_mtime_ns)[num_kept:]:
                path.unlink(missing_ok=True)


class MetricValues(BaseModel):
    """An `Evaluation` as plain numbers.

    Attributes:
        metric: Metric over the split.
        scores: One score per example; None if the metric is not their mean.
        resampled: Metric on resamples of the split, which may be NaN; None if there are none.
        also: Values of the guards by name, which may be NaN.
        score_range: Lowest and highest possible score, which may be infinite; None if unknown.
        is_linearized: Whether the scores are the linearization of a metric that is not their mean by nature.
        linearization: Effective number of examples behind the linearization, and the change of a score with its squared
            error; None if there is none.
        groups: Number of the group of each example; None if there are no groups.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    metric: float
    scores: list[float] | None = None
    resampled: list[float] | None = None
    also: dict[str, float] = Field(default_factory=dict)
    score_range: tuple[float, float] | None = None
    is_linearized: bool = False
    linearization: tuple[float, float | None] | None = None
    groups: list[int] | None = None

    @classmethod
    def of(cls, evaluation: Evaluation) -> MetricValues:
        """The numbers of an evaluation."""
        scores, resampled = evaluation.scores, evaluation.resampled
        return cls(
            metric=evaluation.metric,
            scores=None if scores is None else scores.tolist(),
            resampled=None if resampled is None else resampled.tolist(),
            also=dict(evaluation.also),
            score_range=evaluation.score_range,
            is_linearized=evaluation.is_linearized,
            linearization=None if evaluation.linearization is None else astuple(evaluation.linearization),
            groups=None if evaluation.groups is None else evaluation.groups.tolist(),
        )

    def evaluation(self) -> Evaluation:
        """The evaluation, with tensors in double precision."""
        scores, resampled = (
            None if values is None else torch.tensor(values, dtype=torch.float64)
            for values in (self.scores, self.resampled)
        )
        return Evaluation(
            self.metric,
            scores,
            resampled,
            score_range=self.score_range,
            is_linearized=self.is_linearized,
            groups=None if self.groups is None else torch.tensor(self.groups),
            linearization=None if self.linearization is None else Linearization(*self.linearization),
            also=self.also,
        )


def identity_of(model: nn.Module) -> str:
    """Hash of a model's tensors, of all attributes of its modules, and of the source that they call."""
    content = ContentHash(private=True)
    content.add(model)
    return f"{content.hexdigest()} {source_of(content.code)}"


def training_inputs(settings: TrainingSettings, guards: Sequence[GuardSettings] = ()) -> Mapping[str, Any]:
    """What metric and guards depend on besides model and data, as JSON data: settings, device, own source."""
    metrics = [metric.load() for metric in (settings.metric, *(guard.metric for guard in guards)) if metric]
    own = [settings.function("validate_"), *metrics]
    return {
        "settings": settings.model_dump(mode="json"),
        "guards": [guard.model_dump(mode="json") for guard in guards],
        "device": str(pick_device(settings.device)),
        "source": source_of(own),
    }


def source_of(objects: Iterable[Any]) -> str:
    """Hash of the user's source that objects depend on, and of the versions of other packages."""
    found = sources_of(objects)
    return hashlib.sha256(json.dumps([found.hashes, found.packages]).encode()).hexdigest()


@functools.cache
def _environment() -> Mapping[str, Any]:
    """Versions of the packages, the source of this one, and the CPU."""
    sources = hashlib.sha256()
    for path in sorted(Path(kedro_aat.__file__).parent.rglob("*.py")):
        sources.update(path.read_bytes())
    return {
        "kedro_aat": sources.hexdigest(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "cpu": _cpu(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    models = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    return f"{os.cpu_count()} x {', '.join(sorted(models)) or platform.processor() or platform.machine()}"


def _checksum(contents: bytes) -> bytes:
    return hashlib.sha256(contents).hexdigest().encode()
