"""The targets beside each other: bytes, metric, latency and memory of each file, and what int8 costs there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from kedro_aat.delivery.measurements import CandidateResult, DeviceCosts, Measurements, TargetCosts, Timing
from kedro_aat.delivery.results import Summary
from kedro_aat.delivery.target_files import TargetFileResult, files_of_candidate
from kedro_aat.export.device import DeviceProperty
from kedro_aat.export.targets.registry import TARGETS, TargetName
from kedro_aat.reporting.numbers import factor, metric_words

# Ratios of latencies nearer to 1 do not repeat; see docs/decisions/fastest-turn.md.
_REPEATS = 1.04


class Table(NamedTuple):
    """Titles of the columns with whether they are numeric, the rows, and sentences about what is not known."""

    columns: list[tuple[str, bool]]
    rows: list[list[str]]
    notes: list[str]


class Quantity(NamedTuple):
    """What models and targets are compared by; less is better.

    Attributes:
        column: Title of a column.
        panel: Title of a panel of the figure.
        form: How a number is written.
        of: The number of a model's file for a target; None if it is not known.
    """

    column: str
    panel: str
    form: str
    of: Callable[[Measurements, TargetName], float | None]


class Compared(NamedTuple):
    """A model whose files are compared.

    Attributes:
        name: As people read it, such as `int8: quantization`.
        costs: What its files cost.
    """

    name: str
    costs: Measurements


def has_more_targets(summary: Summary) -> bool:
    """Whether files were delivered for more than ONNX and `.pt2`."""
    return summary.delivered is not None and bool(summary.compressed.targets)


def files_table(summary: Summary) -> Table | None:
    """The delivered files, a row each; None if there are no more than ONNX and `.pt2`."""
    delivered = summary.delivered_candidate
    if delivered is None or not has_more_targets(summary):
        return None
    sizes = list(delivered.latency_fastest_ms or {})
    files = summary.files or files_of_candidate(delivered)
    on_device = [column for column in _ON_DEVICE if any(_said(file.device, column[1]) is not None for file in files)]
    columns = [
        ("file", False),
        ("bytes", True),
        (summary.metric.name, True),
        ("difference", True),
        *((f"batch {size}, ms", True) for size in sizes),
        ("memory", True),
        *((title, True) for title, _, _ in on_device),
    ]
    rows = [
        [
            TARGETS[file.target].title,
            "-" if file.bytes is None else f"{file.bytes:,}",
            metric_words(file.validation),
            "-" if file.difference is None else f"{file.difference:.1e}",
            *(_number((file.latency_fastest_ms or {}).get(size), ".3f") for size in sizes),
            _memory(file),
            *(_number(_said(file.device, name), form) for _, name, form in on_device),
        ]
        for file in files
    ]
    return Table(columns, rows, _notes(files))


_ON_DEVICE: tuple[tuple[str, DeviceProperty, str], ...] = (
    ("device, ms", "latency_ms", ".3f"),
    ("device, bytes", "memory_bytes", ",.0f"),
)


def _said(device: DeviceCosts | None, name: DeviceProperty) -> float | None:
    return None if device is None else getattr(device, name)


def _notes(files: Sequence[TargetFileResult]) -> list[str]:
    """Why something is not known, each reason once with the files that it holds for."""
    titles: dict[tuple[str, str], list[str]] = {}
    for file in files:
        for what, why in file.not_measured.items():
            titles.setdefault((what, why), []).append(TARGETS[file.target].title)
    return [f"Not known of {' and '.join(names)}: {what}, since {why}." for (what, why), names in titles.items()]


def _memory(file: TargetFileResult) -> str:
    if file.arena_bytes is not None:
        return f"{file.arena_bytes:,} bytes, arena"
    peak = file.peak_memory_bytes or {}
    return f"{peak[max(peak)] / 1e6:.1f} MB, batch {max(peak)}" if peak else "-"


def targets_table(summary: Summary) -> Table | None:
    """The compared models in each target, with factors to the baseline; None as `files_table`."""
    if not has_more_targets(summary):
        return None
    shown = quantities(summary)
    columns = [("file", False), ("model", False), *((each.column, True) for each in shown)]
    rows = []
    for target in compared_targets(summary):
        for number, (name, costs) in enumerate(compared_models(summary)):
            before = None if number == 0 else summary.baseline
            cells = [
                _beside(None if before is None else each.of(before, target), each.of(costs, target), each.form)
                for each in shown
            ]
            rows.append([TARGETS[target].title if number == 0 else "", name, *cells])
    return Table(columns, rows, [])


def quantities(summary: Summary) -> list[Quantity]:
    """What is known of the compared models: bytes and latencies, and where there are any, arenas and the device's.

    Args:
        summary: Summary of a run that delivered files for more than ONNX and `.pt2`.
    """
    found = [Quantity("bytes", "Bytes of the file", ",.0f", bytes_of)]
    for size in summary.baseline.latency_fastest_ms or {}:
        found.append(Quantity(f"batch {size}, ms", f"Latency at batch {size}, ms", ".3f", _latency(size)))
    more = [Quantity("arena, bytes", "Arena, bytes", ",.0f", _arena)]
    more += [
        Quantity(title, f"On the device: {words}", form, _on_device(name))
        for (title, name, form), words in zip(_ON_DEVICE, ("latency, ms", "memory, bytes"), strict=True)
    ]
    models, targets = compared_models(summary), compared_targets(summary)
    return found + [
        each for each in more if any(each.of(costs, target) is not None for _, costs in models for target in targets)
    ]


def _latency(size: int) -> Callable[[Measurements, TargetName], float | None]:
    return lambda costs, target: _fastest(timing_of(costs, target), size)


def _arena(costs: Measurements, target: TargetName) -> float | None:
    known = costs.targets.get(target)
    return None if known is None else known.details.arena_bytes


def _on_device(name: DeviceProperty) -> Callable[[Measurements, TargetName], float | None]:
    def of(costs: Measurements, target: TargetName) -> float | None:
        return _said(costs.device, name) if costs.device is not None and costs.device.target == target else None

    return of


def compared_targets(summary: Summary) -> list[TargetName]:
    """The targets whose files are measured."""
    return ["onnx", *summary.baseline.targets]


def compared_models(summary: Summary) -> list[Compared]:
    """The baseline and the delivered model, and beside an int8 model the float one before it, or the reverse."""
    pair = (_float_and_int8(summary) or (summary.delivered_candidate,)) if summary.delivered is not None else ()
    models = [Compared("baseline", summary.baseline)]
    for candidate in pair:
        if candidate is None:
            continue
        kind = "int8" if is_int8(summary, candidate) else "float"
        end = ", delivered" if candidate.id == summary.delivered_id else ""
        models.append(Compared(f"{kind}: {candidate.name.replace('_', ' ')}{end}", candidate))
    return models


def is_int8(summary: Summary, candidate: CandidateResult) -> bool:
    """Whether one of the stages that changed a candidate quantized it."""
    stages = summary.numbered_stages
    return any("quantization" in stages[number].algorithms for number in summary.stages_of(candidate))


def _float_and_int8(summary: Summary) -> tuple[CandidateResult | None, CandidateResult] | None:
    """The delivered model with its counterpart; the float one is None if it is no candidate."""
    delivered = summary.delivered_candidate
    if delivered is None:
        return None
    others = [each for each in summary.candidates if each.id != delivered.id]
    if is_int8(summary, delivered):
        before = [each for each in others if not is_int8(summary, each)]
        return max(before, key=lambda each: each.stage, default=None), delivered
    after = [each for each in others if is_int8(summary, each)]
    return (delivered, min(after, key=lambda each: each.stage)) if after else None


def int8_words(summary: Summary) -> list[str]:
    """A sentence for each target that makes int8 slower or larger than float; one sentence if none does."""
    pair = _float_and_int8(summary) if has_more_targets(summary) else None
    if pair is None:
        return []
    before: Measurements = pair[0] or summary.baseline
    name = "the float one" if pair[0] else "the float baseline"
    sentences = []
    for target in compared_targets(summary):
        title = TARGETS[target].title
        small, large = bytes_of(before, target), bytes_of(pair[1], target)
        if small and large and large > small:
            words = f"{large / small:.2f}x as large as {name} ({large:,} bytes instead of {small:,})"
            sentences.append(f"For {title} the int8 file is {words}.")
        if slower := _slower(timing_of(before, target), timing_of(pair[1], target)):
            times = "; ".join(f"{b:.3f} ms instead of {a:.3f} ms at batch {size}" for size, (a, b) in slower.items())
            worst = max(b / a for a, b in slower.values())
            sentences.append(f"In {title} the int8 file takes {worst:.2f}x as long as {name} ({times}).")
    return sentences or [f"In none of the targets is the int8 file larger or slower than {name}."]


def _slower(before: Timing | None, after: Timing | None) -> dict[int, tuple[float, float]]:
    """Batch size -> both latencies, where the second one is higher."""
    known: Mapping[int, float] = (before.latency_fastest_ms if before else None) or {}
    found = {size: (time, _fastest(after, size)) for size, time in known.items()}
    return {size: (a, b) for size, (a, b) in found.items() if a and b is not None and b >= _REPEATS * a}


def bytes_of(costs: Measurements, target: TargetName) -> int | None:
    """Size of a model's file for a target; None if it has none."""
    if target == "onnx":
        return costs.onnx_bytes
    known = costs.targets.get(target)
    return None if known is None else known.bytes


def timing_of(costs: Measurements, target: TargetName) -> Timing | TargetCosts | None:
    """The times of a model's file for a target; None if it has none."""
    return costs if target == "onnx" else costs.targets.get(target)


def _fastest(timing: Timing | None, size: int) -> float | None:
    return None if timing is None else (timing.latency_fastest_ms or {}).get(size)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _beside(before: float | None, after: float | None, form: str) -> str:
    return _number(after, form) + (f" ({factor(after / before)})" if before and after else "")


def runtimes_in_words(names: Sequence[TargetName]) -> str:
    """As in `onnxruntime, OpenVINO and LiteRT`."""
    titles = ["onnxruntime", *(TARGETS[name].title for name in names)]
    return " and ".join([", ".join(titles[:-1]), titles[-1]]) if len(titles) > 1 else titles[0]
