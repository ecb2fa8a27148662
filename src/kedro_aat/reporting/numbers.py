"""The figures of a summary in words, for the terminal's table, the report and the model card alike."""

from __future__ import annotations

from typing import Any

# What a model costs; the label, and the key in the summary.
COSTS = (
    ("parameters", "parameters"),
    ("  of them not zero", "nonzero_parameters"),
    ("MACs", "macs"),
    ("ONNX file, bytes", "onnx_bytes"),
    ("  gzipped", "onnx_gzip_bytes"),
    ("OpenVINO files, bytes", "openvino_bytes"),
)

Row = tuple[str, str, str, str]  # label, baseline, compressed, change


def comparison(summary: dict[str, Any]) -> list[Row]:
    """Baseline beside compressed model: metrics, rate, costs and epochs."""
    baseline, compressed = summary["baseline"], summary["compressed"]
    budget, metric = summary["budget"], summary["metric"]
    rows: list[Row] = [
        (
            f"{metric['name']}, validation",
            f"{baseline['validation']:.4f}",
            f"{compressed['validation']:.4f}",
            f"{compressed['validation'] - baseline['validation']:+.4f}",
        ),
        ("  tolerated", "", tolerated(summary), f"{budget['drop']:.4g} worse"),
    ]
    if (error := compressed["validation_standard_error"]) is not None:
        rows.append(("  standard error", "", "", f"{error:.4f}"))
    if (tested := compressed["test"]) is not None:
        change = f"{tested - baseline['test']:+.4f}"
        rows.append((f"{metric['name']}, test", f"{baseline['test']:.4f}", f"{tested:.4f}", change))
    rows.append(("compression rate", "", f"{compressed['rate']['achieved']:.4f}", ""))
    epochs = ("epochs", "", f"{summary['epochs']['used']} of {summary['epochs']['allowed']}", "")
    return [*rows, *cost_rows(baseline, compressed), epochs]


def cost_rows(baseline: dict[str, Any], compressed: dict[str, Any]) -> list[Row]:
    """Sizes, operations and latencies of one model beside the baseline's; latencies are of the fastest turns first.

    Their ratio is the one that repeats; the medians move with what else the machine does.
    """
    rows = [
        _ratio(label, baseline[key], compressed[key], "{:,.0f}")
        for label, key in COSTS
        if key != "nonzero_parameters" or compressed[key] != compressed["parameters"]
    ]
    for label, prefix in (("latency", ""), ("OpenVINO latency", "openvino_")):
        fastest, medians, quartiles = (f"{prefix}latency_{kind}ms" for kind in ("fastest_", "", "quartiles_"))
        for size, latency in (baseline[fastest] or {}).items():
            after = (compressed[fastest] or {}).get(size)
            rows.append(_ratio(f"{label}, batch {size}, ms", latency, after, "{:.3f}"))
            for words, key, form in (("median", medians, _milliseconds), ("half of the turns", quartiles, _between)):
                was, now = (form((model[key] or {}).get(size)) for model in (baseline, compressed))
                rows.append((f"  {words}", was, now, ""))
    for size, memory in (baseline["peak_memory_bytes"] or {}).items():
        after = (compressed["peak_memory_bytes"] or {}).get(size)
        rows.append(_ratio(f"peak memory, batch {size}, MB", memory / 1e6, after and after / 1e6, "{:.1f}"))
    return [row for row in rows if row is not None]


def _milliseconds(time: float | None) -> str:
    return "-" if time is None else f"{time:.3f}"


def _between(quartiles: list[float] | None) -> str:
    return "-" if quartiles is None else "-".join(map(_milliseconds, quartiles))


def tolerated(summary: dict[str, Any]) -> str:
    """The lowest metric that is within budget: `at least 0.9844`."""
    better = "at least" if summary["metric"]["higher_is_better"] else "at most"
    return f"{better} {summary['budget']['lowest_tolerated']:.4f}"


def delivered_candidate(summary: dict[str, Any]) -> dict[str, Any] | None:
    """The report of the model that is delivered; None where none is."""
    return next((each for each in summary["candidates"] if each["name"] == summary["delivered"]), None)


def stages_of(candidate: dict[str, Any], summary: dict[str, Any]) -> list[int]:
    """The numbers of the stages that made a candidate; one that found nothing left the model as it was."""
    numbered = enumerate(summary["stages"][: candidate["stage"]], start=1)
    return [number for number, stage in numbered if stage["outcome"] == "within_budget"]


def breaks_limits(found: dict[str, Any]) -> bool:
    """Whether nothing is delivered although files kept the budget; `found` is a summary or an export's report."""
    return found["delivered"] is None and bool(found["candidates"])


def not_delivered(summary: dict[str, Any], objective: str) -> dict[str, str]:
    """Why each model that is not delivered is not, by name."""
    reasons = {str(name): str(reason) for name, reason in summary["rejected"].items()}
    chosen = delivered_candidate(summary)
    for other in summary["candidates"]:
        if chosen is not None and other["name"] != chosen["name"] and other["name"] not in reasons:
            words, was, would = _by_objective(objective, chosen, other)
            reasons[other["name"]] = f"The objective is {words}: {would}, where the delivered one has {was}."
    return reasons


def _by_objective(objective: str, chosen: dict[str, Any], other: dict[str, Any]) -> tuple[str, str, str]:
    if objective == "rate":
        return "the highest rate", f"{chosen['rate']:.4f}", f"{other['rate']:.4f}"
    if objective == "latency":
        size = next(iter(chosen["latency_fastest_ms"]))
        shown = [f"{each['latency_fastest_ms'][size]:.3f} ms" for each in (chosen, other)]
        return f"the lowest latency at batch {size}", shown[0], shown[1]
    key, words = {
        "bytes": ("onnx_bytes", "the fewest bytes"),
        "parameters": ("parameters", "the fewest parameters"),
        "macs": ("macs", "the fewest MACs"),
    }[objective]
    return words, f"{chosen[key]:,}", f"{other[key]:,}"


def _ratio(label: str, before: float | None, after: float | None, form: str) -> Row | None:
    if before is None:
        return None
    shown = "-" if after is None else form.format(after)
    return label, form.format(before), shown, _factor(after / before) if after is not None and before else ""


def _factor(ratio: float) -> str:
    """Two digits that say something: 0.67x, but 0.012x."""
    return f"{ratio:.2f}x" if ratio >= 0.1 else f"{ratio:.2g}x"
