"""The report describes every outcome and loads nothing from elsewhere."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml

from kedro_aat.budget import Outcome
from kedro_aat.compression.build import build_controller
from kedro_aat.compression.settings import FilterPruning, MagnitudeSparsity
from kedro_aat.config import AatSettings
from kedro_aat.delivery.measurements import Measurements
from kedro_aat.delivery.results import Rates, Summary
from kedro_aat.errors import DataError
from kedro_aat.export import NotExported
from kedro_aat.pipelines.aat.reporting import collect_metrics, report_run
from kedro_aat.reporting.layers import layer_table
from kedro_aat.reporting.model_card import model_card
from tests.nets import images
from tests.reporting.runs import changed, exported, layers, onnx_model, settings, summary_of, trajectory_of


def page_of(summary: Summary, **changes: Any) -> str:
    """The page without the source of the plotting library."""
    page, *_ = report_run(summary, trajectory_of(summary), layers(**changes), exported(summary), settings())
    return re.sub(r"<script>.{100000,}?</script>", "", page, count=1, flags=re.DOTALL)


def words_of(page: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", page).split())


@pytest.mark.parametrize(
    ("outcome", "headline"),
    [
        ("certified", "Certified: the compressed model keeps its accuracy budget"),
        ("within_budget", "Within budget on the validation data; not certified"),
        ("infeasible", "No compressed model kept the accuracy budget"),
    ],
)
@pytest.mark.parametrize("is_higher_better", [True, False])
def test_verdict_comes_first(outcome: str, headline: str, is_higher_better: bool) -> None:
    summary = summary_of(outcome, is_higher_better=is_higher_better)
    page = words_of(page_of(summary))
    assert page.index(headline) < page.index("The numbers")
    assert page.index(summary.certificate.words) < page.index("The numbers")
    assert ("at least 0.8500" if is_higher_better else "at most 0.4500") in page


def test_infeasible_run_shows_what_was_tried() -> None:
    page = page_of(summary_of("infeasible"))
    assert "What was tried" in page
    assert "0.8000" in page
    assert "the baseline is unchanged" in words_of(page)
    assert 'id="costs"' not in page
    assert "What changed in each layer" not in page


def test_verdict_blames_the_limits_if_the_budget_was_kept() -> None:
    summary = summary_of("infeasible")
    kept = summary_of("certified").candidates
    rejected = {candidate.name: "macs are 5,000" for candidate in kept}
    summary = changed(summary, candidates=kept, rejected=rejected)
    page = words_of(page_of(summary))
    assert page.startswith("No model within the accuracy budget keeps the limits")
    assert "No compressed model kept the accuracy budget" not in page
    assert "quantization 1.0000 0.8800 macs are 5,000" in page


def test_other_candidates_are_listed_with_the_reason() -> None:
    page = words_of(page_of(summary_of("certified")))
    why = "The objective is the fewest bytes: 2,000, but the delivered file has 400."
    assert f"filter pruning 0.8000 0.8800 {why}" in page
    rejected = {"filter_pruning at rate 0.5000": "its ONNX file breaks the budget"}
    refused = changed(summary_of("certified"), rejected=rejected)
    assert "filter pruning at rate 0.5000 its ONNX file breaks the budget" in words_of(page_of(refused))


def test_costs_of_the_delivered_file_are_in_one_table() -> None:
    page = words_of(page_of(summary_of("certified")))
    assert "ONNX file, bytes 4,000 400 0.10x" in page
    _, others = page.split("What the other candidates cost")
    assert "ONNX file, bytes 2,000 (0.50x)" in others
    tables, _ = others.split("Good to know") if "Good to know" in others else others.split("How to reproduce")
    assert "400 (" not in tables


def test_tables_say_what_a_rate_is_the_share_of() -> None:
    summary = summary_of("infeasible")
    rates = {"requested": 0.8, "achieved": 0.8, "share_of": "MACs removed"}
    stages = [stage.model_copy(update={"rate": Rates.model_validate(rates)}) for stage in summary.stages]
    summary = changed(summary, stages=stages, compressed={"rate": {"share_of": "MACs removed"}})
    page = words_of(page_of(summary))
    assert "compression rate, MACs removed 0.0000" in page
    assert "rate, MACs removed epochs best metric margin" in page
    assert "its own parameters that are removed" in words_of(page_of(summary_of("certified")))


def test_processor_is_named_beside_the_latencies() -> None:
    summary = changed(summary_of("certified"), baseline={"processor": "Some Processor 3000"})
    assert "in onnxruntime and OpenVINO on Some Processor 3000" in words_of(page_of(summary))


def test_tables_show_openvino_only_if_it_was_measured() -> None:
    summary = summary_of("certified")
    shown = words_of(page_of(summary))
    assert "OpenVINO latency, batch 64, ms 1.200 0.120 0.10x median 1.500 0.150" in shown
    assert "OpenVINO files, bytes 4,400 440 0.10x" in shown
    fields = (field for field in Measurements.model_fields if field.startswith("openvino_"))
    without: dict[str, Any] = {**dict.fromkeys(fields), "targets": {}}
    parts = {name: getattr(summary, name).model_copy(update=without) for name in ("baseline", "compressed")}
    candidates = [candidate.model_copy(update=without) for candidate in summary.candidates]
    summary = summary.model_copy(update={**parts, "candidates": candidates})
    assert "OpenVINO" not in words_of(page_of(summary))


def test_layer_table_covers_the_stages_of_the_delivered_model() -> None:
    summary = summary_of("certified")
    page = words_of(page_of(summary))
    assert "head : its outputs are outputs of the model" in page
    assert "stem.weight" in page
    summary = changed(summary, delivered="filter_pruning", delivered_id=summary.candidates[0].id)
    assert "stem.weight" not in words_of(page_of(summary))


def test_layer_table_omits_a_stage_that_found_no_model() -> None:
    summary = summary_of("within_budget")
    first = summary.stages[0].model_copy(update={"outcome": Outcome.INFEASIBLE, "best_checkpoint": None})
    summary = changed(summary, stages=[first, summary.stages[1]])
    page = words_of(page_of(summary))
    assert "stem.weight" in page
    assert "head : its outputs are outputs of the model" not in page
    assert "compressed by kedro-aat (quantization) so" in model_card(summary, onnx_model(), "model.onnx")


def test_report_explains_what_zeros_gain() -> None:
    sparse = words_of(page_of(summary_of("certified", algorithm="magnitude_sparsity")))
    assert "neither the file on disk smaller nor the model faster" in sparse
    assert "What zeros buy" not in page_of(summary_of("certified"))


def test_report_describes_distillation() -> None:
    summary = summary_of("certified")
    assert "learned from the baseline" in page_of(summary)
    summary = changed(summary, distillation=None)
    assert "not used" in page_of(summary)


def test_settings_in_the_report_can_be_read_back() -> None:
    page = page_of(summary_of("certified"))
    (written,) = re.findall(r"in parameters.yml</summary>\s*<pre>(.*?)</pre>", page, re.DOTALL)
    assert AatSettings.model_validate(yaml.safe_load(written)) == settings()


def test_users_text_is_escaped() -> None:
    hostile = "</script><img src=x onerror=alert(1)>"
    summary = changed(
        summary_of("certified"),
        metric={"name": hostile},
        reason=hostile,
        certificate={"words": hostile},
        rejected={hostile: hostile},
    )
    page = page_of(summary, note=hostile)
    assert "&lt;img src=x" in page
    assert "<img" not in page


def test_page_loads_nothing_from_elsewhere() -> None:
    page = page_of(summary_of("certified"))
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)
    assert "url(" not in page
    assert "@import" not in page


def test_code_in_the_model_card_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.save(onnx_model(), str(tmp_path / "compressed_model.onnx"))
    card = model_card(summary_of("within_budget"), onnx_model(), "compressed_model.onnx")
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["outputs"].shape == (1, 2)
    assert names["outputs"].dtype == np.float32
    assert "filter pruning, then quantization" in card
    assert "not certified" in card


def test_model_card_without_a_model_says_so() -> None:
    card = model_card(summary_of("infeasible"), NotExported("All epochs were used."), "compressed_model.onnx")
    assert card.startswith("# No model was delivered")


def test_layer_table_of_real_controllers() -> None:
    from torch import nn

    inputs = images(4)["inputs"]
    channels = inputs.shape[1]
    net = nn.Sequential(nn.Conv2d(channels, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    first = build_controller(net, FilterPruning(), example_input=inputs)
    first.compression_rate = 0.5
    second = build_controller(first.strip(), MagnitudeSparsity())
    table = layer_table({1: first, 2: second})
    assert set(table["stage"]) == {1, 2}
    cut = {row["layer"]: row for row in table.query("algorithm == 'filter_pruning'").to_dict("records")}
    assert cut["0"]["parameters"] < cut["0"]["parameters_before"]
    assert cut["4"]["note"]
    assert table.query("algorithm == 'magnitude_sparsity'")["zeros"].notna().all()


def test_the_first_numbers_are_those_of_the_file_that_is_certified() -> None:
    summary = summary_of("certified")
    shown = words_of(page_of(summary))
    assert "10x smaller file" in shown
    candidates = [each.model_copy(update={"shipped": "openvino"}) for each in summary.candidates]
    shown = words_of(page_of(summary.model_copy(update={"candidates": candidates})))
    assert "10x smaller file for OpenVINO 4,400 → 440 bytes" in shown
    assert "faster at batch 1 for OpenVINO 0.200 → 0.020 ms" in shown


def test_nothing_is_said_of_another_file() -> None:
    summary = summary_of("certified")
    described = [each.model_copy(update={"onnx_sha256": "0" * 64}) for each in summary.candidates]
    other = summary.model_copy(update={"candidates": described})
    given = exported(summary)
    for node in (
        lambda: report_run(other, trajectory_of(other), layers(), given, settings()),
        lambda: collect_metrics(other, trajectory_of(other), given),
    ):
        with pytest.raises(DataError, match=r"compressed_onnx has the SHA-256 .* Leave out --load-versions"):
            node()
    sha256 = hashlib.sha256(onnx_model().SerializeToString()).hexdigest()
    same = [each.model_copy(update={"onnx_sha256": sha256}) for each in summary.candidates]
    report_run(summary.model_copy(update={"candidates": same}), trajectory_of(summary), layers(), given, settings())
