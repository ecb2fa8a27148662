"""What `kedro aat choose` says of a choice beside what is delivered."""

from __future__ import annotations

from pathlib import Path

import pytest
from kedro.io import DataCatalog, Version
from kedro_datasets.json import JSONDataset

from kedro_aat.adoption.beside import beside, loaded_beside, remove_beside
from kedro_aat.adoption.choices import last_drop, print_choice
from kedro_aat.adoption.jobs import Job
from kedro_aat.budget import Outcome
from kedro_aat.datasets.documents import MarkdownDataset
from kedro_aat.datasets.exported import OnnxDataset
from kedro_aat.delivery.results import Summary
from kedro_aat.errors import ConfigurationError
from kedro_aat.export import NotExported
from kedro_aat.pipelines.aat import create_pipeline
from tests.delivery.test_candidates import search_result
from tests.reporting.runs import changed, summary_of

CONFIRM = "--max-drop 0.1 --confirm --pipeline small"


@pytest.mark.parametrize(("outcome", "is_offered"), [("within_budget", True), ("infeasible", False)])
def test_only_a_choice_with_a_model_is_offered(
    outcome: str, is_offered: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    catalog = DataCatalog({"aat_summary": JSONDataset(filepath=str(tmp_path / "aat_summary.json"))})
    dataset = catalog["aat_summary"]
    dataset.save(summary_of("within_budget").model_dump(mode="json"))
    beside("aat_summary", dataset).save(summary_of(outcome).model_dump(mode="json"))
    print_choice(Job.find("small", {"small": create_pipeline()}), catalog, CONFIRM)
    words = " ".join(capsys.readouterr().out.split())
    assert (f"`kedro aat choose {CONFIRM}` replaces them." in words) is is_offered
    assert ("Nothing is chosen." in words) is not is_offered
    assert "unchanged" in words


def test_a_choice_by_a_target_is_compared_by_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def judged(validation: float, id_: str) -> Summary:
        run = summary_of("within_budget")
        shipped = {"shipped": "openvino", "validations": {"openvino": validation}}
        candidates = [each.model_copy(update=shipped).model_dump() for each in run.candidates]
        return changed(run, candidates=candidates, delivered_id=id_)

    first, second = (each.id for each in summary_of("within_budget").candidates)
    catalog = DataCatalog({"aat_summary": JSONDataset(filepath=str(tmp_path / "aat_summary.json"))})
    catalog["aat_summary"].save(judged(0.89, first).model_dump(mode="json"))
    beside("aat_summary", catalog["aat_summary"]).save(judged(0.87, second).model_dump(mode="json"))
    print_choice(Job.find("small", {"small": create_pipeline()}), catalog, CONFIRM)
    words = " ".join(capsys.readouterr().out.split())
    assert "0.02 of BinaryAccuracy on the validation split" in words
    assert "1,760 bytes of the OpenVINO files (0.20x)" in words


def test_a_choice_without_a_model_is_not_confirmed(tmp_path: Path) -> None:
    job = Job.find("small", {"small": create_pipeline()})
    name = job.results[0]
    catalog = DataCatalog({name: JSONDataset(filepath=str(tmp_path / "search_result.json"))})
    chosen = beside(name, catalog[name])
    result = search_result("1")
    chosen.save(result.model_dump(mode="json"))
    assert last_drop(job, catalog) == result.budget.drop
    chosen.save(result.model_copy(update={"outcome": Outcome.INFEASIBLE}).model_dump(mode="json"))
    with pytest.raises(ConfigurationError, match="no model to deliver"):
        last_drop(job, catalog)


def test_a_choice_in_a_bucket_is_beside_what_is_delivered_until_it_is_removed() -> None:
    catalog = DataCatalog(
        {
            "model_card": MarkdownDataset(filepath="memory://choices/models/card.md", version=Version(None, "v1")),
            "compressed_onnx": OnnxDataset(filepath="memory://choices/models/model.onnx"),
        }
    )
    catalog.save("model_card", "delivered")
    beside("model_card", catalog["model_card"]).save("chosen")
    beside("compressed_onnx", catalog["compressed_onnx"]).save(NotExported("too large"))
    assert catalog.load("model_card") == "delivered"
    assert loaded_beside(catalog, "model_card") == "chosen"
    assert loaded_beside(catalog, "compressed_onnx") == NotExported("too large")
    remove_beside(catalog, list(catalog))
    assert loaded_beside(catalog, "model_card") is loaded_beside(catalog, "compressed_onnx") is None
    assert catalog.load("model_card") == "delivered"


def test_a_choice_is_on_the_host_of_what_is_delivered() -> None:
    delivered = MarkdownDataset(filepath="webhdfs://me:secret@host:9870/models/card.md")
    assert delivered.where == "webhdfs://me:***@host:9870/models/card.md"
    chosen = beside("model_card", delivered)
    assert isinstance(chosen, MarkdownDataset)
    assert chosen.where == "webhdfs://me:***@host:9870/models/chosen/card.md"
    assert chosen._fs.storage_options == delivered._fs.storage_options
