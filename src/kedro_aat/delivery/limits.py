"""The limits of the delivered file: which of them a model exceeds, and the lowest rate from which on they hold."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from kedro_aat.compression.build import build_controller
from kedro_aat.compression.controller import ModelController
from kedro_aat.compression.rate_limit import RateLimit
from kedro_aat.compression.settings import CompressionSettings
from kedro_aat.delivery.costs import Costs, costs_of
from kedro_aat.delivery.finished import FinishedSteps
from kedro_aat.delivery.measurements import Measurements, Timing
from kedro_aat.delivery.on_device import Device
from kedro_aat.errors import ConfigurationError, DeviceError
from kedro_aat.export.settings import ExportSettings, Limits, TargetLimits
from kedro_aat.export.targets.registry import TARGETS
from kedro_aat.messages import doing
from kedro_aat.model_inputs import ModelInputs, describe_inputs
from kedro_aat.search.tactics import Ranking

logger = logging.getLogger(__name__)

# Precision of the rate that is found, as a share of the model's size; more is lost in the noise of latency.
PRECISION, LATENCY_PRECISION = 0.002, 0.05
# Latency varies from one measurement to the next. So several models take turns, and one must be this much below the
# limit, to be below it again when its trained file is measured.
NUM_IN_TURNS = 5
LATENCY_SHARE = 0.9


def excess_over(limits: Limits, measured: Costs | Measurements) -> list[tuple[str, float]]:
    """The limits that are exceeded: a sentence for each, and measured value over limit."""
    excess: list[tuple[str, float]] = []
    for key in ("onnx_bytes", "parameters", "macs"):
        value, limit = getattr(measured, key), getattr(limits, key)
        if limit is not None and value is not None and value > limit:
            excess.append((f"{key} are {value:,}, above the limit of {limit:,}", value / limit))
    excess += _slower(measured, limits.latency_ms, "")
    for name, own in limits.targets.items():
        if (costs := measured.targets.get(name)) is None:  # not measured yet
            continue
        title = TARGETS[name].title
        for label, value, limit in (
            ("bytes", costs.bytes, own.bytes),
            ("bytes of the arena", costs.details.arena_bytes, own.arena_bytes),
        ):
            if limit is not None and value is not None and value > limit:
                excess.append((f"{title}'s {label} are {value:,}, above the limit of {limit:,}", value / limit))
        excess += _slower(costs, own.latency_ms, f" in {title}")
        unknown = own.latency_ms.keys() - (costs.latency_ms or {}).keys()
        excess += [
            (f"{title}'s file cannot be run with batch {size}, whose latency is limited", math.inf) for size in unknown
        ]
    return excess + _more_on_device(limits, measured)


def _more_on_device(limits: Limits, measured: Costs | Measurements) -> list[tuple[str, float]]:
    if (costs := measured.device) is None or not limits.of_device:  # not measured yet
        return []
    if costs.failure is not None:
        names = " and ".join(f"device_{name}" for name in limits.of_device)
        return [(f"{names} cannot be checked, since the device did not measure the file ({costs.failure})", math.inf)]
    excess: list[tuple[str, float]] = []
    if (longest := limits.device_latency_ms) is not None and (time := costs.latency_ms or 0.0) > longest:
        words = f"the latency on the device is {time:.3g} ms, above the limit of {longest:.3g} ms"
        excess.append((words, time / longest))
    if (most := limits.device_memory_bytes) is not None and (memory := costs.memory_bytes or 0) > most:
        words = f"the memory on the device is {memory:,} bytes, above the limit of {most:,}"
        excess.append((words, memory / most))
    return excess


def _slower(measured: Timing, longest: Mapping[int, float], where: str) -> list[tuple[str, float]]:
    return [
        (
            f"the median latency at batch {size}{where} is {latency:.3g} ms, above the limit of {limit:.3g} ms",
            latency / limit,
        )
        for size, limit in longest.items()
        if (latency := (measured.latency_ms or {}).get(size, 0.0)) > limit
    ]


@dataclass(frozen=True)
class LimitedFile:
    """The file that limits apply to: of the search's model, or of what a second stage makes of it.

    Attributes:
        settings: Limits, and how latency is measured.
        second: Compression of the second stage, which is applied without training; None for none.
        inputs: Example inputs on the CPU, in any structure.
    """

    settings: ExportSettings
    second: CompressionSettings | None
    inputs: ModelInputs

    def model_of(self, controller: ModelController) -> nn.Module:
        """The model as it would be exported."""
        model = controller.strip().cpu().eval()
        if self.second is None:
            return model
        second = build_controller(model, self.second, example_input=self.inputs)
        if hasattr(second, "calibrate"):
            second.calibrate([self.inputs])
        second.compression_rate = highest_rate(second)
        return second.strip(do_copy=False).eval()

    def costs(
        self, models: Sequence[nn.Module], rates: Sequence[float], limits: Limits, device: Device | None = None
    ) -> list[Costs]:
        """What models cost, as far as limits need it.

        Args:
            models: Models as they would be exported.
            rates: Rate of each.
            limits: The limits.
            device: Measures the files if limits of the device are among them.
        """
        return costs_of(
            models,
            rates,
            self.inputs,
            self.settings,
            with_files=limits.onnx_bytes is not None or bool(limits.targets),
            batch_sizes=limits.sizes,
            targets=list(limits.targets),
            device=device if limits.of_device else None,
        )

    def limit(self, rate: float) -> RateLimit:
        """Has a controller keep the limits from a rate on, without those of latency and of the device.

        These are too noisy to be repeated, and take long.
        """
        known: dict[_Shapes, bool] = {}
        limits = _with_latency(self.settings.limits, None)

        def holds(controller: ModelController) -> bool:
            model = self.model_of(controller)
            if (key := _shapes(model)) not in known:
                (costs,) = self.costs([model], [rate], limits)
                known[key] = not excess_over(limits, costs)
            return known[key]

        return RateLimit(rate, holds)


_Shapes = tuple[tuple[torch.Size, torch.dtype], ...]


def _shapes(model: nn.Module) -> _Shapes:
    """What the costs of models of one network depend on, but for their latency."""
    return tuple((tensor.shape, tensor.dtype) for tensor in model.state_dict().values())


def highest_rate(controller: ModelController, maximal_rate: float = 1 - 1e-6) -> float:
    """The highest rate that a controller's model can have, up to a maximum."""
    return min(maximal_rate, controller.maximal_compression_rate)


def lowest_rate(
    controller: ModelController,
    file: LimitedFile,
    maximal_rate: float,
    ranking: Ranking | None,
    finished: FinishedSteps,
) -> float:
    """The lowest rate from which on the limits hold, found by bisection on untrained copies of the model.

    Args:
        controller: The controller with its model; it stays as it is.
        file: The file, and its limits.
        maximal_rate: Highest rate to try, in [0, 1).
        ranking: How filters are ranked; None for the controller's own way.
        finished: Keeps the result, so that a run that goes on has the same rate.

    Raises:
        ConfigurationError: If no rate keeps the limits, if the uncompressed model does, or if the device fails.
    """
    limits = file.settings.limits
    device = Device.of(file.settings, finished) if limits.of_device else None
    is_noisy = bool(limits.sizes) or device is not None
    below = _with_latency(limits, LATENCY_SHARE)

    def model_at(rate: float) -> nn.Module:
        copied = copy.deepcopy(controller)
        copied.disable_scheduler()
        if ranking is not None:
            copied.rank_by(ranking)
        copied.compression_rate = rate
        return file.model_of(copied)

    known: dict[_Shapes, Costs] = {}

    def costs_at(rates: Sequence[float], limits: Limits) -> list[Costs]:
        models = [model_at(rate) for rate in rates]
        if limits.sizes or limits.of_device:  # several models take turns
            return file.costs(models, rates, limits, device)
        for shapes, model, rate in zip(map(_shapes, models), models, rates, strict=True):
            if shapes not in known:  # neighboring rates often cut the same filters
                (known[shapes],) = file.costs([model], [rate], limits)
        found = [known[_shapes(model)] for model in models]
        return [costs.model_copy(update={"rate": rate}) for costs, rate in zip(found, rates, strict=True)]

    def compute() -> Costs:
        highest = highest_rate(controller, maximal_rate)
        uncompressed, smallest = costs_at([0.0, highest], limits)
        if excess := excess_over(limits, smallest):
            raise _mistake(
                f"no rate up to {highest:.4g} keeps them. The smallest reachable file has {smallest}, so "
                f"{' and '.join(words for words, _ in excess)}. Allow more"
                + (" or a higher maximal_rate" if highest == maximal_rate else "")
            )
        if not excess_over(below, uncompressed):
            raise _mistake(
                f"the uncompressed model keeps them already ({uncompressed}). Lower them, or set goal to size"
            )
        found = uncompressed
        if excess_over(_with_latency(limits, None), uncompressed):
            found = _bisected(costs_at, found.rate, smallest, _with_latency(limits, None), 1, PRECISION)
        if is_noisy:
            found = _bisected(costs_at, found.rate, smallest, below, NUM_IN_TURNS, LATENCY_PRECISION)
        return found

    with doing("the lowest rate at which the limits hold"), _naming_failures():
        found = finished.result(
            "rate",
            Costs,
            compute,
            controller.model,
            controller=controller.settings.model_dump(mode="json"),
            ranking=ranking and ranking.model_dump(),
            second=file.second and file.second.model_dump(mode="json"),
            export=file.settings.model_dump(mode="json", exclude={"objective", "measure_with"}),
            device=device and {**device.identity, "target": file.settings.shipped},
            shape=describe_inputs(file.inputs),
            maximal_rate=maximal_rate,
        )
    logger.info("The limits hold from a rate of %.4f on: %s", found.rate, found)
    return found.rate


@contextmanager
def _naming_failures() -> Iterator[None]:
    """Without the device, nobody knows a rate to train at; a run that goes on asks it for no file twice."""
    try:
        yield
    except DeviceError as error:
        raise _mistake(
            f"the device cannot say before training which rate keeps them ({error}). Mend export.measure_with or the "
            "connection to the device and run this again, or remove the limits of the device"
        ) from error


def _bisected(
    costs_at: Callable[[Sequence[float], Limits], list[Costs]],
    low: float,
    high: Costs,
    limits: Limits,
    num: int,
    precision: float,
) -> Costs:
    """The lowest rate at which the limits hold, between one at which they do not and one at which they do.

    Args:
        costs_at: Measures models of several rates together, as far as these limits need it.
        low: A rate; if the limits hold there, too, the result is slightly above it.
        high: A model that keeps the limits.
        limits: The limits.
        num: Number of rates that are tried together.
        precision: Precision of the rate, as a share of the model's size.
    """
    low, top = -math.log1p(-low), -math.log1p(-high.rate)
    while top - low > precision:
        steps = [low + (top - low) * (index + 1) / (num + 1) for index in range(num)]
        for step, costs in zip(steps, costs_at([-math.expm1(-step) for step in steps], limits), strict=True):
            if not excess_over(limits, costs):
                top, high = step, costs
                break
            low = step
    return high


def _with_latency(limits: Limits, share: float | None) -> Limits:
    """The limits with this share of those of latency and of the device; None leaves these out."""

    def shared(longest: Mapping[int, float]) -> dict[int, float]:
        return {} if share is None else {size: share * limit for size, limit in longest.items()}

    targets = {
        name: own.model_copy(update={"latency_ms": shared(own.latency_ms)}) for name, own in limits.targets.items()
    }
    latency, memory = limits.device_latency_ms, limits.device_memory_bytes
    on_device = {
        "device_latency_ms": share * latency if share and latency else None,
        "device_memory_bytes": max(1, int(share * memory)) if share and memory else None,
    }
    targets = {name: own for name, own in targets.items() if own != TargetLimits()}  # whose files are not needed
    return limits.model_copy(update={"latency_ms": shared(limits.latency_ms), "targets": targets, **on_device})


def _mistake(words: str) -> ConfigurationError:
    return ConfigurationError("aat", [f"export.limits: {words}"])
