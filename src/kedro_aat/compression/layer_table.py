"""What compression did to each layer, one row per layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kedro_aat.compression.nncf_statistics import ByAlgorithm, Figures

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class LayerTable(ByAlgorithm):
    """What one algorithm did to each layer.

    Attributes:
        algorithm: Name of the algorithm.
        rate: The achieved rate of the whole model, in [0, 1].
        headline: The rate and what it is the rate of, for the line above the table.
        columns: Name of a column -> one value per layer; the first column is `layer`.
        notes: Layer -> why it was not compressed, or not completely. May name layers that have no row.
        note_format: The line that prints a note, with `{layer}` and `{reason}`.
        number_formats: Column of floats -> how to print them; four decimal places for the others.
        figures: What NNCF's scripts read, such as `statistics().magnitude_sparsity`.
    """

    algorithm: str
    rate: float
    headline: str
    columns: Mapping[str, Sequence[str] | Sequence[int] | Sequence[float]]
    notes: Mapping[str, str] = field(default_factory=dict)
    note_format: str = "{layer}: {reason}"
    number_formats: Mapping[str, str] = field(default_factory=dict)
    figures: Sequence[Figures] = ()

    @property
    def tables(self) -> tuple[LayerTable, ...]:
        """This table alone; see `LayerTables`."""
        return (self,)

    def _all_figures(self) -> Iterable[Figures]:
        return self.figures

    def as_frame(self) -> pd.DataFrame:
        """One row per layer, without the notes."""
        import pandas as pd

        return pd.DataFrame(dict(self.columns))

    def to_str(self) -> str:
        """The headline, the table and the notes, for a terminal."""
        table = self.as_frame().to_string(
            index=False,
            float_format="{:.4f}".format,
            formatters={column: text.format for column, text in self.number_formats.items()},
        )
        notes = [
            self.note_format.format(layer=layer or "the model itself", reason=reason)
            for layer, reason in self.notes.items()
        ]
        return "\n".join([f"{self.algorithm}: {self.headline}", table, *notes])


@dataclass(frozen=True)
class LayerTables(ByAlgorithm):
    """What several algorithms did to the layers of one model.

    Attributes:
        tables: One table per algorithm; the first is that of the algorithm whose rate the search moves.
    """

    tables: tuple[LayerTable, ...]

    def _all_figures(self) -> Iterable[Figures]:
        return (figures for table in self.tables for figures in table.figures)

    @property
    def rate(self) -> float:
        """The achieved rate of the first algorithm, in [0, 1]."""
        return self.tables[0].rate

    def to_str(self) -> str:
        """The tables, one below the other, for a terminal."""
        return "\n\n".join(table.to_str() for table in self.tables)


def shape_text(shape: Sequence[int]) -> str:
    """A shape as it is printed, for example `8x1x3x3`; empty for a layer without parameters."""
    return "x".join(map(str, shape))
