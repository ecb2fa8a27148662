"""The nodes of the `aat` pipeline, which know no catalog and no paths and return plain JSON, for pipelines of your own.

Notebooks and scripts can call the same functions in `baseline.py`, `search.py`, `deliver.py` and `reporting.py`, which
return typed results.
"""

from kedro_aat.pipelines.aat import baseline, deliver, reporting, search
from kedro_aat.pipelines.aat.as_json import JsonNode

rehearse = JsonNode(baseline.rehearse)
evaluate_baseline = JsonNode(baseline.evaluate_baseline)
build_controller = JsonNode(search.build_controller)
finetune_adaptively = JsonNode(search.finetune_adaptively)
finetune_later_stage = JsonNode(search.finetune_later_stage)
finetune_second_stage = finetune_later_stage  # its name in version 0.1.0
export_for_targets = JsonNode(deliver.export_for_targets)
export_model = JsonNode(deliver.export_model)  # without the files for the targets that version 0.1.0 did not know
add_preprocessing = JsonNode(deliver.add_preprocessing)
certify_model = JsonNode(deliver.certify_model)
summarize_run = JsonNode(reporting.summarize_run)
describe_layers = JsonNode(reporting.describe_layers)
list_packages = JsonNode(reporting.list_packages)
report_run = JsonNode(reporting.report_run)
collect_metrics = JsonNode(reporting.collect_metrics)
require_feasible = JsonNode(reporting.require_feasible)
