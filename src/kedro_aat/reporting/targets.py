"""The targets beside each other: bytes, metric, latency and memory of each file, and what int8 costs there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kedro_aat.delivery.measurements import CandidateResult, Measurements, TargetCosts, Timing
from kedro_aat.delivery.results import Summary
from kedro_aat.delivery.target_files import TargetFileResult, files_of_candidate
from kedro_aat.export.targets.registry import TARGETS, TargetName
from kedro_aat.reporting.numbers import factor, metric_words

# Ratios of latencies nearer to 1 do not repeat; see docs/decisions/fastest-turn.md.
_REPEATS = 1.04


class Table(NamedTuple):
    """Titles of the columns with whether they are numeric, and the rows."""

    columns: list[tuple[str, bool]]
    rows: list[list[str]]


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
    columns = [
        ("file", False),
        ("bytes", True),
        (summary.metric.name, True),
        ("difference", True),
        *((f"batch {size}, ms", True) for size in sizes),
        ("memory", True),
    ]
    rows = [
        [
            TARGETS[file.target].title,
            "-" if file.bytes is None else f"{file.bytes:,}",
            metric_words(file.validation),
            "-" if file.difference is None else f"{file.difference:.1e}",
            *(_milliseconds((file.latency_fastest_ms or {}).get(size)) for size in sizes),
            _memory(file),
        ]
        for file in summary.files or files_of_candidate(delivered)
    ]
    return Table(columns, rows)


def _memory(file: TargetFileResult) -> str:
    if file.arena_bytes is not None:
        return f"{file.arena_bytes:,} bytes, arena"
    peak = file.peak_memory_bytes or {}
    return f"{peak[max(peak)] / 1e6:.1f} MB, batch {max(peak)}" if peak else "-"


def targets_table(summary: Summary) -> Table | None:
    """Bytes and latency of the compared models in each target, with factors to the baseline; None as `files_table`."""
    if not has_more_targets(summary):
        return None
    models = compared_models(summary)
    sizes = list(summary.baseline.latency_fastest_ms or {})
    columns = [("file", False), ("model", False), ("bytes", True)]
    columns += [(f"batch {size}, ms", True) for size in sizes]
    rows = []
    for target in compared_targets(summary):
        before = timing_of(summary.baseline, target)
        for number, (name, costs) in enumerate(models):
            after = timing_of(costs, target)
            cells = [_beside(bytes_of(summary.baseline, target), bytes_of(costs, target), "{:,.0f}")]
            cells += [_beside(_fastest(before, size), _fastest(after, size), "{:.3f}") for size in sizes]
            rows.append([TARGETS[target].title if number == 0 else "", name, *cells])
    return Table(columns, rows)


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


def _milliseconds(time: float | None) -> str:
    return "-" if time is None else f"{time:.3f}"


def _beside(before: float | None, after: float | None, form: str) -> str:
    if after is None:
        return "-"
    return form.format(after) + (f" ({factor(after / before)})" if before and after is not before else "")


def runtimes_in_words(names: Sequence[TargetName]) -> str:
    """As in `onnxruntime, OpenVINO and LiteRT`."""
    titles = ["onnxruntime", *(TARGETS[name].title for name in names)]
    return " and ".join([", ".join(titles[:-1]), titles[-1]]) if len(titles) > 1 else titles[0]
