"""The figures of a summary in words, for the terminal's table, the report and the model card alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kedro_aat.delivery.measurements import DeviceCosts, Measurements, TargetCosts, Timing
from kedro_aat.delivery.results import CompressedSummary, Rates, Summary
from kedro_aat.export.targets.registry import TARGETS, TargetName

if TYPE_CHECKING:
    import pandas as pd

# Costs of a model: label, and field of `Measurements`.
COSTS = (
    ("parameters", "parameters"),
    ("  of them not zero", "nonzero_parameters"),
    ("MACs", "macs"),
    ("ONNX file, bytes", "onnx_bytes"),
    ("  gzipped", "onnx_gzip_bytes"),
)

# Guards that are shown, those with the least left; a guard per class may be a thousand.
MAX_GUARDS = 10
GUARDS_KEPT = "The delivered file kept every guard on the validation split."
GUARDS_ON_TEST = "The certificate is about the main metric alone: on the test split, guards are as measured."

Row = tuple[str, str, str, str]  # label, baseline, compressed, change


def guard_words(summary: Summary) -> str:
    """What the guards show; empty without guards or without a delivered file. Of an unread test split, nothing."""
    if not summary.guards or summary.delivered is None:
        return ""
    is_read = any(each.compressed is not None and each.compressed.test is not None for each in summary.guards)
    return f"{GUARDS_KEPT} {GUARDS_ON_TEST}" if is_read else GUARDS_KEPT


def comparison(summary: Summary) -> list[Row]:
    """The baseline beside the compressed model: metrics, rate, costs and epochs."""
    baseline, compressed = summary.baseline, summary.compressed
    metric = _metric_of_file(summary)
    rows: list[Row] = [
        (
            f"{metric}, validation",
            f"{baseline.validation:.4f}",
            f"{compressed.validation:.4f}",
            f"{compressed.validation - baseline.validation:+.4f}",
        ),
        ("  tolerated", "", tolerated(summary), f"{summary.budget.drop:.4g} worse"),
    ]
    if compressed.validation_standard_error is not None:
        rows.append(("  standard error", "", "", f"{compressed.validation_standard_error:.4f}"))
    if compressed.test is not None and baseline.test is not None:
        change = f"{compressed.test - baseline.test:+.4f}"
        label = "test" if summary.certificate.kind else "test (measured only)"
        rows.append((f"{metric}, {label}", f"{baseline.test:.4f}", f"{compressed.test:.4f}", change))
        if compressed.test_standard_error is not None:
            rows.append(("  standard error", "", "", f"{compressed.test_standard_error:.4f}"))
    rows += guard_rows(summary)
    rows.append((_rate_label(compressed.rate), "", f"{compressed.rate.achieved:.4f}", _counted(compressed.rate)))
    epochs = ("epochs, by what they cost", "", f"{summary.epochs.used} of {summary.epochs.allowed}", "")
    return [*rows, *cost_rows(baseline, compressed), epochs]


def _metric_of_file(summary: Summary) -> str:
    """Name of the metric, with the target whose file it is of, if that is not ONNX."""
    delivered = summary.delivered_candidate
    shipped = "onnx" if delivered is None else delivered.shipped
    return summary.metric.name + ("" if shipped == "onnx" else f", {files_title(shipped)}")


def metric_words(metric: float | None) -> str:
    """A metric with four digits, or that there is none."""
    return "not judged" if metric is None else f"{metric:.4f}"


def _rate_label(rate: Rates) -> str:
    return "compression rate" if rate.share_of is None else f"compression rate, {rate.share_of}"


def rate_title(summary: Summary, number: int) -> str:
    """Title of a column with the rates of a stage, as in `rate, parameters removed`."""
    share_of = summary.numbered_stages[number].rate.share_of
    return "rate" if share_of is None else f"rate, {share_of}"


def _counted(rate: Rates) -> str:
    """What the rate is the rate of, if that is known."""
    if rate.counted_parameters is None or not rate.all_parameters:
        return ""
    share = rate.counted_parameters / rate.all_parameters
    return f"of {rate.counted_parameters:,} of {rate.all_parameters:,} parameters ({share:.2%})"


def guard_rows(summary: Summary) -> list[Row]:
    """The guards of baseline and compressed model, if there are any; of many, those with the least left."""
    shown = sorted(summary.guards, key=lambda guard: guard.share_left)[:MAX_GUARDS]
    rows: list[Row] = []
    for guard in (each for each in summary.guards if each in shown):
        before, after = guard.baseline, guard.compressed
        bound = "at least" if guard.higher_is_better else "at most"
        rows.append(_values(f"{guard.name}, validation", before.validation, after.validation))
        rows.append(("  tolerated", "", f"{bound} {guard.lowest_tolerated:.4f}", f"{guard.drop:.4g} worse"))
        if before.test is not None and after.test is not None:
            rows.append(_values(f"{guard.name}, test", before.test, after.test))
    num_more = len(summary.guards) - len(shown)
    return rows + ([(f"{num_more} more guards, each with more left", "", "", "")] if num_more else [])


def _values(label: str, before: float, after: float) -> Row:
    return label, f"{before:.4f}", f"{after:.4f}", f"{after - before:+.4f}"


def smallest_margins(trajectory: pd.DataFrame) -> pd.Series[float]:
    """For each epoch the margin, or that of the guards if it is smaller; NaN for a failed epoch."""
    columns = ["margin", *(["guard_margin"] if "guard_margin" in trajectory else [])]
    return trajectory[columns].min(axis=1)


def cost_rows(baseline: Measurements, compressed: Measurements | CompressedSummary) -> list[Row]:
    """Sizes, operations and latencies of one model beside the baseline's.

    The fastest turn is the first row of each latency, because its ratio is the one that repeats; medians move with
    whatever else the machine does.
    """
    rows: list[Row | None] = [
        _ratio(label, getattr(baseline, field), getattr(compressed, field), "{:,.0f}")
        for label, field in COSTS
        if field != "nonzero_parameters" or compressed.nonzero_parameters != compressed.parameters
    ]
    rows += _latency_rows("latency", baseline, compressed)
    for name, before in baseline.targets.items():
        rows += _target_rows(name, before, compressed.targets.get(name))
    rows += _device_rows(baseline.device, compressed.device)
    for size, memory in (baseline.peak_memory_bytes or {}).items():
        after = (compressed.peak_memory_bytes or {}).get(size)
        rows.append(_ratio(f"peak memory, batch {size}, MB", memory / 1e6, after and after / 1e6, "{:.1f}"))
    return [row for row in rows if row is not None]


def _latency_rows(label: str, baseline: Timing, compressed: Timing | None) -> list[Row | None]:
    """The latency of two files at each batch size: fastest turn, median and quartiles."""
    rows: list[Row | None] = []
    for size, before in (baseline.latency_fastest_ms or {}).items():
        fastest = None if compressed is None else (compressed.latency_fastest_ms or {}).get(size)
        rows.append(_ratio(f"{label}, batch {size}, ms", before, fastest, "{:.3f}"))
        both = (baseline, compressed)
        medians = [None if each is None else (each.latency_ms or {}).get(size) for each in both]
        quartiles = [None if each is None else (each.latency_quartiles_ms or {}).get(size) for each in both]
        rows.append(("  median", _milliseconds(medians[0]), _milliseconds(medians[1]), ""))
        rows.append(("  half of the turns", _interval(quartiles[0]), _interval(quartiles[1]), ""))
    return rows


def _target_rows(name: TargetName, baseline: TargetCosts, compressed: TargetCosts | None) -> list[Row | None]:
    """What two files of a target cost."""
    num_bytes, arena = (None, None) if compressed is None else (compressed.bytes, compressed.details.arena_bytes)
    return [
        _ratio(f"{files_title(name)}, bytes", baseline.bytes, num_bytes, "{:,.0f}"),
        _ratio("  arena, bytes", baseline.details.arena_bytes, arena, "{:,.0f}"),
        *_latency_rows(f"{TARGETS[name].title} latency", baseline, compressed),
    ]


def _device_rows(baseline: DeviceCosts | None, compressed: DeviceCosts | None) -> list[Row]:
    """What the user's device says of two files, and of which it says nothing, and why."""
    rows: list[Row] = []
    both = (baseline, compressed)
    for label, field, form in (
        ("latency on the device, ms", "latency_ms", "{:.3f}"),
        ("memory on the device, bytes", "memory_bytes", "{:,.0f}"),
    ):
        before, after = (None if each is None else getattr(each, field) for each in both)
        if before is not None or after is not None:
            shown = ("-" if value is None else form.format(value) for value in (before, after))
            rows.append((label, *shown, "" if before is None or after is None else factor(after / before)))  # type: ignore[arg-type]
    for name, each in zip(("baseline", "compressed"), both, strict=True):
        if each is not None and each.failure is not None:
            rows.append((f"device failed, {name}", "", "", each.failure))
    return rows


def files_title(target: TargetName) -> str:
    """What the file of a target is called, as in `OpenVINO files`."""
    info = TARGETS[target]
    return f"{info.title} {'files' if len(info.suffixes) > 1 else 'file'}"


def _milliseconds(time: float | None) -> str:
    return "-" if time is None else f"{time:.3f}"


def _interval(quartiles: tuple[float, float] | None) -> str:
    return "-" if quartiles is None else "-".join(map(_milliseconds, quartiles))


def tolerated(summary: Summary) -> str:
    """The worst metric within budget, as in `at least 0.9844`."""
    bound = "at least" if summary.metric.higher_is_better else "at most"
    return f"{bound} {summary.budget.lowest_tolerated:.4f}"


def stage_name(summary: Summary, number: int) -> str:
    """A stage as a title: `Stage 2: quantization`, without the number if there is only one."""
    words = " and ".join(summary.numbered_stages[number].algorithms).replace("_", " ")
    return f"Stage {number}: {words}" if len(summary.stages) > 1 else words.capitalize()


def _ratio(label: str, before: float | None, after: float | None, form: str) -> Row | None:
    if before is None:
        return None
    shown = "-" if after is None else form.format(after)
    return label, form.format(before), shown, factor(after / before) if after is not None and before else ""


def factor(ratio: float) -> str:
    """Two significant digits: 0.67x, but 0.012x."""
    return f"{ratio:.2f}x" if ratio >= 0.1 else f"{ratio:.2g}x"
