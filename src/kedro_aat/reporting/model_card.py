"""The model card: what a person needs to know who receives the ONNX file alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import onnx

from kedro_aat.delivery.results import Summary
from kedro_aat.export import NotExported
from kedro_aat.export.opset import oldest_onnxruntime, opset_of
from kedro_aat.reporting.numbers import comparison, guard_words, tolerated

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

_SIZE = 64  # of an axis of any size, in the example: enough for most strides and kernels


def model_card(summary: Summary, onnx_model: ModelProto | NotExported, file_name: str) -> str:
    """The card, in Markdown.

    Args:
        summary: Summary of the run.
        onnx_model: The delivered file, or why there is none.
        file_name: Name of the file, for the example.
    """
    if isinstance(onnx_model, NotExported):
        return f"# No model was delivered\n\n{_plain(onnx_model.reason)} {_plain(summary.advice)}\n"
    parts = [
        f"# {file_name}",
        f"An ONNX model, compressed by kedro-aat ({_how(summary)}) so that it stays within a stated accuracy budget.",
        "## Inputs and outputs",
        _signature(onnx_model),
        "## How to run it",
        _example(onnx_model, file_name),
        "## Purpose",
        _intent(summary),
        "## Evidence",
        _plain(f"Outcome: {summary.outcome.replace('_', ' ')}. {summary.certificate.words}"),
        _table(summary),
        "## Limitations",
        _limitations(summary),
        "## Origin",
        _origin(summary),
    ]
    return "\n\n".join(parts) + "\n"


def _how(summary: Summary) -> str:
    chosen = summary.delivered_candidate
    assert chosen is not None  # there is a file
    stages = [summary.numbered_stages[number].algorithms for number in summary.stages_of(chosen)]
    return ", then ".join(" and ".join(algorithms).replace("_", " ") for algorithms in stages)


def _signature(model: ModelProto) -> str:
    rows = [f"| input | `{_cell(each.name)}` | {_shape(each)} | {_type(each)} |" for each in model.graph.input]
    rows += [f"| output | `{_cell(each.name)}` | {_shape(each)} | {_type(each)} |" for each in model.graph.output]
    head = "| | name | shape | type |\n| --- | --- | --- | --- |\n"
    words = "Prepare inputs as the training data was prepared. A name in a shape stands for any number."
    return head + "\n".join(rows) + f"\n\n{words} {_runtime(model)}"


def _runtime(model: ModelProto) -> str:
    oldest = oldest_onnxruntime(model)
    loads = f"onnxruntime {oldest} and later load it" if oldest else "no released onnxruntime is known to load it"
    return f"The file has opset {opset_of(model)} and IR version {model.ir_version}: {loads}."


def _example(model: ModelProto, file_name: str) -> str:
    given = list(model.graph.input)
    if len(given) == len(model.graph.output) == 1:
        made = f"inputs = {_zeros(given[0])}\n(outputs,) = session.run(None, {{{json.dumps(given[0].name)}: inputs}})"
    else:
        parts = "".join(f"    {json.dumps(each.name)}: {_zeros(each)},\n" for each in given)
        names = "[output.name for output in session.get_outputs()]"
        made = f"inputs = {{\n{parts}}}\noutputs = dict(zip({names}, session.run(None, inputs)))"
    return f"""```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{file_name}")
{made}
```"""


def _zeros(value: ValueInfoProto) -> str:
    """Code that makes an example; an axis of any size gets a number that most models take."""
    dims = value.type.tensor_type.shape.dim
    sizes = [size.dim_value or (1 if index == 0 else _SIZE) for index, size in enumerate(dims)]
    return f'np.zeros({tuple(sizes)}, dtype="{_type(value)}")'


def _intent(summary: Summary) -> str:
    metric, budget = summary.metric, summary.budget
    direction = "higher" if metric.higher_is_better else "lower"
    return (
        f"The model replaces its baseline. It may lose at most {budget.drop:.4g} of {_plain(metric.name)} ({direction} "
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
    runtimes = " and ".join(f"{name} {versions[name]}" for name in ("onnxruntime", "openvino") if name in versions)
    points.append(
        f"Latencies were measured with {runtimes} on one machine ({_plain(summary.environment.processor)}); on "
        "another machine, expect similar ratios but other milliseconds."
    )
    return "\n".join(f"- {point}" for point in points)


def _origin(summary: Summary) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in summary.versions.items())
    return f"Run `{summary.run}`, seed {summary.seed}. {_plain(versions)}. Full report: `{summary.report}`."


def _shape(value: ValueInfoProto) -> str:
    sizes = [size.dim_param or str(size.dim_value) for size in value.type.tensor_type.shape.dim]
    return " x ".join(_cell(size) for size in sizes)


def _type(value: ValueInfoProto) -> str:
    return str(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|")


def _plain(text: str) -> str:
    """Escapes names chosen by users, so that they are not read as HTML or as a link."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("[", "\\[")
