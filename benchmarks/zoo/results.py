"""The JSON file of the zoo's results: model -> what each part found."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from benchmarks.zoo.measure import EXACT, NEAR, Facts
from benchmarks.zoo.models import Entry


@dataclass(frozen=True)
class Row:
    """All that is known of one architecture.

    Attributes:
        name: Its name in its package.
        family: What it is a kind of.
        package: Where it comes from.
        parts: Part -> facts; `error` is one of them where it failed.
    """

    name: str
    family: str
    package: str
    parts: dict[str, Facts]

    def number(self, part: str, key: str) -> float:
        """A measured number, or NaN."""
        fact = self.parts.get(part, {}).get(key)
        return float(fact) if isinstance(fact, int | float) else math.nan

    def error(self, part: str) -> str:
        """Why a part failed; empty if it did not."""
        return str(self.parts.get(part, {"error": "not measured"}).get("error", ""))

    @property
    def is_cut(self) -> bool:
        """Whether the cut model computes what the masked one does."""
        difference = self.number("filters", "difference_in_double")
        difference = self.number("filters", "difference") if math.isnan(difference) else difference
        return difference <= EXACT

    @property
    def cuts(self) -> bool:
        """Whether the cut model and its file compute what the masked one does."""
        return self.is_cut and self.number("filters", "onnx") <= EXACT

    @property
    def is_sparse(self) -> bool:
        """Whether half of the weights that can be zero are, and nothing else changed."""
        return self.number("sparse", "rate") >= 0.49 and self.number("sparse", "difference") <= EXACT

    @property
    def is_int8(self) -> bool:
        """Whether there is an int8 file that onnxruntime runs."""
        return not math.isnan(self.number("int8", "onnx"))

    @property
    def is_near(self) -> bool:
        """Whether the int8 file computes nearly what its model does."""
        return self.number("int8", "onnx") <= NEAR

    @property
    def removes_as_much(self) -> bool:
        """Whether at least as many parameters are removed as by Torch-Pruning; true where that does not run."""
        theirs = self.number("torch_pruning", "removed")
        return math.isnan(theirs) or self.number("filters", "removed") >= theirs - 0.005


class Results:
    """Results on disk; each is written at once.

    Args:
        path: The file; made if there is none.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def has(self, name: str, part: str) -> bool:
        return part in self._rows.get(name, {}).get("parts", {})

    def add(self, name: str, entry: Entry, part: str, facts: Facts) -> None:
        """Adds a result, or replaces it, and saves all."""
        row = self._rows.setdefault(name, {"family": entry.family, "package": entry.package, "parts": {}})
        row["parts"][part] = {key: _rounded(fact) for key, fact in facts.items()}
        unfinished = self._path.with_name(f"{self._path.name}.unfinished")
        unfinished.write_text(json.dumps(self._rows, indent=1) + "\n", encoding="utf-8")
        unfinished.replace(self._path)

    def rows(self) -> list[Row]:
        return [Row(name, row["family"], row["package"], row["parts"]) for name, row in self._rows.items()]


def _rounded(fact: float | str | None) -> float | str | None:
    """Three digits; null for what JSON has no number for."""
    if not isinstance(fact, float):
        return fact
    return float(f"{fact:.3g}") if math.isfinite(fact) else None
