"""Says again at the end of a run what matters: its warnings, its outcome, and where the report is.

Kedro logs each dataset that is loaded or saved, so that a single line of ours stands among hundreds.
"""

from __future__ import annotations

import logging

from kedro.io import DataCatalog
from kedro.pipeline import Pipeline

from kedro_aat.adoption.shared_files import place_of
from kedro_aat.delivery.results import Summary
from kedro_aat.messages import PACKAGE

logger = logging.getLogger(__name__)


class Closing(logging.Handler):
    """Collects the warnings of a run, and says them again with its outcome.

    The warnings of other processes, such as those of ParallelRunner, are not among them.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._warnings: dict[str, None] = {}  # each once, in order

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps a warning."""
        self._warnings[record.getMessage()] = None

    def begin(self) -> None:
        """Collects from now on."""
        self._warnings.clear()
        logging.getLogger(PACKAGE).addHandler(self)

    def end(self) -> None:
        """Collects no longer."""
        logging.getLogger(PACKAGE).removeHandler(self)

    def say(self, pipeline: Pipeline, catalog: DataCatalog) -> None:
        """Logs the warnings and the outcome of a run that has ended.

        Args:
            pipeline: The pipeline that was run.
            catalog: Its datasets.
        """
        if self._warnings:
            listed = "".join(f"\n- {words}" for words in self._warnings)
            times = "a warning" if len(self._warnings) == 1 else f"{len(self._warnings)} warnings"
            _say(logging.WARNING, f"This run logged {times}:{listed}")
        for name in sorted(pipeline.all_outputs()):
            namespace, _, last = name.rpartition(".")
            if last == "aat_summary" and catalog.exists(name):
                summary = Summary.model_validate(catalog[name].load())
                words = f"{namespace}: {outcome_in_words(summary)}" if namespace else outcome_in_words(summary)
                report = f"{namespace}.aat_report" if namespace else "aat_report"
                _say(logging.INFO, words + _report_in_words(report, pipeline, catalog))


def outcome_in_words(summary: Summary) -> str:
    """How a run ended, in one or two sentences.

    Args:
        summary: Summary of the run.
    """
    delivered = summary.delivered_candidate
    if delivered is None:
        return f"Outcome: {summary.outcome}. {summary.reason} {summary.advice}"
    bound = "at least" if summary.metric.higher_is_better else "at most"
    metric = f"{summary.metric.name} {delivered.validation:.4f} instead of {summary.baseline.validation:.4f}"
    return (
        f"Outcome: {summary.outcome}. {delivered.name}: {delivered.onnx_bytes:,} bytes instead of "
        f"{summary.baseline.onnx_bytes:,}, {metric} ({bound} {summary.budget.lowest_tolerated:.4f} is tolerated)."
    )


def _report_in_words(name: str, pipeline: Pipeline, catalog: DataCatalog) -> str:
    place = place_of(catalog[name], writes=True) if name in pipeline.all_outputs() else None
    return "" if place is None else f" Report: {place.address}"


def _say(level: int, words: str) -> None:
    logger.log(level, "%s", words, extra={"markup": False})
