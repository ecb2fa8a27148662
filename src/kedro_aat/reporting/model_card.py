"""The model card: what a person needs to know who receives the ONNX file alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from kedro_aat.delivery.results import Summary
from kedro_aat.export import NotExported
from kedro_aat.export.opset import oldest_onnxruntime, opset_of
from kedro_aat.export.sample import dtype_of
from kedro_aat.export.settings import ExportSettings
from kedro_aat.export.targets.registry import TARGETS
from kedro_aat.export.targets.target import TargetFile
from kedro_aat.reporting.card_code import example, plain, preprocessing_words
from kedro_aat.reporting.numbers import comparison, guard_words, tolerated
from kedro_aat.reporting.target_card import target_section
from kedro_aat.reporting.targets import files_table, int8_words

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

_MOST_CLASSES = 200  # that are listed


class About(NamedTuple):
    """What the settings say about the file.

    Attributes:
        export: Settings of the export: meanings, class names, license, preprocessing.
        loss: Import path of the loss, from which follows what the outputs are; None if unknown.
        raw_file: Name of the file for raw numbers; None if there is none.
    """

    export: ExportSettings = ExportSettings()
    loss: str | None = None
    raw_file: str | None = None


def model_card(
    summary: Summary,
    onnx_model: ModelProto | NotExported,
    file_name: str,
    about: About | None = None,
    others: Sequence[TargetFile] = (),
) -> str:
    """The card, in Markdown.

    Args:
        summary: Summary of the run.
        onnx_model: The delivered file, or why there is none.
        file_name: Name of the file, for the example.
        about: What the settings say about the file; by default nothing.
        others: The files of the same model for other targets.
    """
    about = about or About()
    if isinstance(onnx_model, NotExported):
        return f"# No model was delivered\n\n{plain(onnx_model.reason)} {plain(summary.advice)}\n"
    parts = [
        f"# {file_name}",
        f"An ONNX model, compressed by kedro-aat ({_how(summary)}) so that it stays within a stated accuracy budget.",
        "## File",
        _file(onnx_model, file_name, about),
        "## Inputs and outputs",
        _signature(onnx_model, summary, about),
        "## Preprocessing",
        preprocessing_words(about.export.preprocessing, file_name, about.raw_file),
        "## How to run it",
        example(onnx_model, file_name),
        *_others(onnx_model, file_name, others),
        *_files(summary),
        "## Purpose",
        _intent(summary),
        "## Evidence",
        plain(f"Outcome: {summary.outcome.replace('_', ' ')}. {summary.certificate.words}"),
        _table(summary),
        "## Limitations",
        _limitations(summary),
        "## Origin",
        _origin(summary),
    ]
    return "\n\n".join(parts) + "\n"


def _others(onnx_model: ModelProto, file_name: str, others: Sequence[TargetFile]) -> list[str]:
    """The parts about the files for other targets."""
    stem = file_name.removesuffix(".onnx")
    return [target_section(file, onnx_model, f"{stem}{TARGETS[file.target].suffixes[0]}") for file in others]


def _files(summary: Summary) -> list[str]:
    """The files side by side, if there are more than ONNX and `.pt2`."""
    table = files_table(summary)
    if table is None:
        return []
    lines = [" | ".join(_cell(title) for title, _ in table.columns)]
    lines.append(" | ".join("---:" if is_number else "---" for _, is_number in table.columns))
    lines += [" | ".join(map(_cell, row)) for row in table.rows]
    sentences = [*table.notes, *int8_words(summary)]
    return ["## All files", "\n".join(f"| {line} |" for line in lines), *map(plain, sentences)]


def _how(summary: Summary) -> str:
    chosen = summary.delivered_candidate
    assert chosen is not None  # there is a file
    stages = [summary.numbered_stages[number].algorithms for number in summary.stages_of(chosen)]
    return ", then ".join(" and ".join(algorithms).replace("_", " ") for algorithms in stages)


def _file(model: ModelProto, name: str, about: About) -> str:
    content = model.SerializeToString()
    oldest = oldest_onnxruntime(model)
    rows = [
        ("name", f"`{name}`, {len(content):,} bytes"),
        ("SHA-256", f"`{hashlib.sha256(content).hexdigest()}`"),
        ("format", f"ONNX, opset {opset_of(model)}, IR version {model.ir_version}"),
        ("runtime", f"onnxruntime {oldest} and later" if oldest else "no released onnxruntime is known to load it"),
        ("license", _cell(about.export.card.license or "not stated (export.card.license)")),
    ]
    return "\n".join(["| | |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in rows)])


def _signature(model: ModelProto, summary: Summary, about: About) -> str:
    names = about.export.card.class_names or summary.class_names
    graph = model.graph
    rows = []
    for kind, values in (("input", graph.input), ("output", graph.output)):
        for each in values:
            said = about.export.card.meanings.get(each.name)
            meaning = said or (_scores(each, about.loss) if kind == "output" and len(graph.output) == 1 else "")
            rows.append(f"| {kind} | `{_cell(each.name)}` | {_shape(each)} | {_type(each)} | {_cell(meaning)} |")
    head = "| | name | shape | type | meaning |\n| --- | --- | --- | --- | --- |\n"
    parts = [head + "\n".join(rows), _axes(model)]
    if names:
        parts.append(_classes(names, model))
    return "\n\n".join(parts)


def _axes(model: ModelProto) -> str:
    """What the axes of any size are."""
    values = (*model.graph.input, *model.graph.output)
    axes = dict.fromkeys(size.dim_param for each in values for size in each.type.tensor_type.shape.dim)
    known = {"batch": "one row for each example", "height": "of the image", "width": "of the image"}
    known |= {"length": "of the sequence"}
    words = [f"`{_cell(name)}`" + (f" ({known[name]})" if name in known else "") for name in axes if name]
    return f"A name in a shape stands for any number: {', '.join(words)}." if words else "All sizes are fixed."


def _scores(output: ValueInfoProto, loss: str | None) -> str:
    """What the loss says that the only output is; empty if it says nothing."""
    kind = (loss or "").rpartition(".")[2]
    num_axes = len(output.type.tensor_type.shape.dim)
    if kind == "CrossEntropyLoss" and num_axes > 1:
        return "logits, one per class along axis 1; their softmax gives probabilities"
    if kind == "NLLLoss" and num_axes > 1:
        return "logarithms of probabilities, one per class along axis 1"
    if kind == "BCEWithLogitsLoss":
        return "logits; the sigmoid of each gives a probability"
    return {"BCELoss": "probabilities", "MSELoss": "values", "L1Loss": "values"}.get(kind, "")


def _classes(names: Sequence[str], model: ModelProto) -> str:
    listed = ", ".join(f"{number} {plain(name)}" for number, name in enumerate(names[:_MOST_CLASSES]))
    more = f" and {len(names) - _MOST_CLASSES:,} more" if len(names) > _MOST_CLASSES else ""
    sizes = {size.dim_value for each in model.graph.output for size in each.type.tensor_type.shape.dim[1:]}
    fits = len(names) in sizes or 0 in sizes or (len(names) == 2 and sizes <= {1})
    warning = "" if fits else f" No output has {len(names)} numbers, so these may be the classes of other data."
    return f"Classes: {listed}{more}.{warning}"


def _intent(summary: Summary) -> str:
    metric, budget = summary.metric, summary.budget
    direction = "higher" if metric.higher_is_better else "lower"
    return (
        f"The model replaces its baseline. It may lose at most {budget.drop:.4g} of {plain(metric.name)} ({direction} "
        f"is better): {tolerated(summary)} on the validation split."
        + (" Every guard in the table below was kept, too." if summary.guards else "")
    )


def _table(summary: Summary) -> str:
    rows = [f"| {' | '.join(_cell(cell.strip()) for cell in row)} |" for row in comparison(summary)]
    return "\n".join(["| | baseline | compressed | change |", "| --- | ---: | ---: | ---: |", *rows])


def _limitations(summary: Summary) -> str:
    points = [
        "All metrics come from the splits of one dataset. They promise nothing for data from another source, nor for "
        "each group within the data: compression can cost rare classes more than these metrics show.",
        "The validation split judged every epoch and chose this model, so its metric is slightly optimistic.",
    ]
    if words := guard_words(summary):
        points.append(words)
    if not summary.certificate.is_certified:
        points.append("The drop is not certified; see the evidence.")
    versions = summary.versions
    processor = summary.baseline.processor or summary.environment.processor
    measured = ["onnxruntime", *(TARGETS[name].runtime for name in summary.baseline.targets)]
    runtimes = " and ".join(f"{name} {versions[name]}" for name in measured if name in versions)
    points.append(
        f"Latencies were measured with {runtimes} on one machine ({plain(processor)}); on "
        "another machine, expect similar ratios but other milliseconds."
    )
    return "\n".join(f"- {point}" for point in points)


def _origin(summary: Summary) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in summary.versions.items())
    return f"Run `{summary.run}`, seed {summary.seed}. {plain(versions)}. Full report: `{summary.report}`."


def _shape(value: ValueInfoProto) -> str:
    sizes = [size.dim_param or str(size.dim_value) for size in value.type.tensor_type.shape.dim]
    return " x ".join(_cell(size) for size in sizes)


def _type(value: ValueInfoProto) -> str:
    return str(dtype_of(value))


def _cell(text: str) -> str:
    return plain(text).replace("|", "\\|")
