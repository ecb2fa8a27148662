"""The nodes of the `aat` pipeline: typed functions without catalog or paths, which notebooks can call as well."""

from kedro_aat.pipelines.aat.deliver import certify_model, export_model
from kedro_aat.pipelines.aat.reporting import (
    collect_metrics,
    describe_layers,
    report_run,
    require_feasible,
    summarize_run,
)
from kedro_aat.pipelines.aat.search import (
    build_controller,
    evaluate_baseline,
    finetune_adaptively,
    finetune_second_stage,
    forecast_certificate,
)

__all__ = [
    "build_controller",
    "certify_model",
    "collect_metrics",
    "describe_layers",
    "evaluate_baseline",
    "export_model",
    "finetune_adaptively",
    "finetune_second_stage",
    "forecast_certificate",
    "report_run",
    "require_feasible",
    "summarize_run",
]
