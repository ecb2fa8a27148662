"""What a loop can say and do when its search has ended: statistics, costs, a report, a certificate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro_aat.budget import Budget, Outcome
from kedro_aat.certificate import Certificate
from kedro_aat.compression.controller import CompressionController, ModelController
from kedro_aat.errors import DataError, ModelError
from kedro_aat.export.settings import ExportSettings, Limits
from kedro_aat.nncf.config import NNCFConfig
from kedro_aat.nncf.statistics import TrainingLoopStatistics
from kedro_aat.ranks import group
from kedro_aat.search.policy import SearchPolicy
from kedro_aat.storage import local_path
from kedro_aat.training.records import FineTuned
from kedro_aat.training.runner import Evaluation
from kedro_aat.training.scoring.scores import certify_evaluations
from kedro_aat.validated import parse

if TYPE_CHECKING:
    from kedro_aat.nncf.costs import FileCosts


class FinishedLoop:
    """The part of both loops that is about their result."""

    nncf_config: NNCFConfig
    compression_controller: CompressionController
    outcome: Outcome | None
    _budget: Budget
    _policy: SearchPolicy[Any]
    _result: FineTuned | None
    _certified: tuple[Certificate, Evaluation, Evaluation] | None
    _costs: FileCosts | None
    _run_name: str
    _metric: str

    @property
    def statistics(self) -> TrainingLoopStatistics:
        """The final metrics and rate.

        Raises:
            RuntimeError: Before `run` has ended.
        """
        if self._result is None:
            raise RuntimeError("There are no statistics before run() has ended.")
        return TrainingLoopStatistics.of(self._result, self._budget)

    def measure(self, batch_sizes: Sequence[int] = (1, 64), *, seconds: float = 1.0, num_threads: int = 1) -> FileCosts:
        """Measures what the returned model costs beside the original one; `print` shows it as a table.

        Both are exported, and their files take turns in onnxruntime on the CPU.

        Args:
            batch_sizes: Batch sizes at which latency is measured, each at least 1.
            seconds: Time for each batch size, above 0; more time gives more precise results.
            num_threads: Number of threads of onnxruntime.

        Raises:
            RuntimeError: Before `run` has ended.
            ModelError: If the controller is not of `create_compressed_model`, or has no example input.
            ConfigurationError: For arguments out of range.
            ExportError: If a model cannot be exported.
        """
        from kedro_aat.nncf.costs import file_costs  # with onnxruntime, which scripts that do not ask for it do without

        settings = {"batch_sizes": tuple(batch_sizes), "latency_seconds": seconds, "num_threads": num_threads}
        self._costs = file_costs(self._finished()[1], parse(ExportSettings, settings, where="measure"))
        return self._costs

    def exceeded_limits(self, **limits: Any) -> list[str]:
        """A sentence for each limit that the returned model exceeds; empty if it keeps all.

        Args:
            **limits: Those of `export.limits` in the pipeline: `onnx_bytes`, `parameters`, `macs`, and `latency_ms` as
                {batch size: milliseconds}. Without `measure` before, or for other batch sizes, they are measured.

        Raises:
            RuntimeError: Before `run` has ended.
            ModelError: As `measure`.
            ConfigurationError: For unknown limits, or limits out of range.
        """
        known = parse(Limits, limits, where="limits")
        costs = self._costs
        if costs is None or not set(known.latency_ms) <= set(costs.compressed.latency_ms or {}):
            costs = self.measure([*known.latency_ms] or (1, 64))
        return costs.exceeded(known)

    def write_report(self, path: str | Path) -> Path:
        """Writes the pipeline's report about this run, as one HTML page that needs no network; rank 0 alone does.

        It shows the metric of the model, not of its file. Figures need Plotly (`pip install plotly`).

        Args:
            path: The file to write, which is returned.

        Raises:
            RuntimeError: Before `run` has ended.
            ModelError: As `measure`.
        """
        from kedro_aat.nncf.report import script_report, script_summary

        result, controller = self._finished()
        if not group.is_main():
            return local_path(path)
        summary = script_summary(
            result,
            controller,
            self._budget,
            self._costs or self.measure(),
            metric=self._metric,
            epochs_allowed=self._policy.maximal_total_epochs,
            run=self._run_name,
            seed=int(self.nncf_config.get("seed") or 0),
            certified=self._certified,
        )
        written = local_path(path)
        written.write_text(script_report(summary, result, controller, dict(self.nncf_config)), encoding="utf-8")
        return written

    def _finished(self) -> tuple[FineTuned, ModelController]:
        """How the search ended, and the controller with its model."""
        if self._result is None:
            raise RuntimeError("There is nothing to measure or to report before run() has ended.")
        if not isinstance(self.compression_controller, ModelController):
            raise ModelError("Only a model from create_compressed_model can be measured and reported.")
        return self._result, self.compression_controller

    def certify(self, uncompressed: Evaluation, compressed: Evaluation, *, alpha: float = 0.05) -> Certificate:
        """Tests the returned model once, on test data that played no part in any choice, and updates `outcome`.

        Args:
            uncompressed: Evaluation of the uncompressed model on the test split, with scores.
            compressed: Evaluation of the returned model on the same examples in the same order, with scores.
            alpha: Accepted probability of certifying a model that breaks its budget, in (0, 0.5).

        Raises:
            RuntimeError: If no model is within budget, or on a second call: a test split certifies one model once.
            DataError: If scores are missing.
        """
        if self.outcome is not Outcome.WITHIN_BUDGET or self._certified:
            raise RuntimeError(
                f"Only a model within budget can be certified, and only once; the outcome is {self.outcome}"
                f"{', and the model was already tested' if self._certified else ''}."
            )
        certificate = certify_evaluations(uncompressed, compressed, self._budget, alpha)
        if certificate is None:
            raise DataError(
                "A certificate needs one score per example; let validate_fn return Evaluation(metric, scores)."
            )
        self._certified = certificate, uncompressed, compressed
        if certificate.is_certified:
            self.outcome = Outcome.CERTIFIED
        return certificate
