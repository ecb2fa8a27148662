"""The model card: what a person needs to know who is given the ONNX file alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx

from kedro_aat.export import NotExported
from kedro_aat.reporting.numbers import comparison, delivered_candidate, stages_of, tolerated

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto


def model_card(summary: dict[str, Any], onnx_model: ModelProto | NotExported, file_name: str) -> str:
    """The card, in Markdown.

    Args:
        summary: Of the run.
        onnx_model: The delivered file, or why there is none.
        file_name: Its name, as the example spells it.
    """
    if isinstance(onnx_model, NotExported):
        return f"# No model was delivered\n\n{_plain(onnx_model.reason)} {_plain(summary['advice'])}\n"
    parts = [
        f"# {file_name}",
        f"An ONNX model, compressed by kedro-aat ({_how(summary)}) so that it stays within a stated accuracy budget.",
        "## What it takes and gives",
        _signature(onnx_model),
        "## How to run it",
        _example(onnx_model, file_name),
        "## What it was made for",
        _intent(summary),
        "## Evidence",
        _plain(f"Outcome: {summary['outcome'].replace('_', ' ')}. {summary['certificate']['words']}"),
        _table(summary),
        "## Limitations",
        _limitations(summary),
        "## Where it comes from",
        _origin(summary),
    ]
    return "\n\n".join(parts) + "\n"


def _how(summary: dict[str, Any]) -> str:
    chosen = delivered_candidate(summary)
    assert chosen is not None  # there is a file
    stages = [summary["stages"][number - 1]["algorithms"] for number in stages_of(chosen, summary)]
    return ", then ".join(" and ".join(algorithms).replace("_", " ") for algorithms in stages)


def _signature(model: ModelProto) -> str:
    rows = [f"| input | `{_cell(each.name)}` | {_shape(each)} | {_type(each)} |" for each in model.graph.input]
    rows += [f"| output | `{_cell(each.name)}` | {_shape(each)} | {_type(each)} |" for each in model.graph.output]
    head = "| | name | shape | type |\n| --- | --- | --- | --- |\n"
    words = "Inputs must be prepared as the training data were; a name in a shape stands for any number."
    return head + "\n".join(rows) + f"\n\n{words}"


def _example(model: ModelProto, file_name: str) -> str:
    given = model.graph.input[0]
    sizes = [size.dim_value or 1 for size in given.type.tensor_type.shape.dim]
    return f"""```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{file_name}")
inputs = np.zeros({tuple(sizes)}, dtype="{_type(given)}")
(outputs,) = session.run(None, {{"{given.name}": inputs}})
```"""


def _intent(summary: dict[str, Any]) -> str:
    metric, budget = summary["metric"], summary["budget"]
    direction = "higher" if metric["higher_is_better"] else "lower"
    return (
        f"To do what its baseline does, as judged by {_plain(metric['name'])} ({direction} is better), with at most "
        f"{budget['drop']:.4g} of it lost: {tolerated(summary)} on the validation split."
    )


def _table(summary: dict[str, Any]) -> str:
    rows = [f"| {' | '.join(_cell(cell.strip()) for cell in row)} |" for row in comparison(summary)]
    return "\n".join(["| | baseline | compressed | change |", "| --- | ---: | ---: | ---: |", *rows])


def _limitations(summary: dict[str, Any]) -> str:
    points = [
        "The metrics are of the splits of one data set. They promise nothing for data of another origin, nor "
        "for each group within the data: compression can cost rare classes more than they show.",
        "The validation split judged every epoch, and so chose this model; its metric is a little too good for that.",
    ]
    if not summary["certificate"]["is_certified"]:
        points.append("The drop is not certified: see the evidence.")
    environment, versions = summary["environment"], summary["versions"]
    runtimes = " and ".join(f"{name} {versions[name]}" for name in ("onnxruntime", "openvino") if name in versions)
    points.append(
        f"Latencies were measured with {runtimes} on one machine "
        f"({_plain(environment['processor'])}); only their ratios say something about another."
    )
    return "\n".join(f"- {point}" for point in points)


def _origin(summary: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in summary["versions"].items())
    return (
        f"Run `{summary['run']}`, seed {summary['seed']}. {_plain(versions)}. The whole story: `{summary['report']}`."
    )


def _shape(value: ValueInfoProto) -> str:
    sizes = [size.dim_param or str(size.dim_value) for size in value.type.tensor_type.shape.dim]
    return " x ".join(_cell(size) for size in sizes)


def _type(value: ValueInfoProto) -> str:
    return str(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|")


def _plain(text: str) -> str:
    """Keeps what users named from being read as HTML or as a link."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("[", "\\[")
