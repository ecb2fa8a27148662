"""The page of the zoo: what works with which architecture, and why not where it does not."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.metadata import version

from benchmarks.zoo.results import Row

_HEAD = """# What works with which architecture

Published architectures with random weights, from {packages}:
images of 32 to 224 pixels, most of them 64, or 8 to 64 tokens, and small configurations for transformers. Each was
compressed on one core; `make zoo` makes this page anew.

- **cut**: half of the filters removed (`filter_pruning`, `rate_of: filters`, `ranking: local`). *yes* means that the
  cut model, and its ONNX file in onnxruntime, compute what the masked one does, to 1e-5 of the largest output, on a
  batch that the trace did not see.
- **removed**: share of the parameters that this removes, beside that of Torch-Pruning {rival} with the same ratio in
  each group; - where that raises an error or its model no longer runs.
- **whole**: layers of which no filter can be cut, among all that have filters.
- **seconds**: of one core until filters can be cut, beside Torch-Pruning.
- **sparse**: half of the weights zero (`magnitude_sparsity`), and the stripped model computes the same.
- **int8**: an ONNX file in 8 bits that onnxruntime runs; the number is the largest distance of its outputs from those
  of its model, as a share of the largest one. In a deep network with random weights, a single number that two
  implementations round to different sides changes those of the next layer, and so on.

## In short

{summary}

## All of them

| Architecture | Family | Cut | Removed | by T.-P. | Whole | Seconds | of T.-P. | Sparse | int8 |
| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | --- | --- |
"""


def page(rows: list[Row]) -> str:
    """The whole page in Markdown."""
    rows = sorted(rows, key=lambda row: (row.family, row.name))
    packages = " and ".join(f"{name} {_version(name)}" for name in ("pytorchcv", "transformers"))
    text = _HEAD.format(packages=packages, rival=_version("torch-pruning"), summary=_summary(rows))
    text += "\n".join(map(_line, rows)) + "\n\n## What fails\n\n"
    failures = [f"- {row.name}, {part}: {message}" for row in rows for part, message in _failures(row)]
    text += "\n".join(failures) if failures else "Nothing."
    text += "\n\n## Why layers stay whole\n\nThe commonest reasons, with the number of layers.\n\n"
    reasons = [f"- {row.name}: {reasons}" for row in rows if (reasons := row.parts.get("filters", {}).get("reasons"))]
    return text + "\n".join(reasons) + "\n"


def _version(package: str) -> str:
    try:
        return version(package)
    except ModuleNotFoundError:  # the page can be made where the models are not installed
        return ""


def _summary(rows: list[Row]) -> str:
    def share(what: str, holds: Callable[[Row], bool], among: list[Row]) -> str:
        number = sum(map(holds, among))
        return f"- {what}: {number} of {len(among)} ({number / max(len(among), 1):.0%})"

    tried = {part: [row for row in rows if part in row.parts] for part in ("filters", "sparse", "int8")}
    theirs = [row for row in tried["filters"] if not math.isnan(row.number("torch_pruning", "removed"))]
    missing = [row.name for row in rows if row not in tried["filters"]]
    slow = sorted(rows, key=lambda row: -_zero_if_nan(row.number("filters", "seconds")))[:10]
    lines = [
        f"- {len(rows)} architectures of {len({row.family for row in rows})} families",
        share("cut, and the same as masked", lambda row: row.is_cut, tried["filters"]),
        share("and the same as the ONNX file", lambda row: row.cuts, tried["filters"]),
        share("sparse", lambda row: row.is_sparse, tried["sparse"]),
        share("int8 files that run", lambda row: row.is_int8, tried["int8"]),
        share("of these within a tenth of the largest output of their model", lambda row: row.is_near, tried["int8"]),
        share("Torch-Pruning runs", lambda row: row in theirs, tried["filters"]),
        share("there, at least as many parameters removed", lambda row: row.removes_as_much, theirs),
        "- the ten that take longest until they can be cut, with the seconds of Torch-Pruning: "
        + ", ".join(
            f"{row.name} {_cell(row, 'filters', 'seconds')} ({_cell(row, 'torch_pruning', 'seconds')})" for row in slow
        ),
    ]
    if missing:
        lines.append(f"- not measured yet: {', '.join(missing)}")
    return "\n".join(lines)


def _zero_if_nan(number: float) -> float:
    return 0.0 if math.isnan(number) else number


def _cell(row: Row, part: str, key: str) -> str:
    number = row.number(part, key)
    if math.isnan(number):
        return "-"
    return f"{number:.0%}" if key == "removed" else f"{number:.1f}"


def _line(row: Row) -> str:
    whole, layers = row.number("filters", "layers_whole"), row.number("filters", "layers")
    cells = [
        row.name,
        row.family,
        _yes(row, "filters", row.cuts),
        _cell(row, "filters", "removed"),
        _cell(row, "torch_pruning", "removed"),
        "-" if math.isnan(layers) else f"{whole:.0f} of {layers:.0f}",
        _cell(row, "filters", "seconds"),
        _cell(row, "torch_pruning", "seconds"),
        _yes(row, "sparse", row.is_sparse),
        _int8(row),
    ]
    return f"| {' | '.join(cells)} |"


def _yes(row: Row, part: str, works: bool) -> str:
    if part not in row.parts:
        return "-"
    return "yes" if works else "**no**"


def _int8(row: Row) -> str:
    return f"{row.number('int8', 'onnx'):.2g}" if row.is_int8 else _yes(row, "int8", False)


def _failures(row: Row) -> list[tuple[str, str]]:
    """Part and message of everything that failed in one line each."""
    found = []
    for part, works in (("filters", row.cuts), ("sparse", row.is_sparse), ("int8", row.is_int8)):
        facts = row.parts.get(part, {})
        if facts and not works:
            numbers = ", ".join(f"{key} {facts[key]}" for key in ("rate", "difference", "onnx") if key in facts)
            found.append((part, row.error(part).replace("|", "/") or numbers))
    return found
