"""Files for other targets than ONNX decide if the settings say so: objective, limits, certificate. OpenVINO is one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from pydantic import TypeAdapter

from kedro_aat.budget import Budget
from kedro_aat.certificate.ledger import CertificateLedger
from kedro_aat.datasets.exported import ExecutorchDataset, LitertDataset
from kedro_aat.delivery.candidates import Candidate
from kedro_aat.delivery.certify import certify_once
from kedro_aat.delivery.costs import Costs, cost_by
from kedro_aat.delivery.deliver import deliver
from kedro_aat.delivery.files import Files, files_of
from kedro_aat.delivery.finished import FinishedSteps
from kedro_aat.delivery.judging import Steps
from kedro_aat.delivery.limits import excess_over
from kedro_aat.delivery.results import ExportResult
from kedro_aat.errors import ConfigurationError, ExportError
from kedro_aat.export.settings import ExportSettings, Limits
from kedro_aat.export.targets.details import QuantizedPort, TargetDetails
from kedro_aat.export.targets.registry import missing, target_of
from kedro_aat.export.targets.target import TargetFile
from tests.delivery.test_deliver import DATA, TRAINING, Net, deliver_from

BY_LATENCY = {"target": "openvino", "latency_ms": "batch 8"}


def settings(**changes: Any) -> ExportSettings:
    return ExportSettings.model_validate({"batch_sizes": (1, 8), "latency_seconds": 0.05, **changes})


def costs(num_bytes: int, **target: Any) -> Costs:
    counted = {"rate": 0.5, "parameters": 1, "macs": 1, "onnx_bytes": num_bytes}
    return Costs.model_validate({**counted, "targets": {"openvino": target} if target else {}})


def test_the_file_of_the_named_target_is_the_smallest_fastest_and_certified(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    small, large = Candidate("small", 2, Net(1), 0.9), Candidate("large", 1, Net(4), 0.5)
    exported, result = deliver_from(large, small, objective={"target": "openvino"}, targets=["onnx"])
    assert exported is not None
    assert result.delivered == "small"
    delivered = result.compressed
    assert delivered is not None
    assert delivered.validations == {"openvino": delivered.validation}
    assert delivered.targets["openvino"].bytes == exported.files.others["openvino"].num_bytes
    assert (exported.program, delivered.validation_program) == (None, None)  # `.pt2` was not asked for
    verdict = certify_once(
        exported.files.others["openvino"],
        Net(8),
        DATA,
        Budget(baseline=1.0, drop=0.9),
        TRAINING,
        CertificateLedger(tmp_path / "ledger.json"),
        alpha=0.05,
        export=settings(),
    )
    assert (verdict.baseline, verdict.compressed, verdict.is_certified) == (1.0, 1.0, True)
    assert verdict.words.endswith("Measured on the files for OpenVINO.")


def test_costs_of_the_target_decide() -> None:
    times = {"latency_ms": {8: 3.0}, "latency_fastest_ms": {8: 2.0}}
    measured = costs(100, bytes=500, **times)
    assert cost_by(settings(objective={"target": "openvino"}), measured) == 500
    assert cost_by(settings(objective=BY_LATENCY), measured) == 2.0
    assert cost_by(settings(objective={"target": "onnx"}), measured) == 100
    with pytest.raises(ExportError, match="cannot be run with batch 1, at which its latency is the objective"):
        cost_by(settings(objective={"target": "openvino", "latency_ms": 1}), measured)


def test_limits_of_the_target_are_kept() -> None:
    measured = costs(100, bytes=500, latency_ms={1: 3.0}, details={"arena_bytes": 700})
    limits = {"bytes": 250, "arena_bytes": 350, "latency_ms": {1: 1.5, 8: 2.0}}
    found = excess_over(Limits.model_validate({"targets": {"openvino": limits}}), measured)
    assert [words for words, _ in found] == [
        "OpenVINO's bytes are 500, above the limit of 250",
        "OpenVINO's bytes of the arena are 700, above the limit of 350",
        "the median latency at batch 1 in OpenVINO is 3 ms, above the limit of 1.5 ms",
        "OpenVINO's file cannot be run with batch 8, whose latency is limited",
    ]
    assert [times for _, times in found][:3] == [2, 2, 2]
    kept = {"bytes": 500, "arena_bytes": 700, "latency_ms": {1: 3.0}}
    assert excess_over(Limits.model_validate({"targets": {"openvino": kept}}), measured) == []


def test_a_file_without_the_batch_size_of_a_limit_or_of_the_objective_is_told() -> None:
    limits = Limits.model_validate({"targets": {"litert": {"latency_ms": {8: 2.0}}}})
    counted = {"rate": 0.5, "parameters": 1, "macs": 1}
    measured = Costs.model_validate({**counted, "targets": {"litert": {"bytes": 9}}})  # no batch size was measured
    assert [words for words, _ in excess_over(limits, measured)] == [
        "LiteRT's file cannot be run with batch 8, whose latency is limited"
    ]
    export = settings(objective={"target": "litert", "latency_ms": 8})
    budget = Budget(baseline=1.0, drop=0.9)
    steps = Steps(FinishedSteps(), DATA["inputs"], DATA, TRAINING, export, budget, ())
    single = TargetFile("litert", {".tflite": b""}, ("inputs",), ("output",), batch_size=1)
    with pytest.raises(ExportError, match="for LiteRT cannot be run with batch 8, at which its latency is the obj"):
        steps.latencies([Net()], [Files(onnx.ModelProto(), {"litert": single})], export)


def test_a_run_that_goes_on_with_another_target_judges_its_file(tmp_path: Path) -> None:
    pytest.importorskip("openvino")

    def delivered(objective: Any) -> ExportResult:
        return deliver(
            [Candidate("small", 1, Net(1), 0.9)],
            iter(()),
            Net(2),
            DATA,
            Budget(baseline=1.0, drop=0.9),
            TRAINING,
            settings(objective=objective, targets=["onnx"]),
            "The search ended.",
            FinishedSteps(tmp_path),
        )[1]

    first = delivered("bytes").compressed
    assert first is not None
    assert (first.validations, first.shipped) == ({}, "onnx")
    second = delivered({"target": "openvino"}).compressed
    assert second is not None
    assert (list(second.validations), list(second.targets)) == (["openvino"], ["openvino"])
    assert (second.shipped, second.shipped_validation) == ("openvino", second.validations["openvino"])


def test_a_named_target_is_written_without_being_listed() -> None:
    assert settings().more_targets == ()
    assert settings(openvino=True).more_targets == ("openvino",)
    named = settings(objective=BY_LATENCY, limits={"targets": {"litert": {"bytes": 9}}}, targets=["onnx"])
    assert (named.targets, named.more_targets) == (("onnx",), ("openvino", "litert"))
    assert (named.shipped, named.objective_kind, named.objective_batch_size) == ("openvino", "latency", 8)
    assert named.added_targets == [
        "export.objective names openvino, so that its file is written as well, though export.targets does not list it.",
        "export.limits.targets names litert, so that its file is written as well, though export.targets does not list "
        "it.",
    ]
    listed = settings(objective=BY_LATENCY, targets=["onnx", "openvino"])
    assert listed.added_targets == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": ["pt2"]}, "must name onnx, in whose file zeros are counted"),
        ({"targets": ["onnx", "onnx"]}, r"1 mistake\n  - targets: names onnx 2 times; name it once"),
        ({"batch_sizes": [8, 1, 8]}, "batch_sizes: names 8 2 times"),
        ({"outputs": ["logits", "logits"]}, "outputs: names logits 2 times"),
        ({"input_names": ["x", "x"]}, "input_names: names x 2 times"),
        ({"output_names": ["y", "y", "y"]}, "output_names: names y 3 times"),
        (
            {"targets": ["onnx", "tensorrt"]},
            r"- targets.1: must be one of onnx, .*, but got 'tensorrt'",
        ),
        ({"objective": "byte"}, r"- objective: must be one of bytes, .*, but got 'byte'. Did you mean 'bytes'"),
        ({"objective": {"target": "lite"}}, r"- objective.target: must be one of onnx, .*Did you mean 'litert'"),
        ({"objective": {"target": "pt2"}}, "must name another target than pt2"),
        ({"objective": {"target": "openvino", "latency_ms": 3}}, "latency_ms names batch 3, which is not measured"),
        ({"limits": {"targets": {"openvino": {"latency_ms": {3: 1.0}}}}}, r"not measured: \[3\]"),
        ({"limits": {"targets": {"onnx": {"bytes": 3}}}}, "onnx_bytes and latency_ms limit the ONNX file"),
    ],
)
def test_mistakes_are_told_before_the_run(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        settings(**changes)


def test_a_target_that_is_not_installed_is_one_clear_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "executorch", None)
    monkeypatch.setitem(sys.modules, "executorch.exir", None)
    (mistake,) = settings(targets=["onnx", "executorch"]).lookup_mistakes("aat.export")
    assert mistake.startswith("aat.export.targets: ExecuTorch cannot be imported")
    assert "pip install 'kedro-aat[executorch]'" in mistake
    with pytest.raises(ExportError, match=r"kedro-aat\[executorch\]"):
        target_of("executorch")
    monkeypatch.setitem(sys.modules, "openvino", None)
    (mistake,) = settings(objective={"target": "openvino"}, targets=["onnx"]).lookup_mistakes("aat.export")
    assert mistake.startswith("aat.export.objective: OpenVINO cannot be imported")
    assert mistake.endswith("`pip install 'kedro-aat[openvino]'`, or name another target there")


@pytest.mark.parametrize("absent", ["litert_torch", "torchao"])
def test_a_runtime_alone_writes_no_files(absent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ai_edge_litert/interpreter", "litert_converter", "litert_torch", "torchao"):
        module = tmp_path / f"{name}.py"
        module.parent.mkdir(exist_ok=True)
        module.touch()
        for known in (name.partition("/")[0], name.replace("/", ".")):
            monkeypatch.setitem(sys.modules, known, None)  # so that it is forgotten after the test
            monkeypatch.delitem(sys.modules, known)
    monkeypatch.syspath_prepend(tmp_path)
    assert missing("litert") is None
    monkeypatch.setitem(sys.modules, absent, None)
    (mistake,) = settings(targets=["onnx", "litert"]).lookup_mistakes("aat.export")
    assert f"LiteRT cannot be imported (No module named '{absent}'); install it with" in mistake
    assert "`pip install 'kedro-aat[litert]'`" in mistake
    assert missing("litert", only_to_run=True) is None


FILE = TargetFile(
    "executorch",
    {".pte": b"program"},
    ("left", "right"),
    ("logits",),
    4,
    TargetDetails(
        operators=("aten::add.out", "XnnpackBackend"),
        arena_bytes=1024,
        quantized_inputs={"left": QuantizedPort(dtype="int8", scale=0.5, zero_point=-3)},
    ),
)


def test_a_file_is_kept_with_its_description(tmp_path: Path) -> None:
    dataset = ExecutorchDataset(filepath=str(tmp_path / "model.pte"))
    dataset.save(FILE)
    assert (tmp_path / "model.pte").read_bytes() == b"program"
    assert dataset.load() == FILE
    shown = dataset.preview()
    assert shown is not None
    assert shown["data"] == [["aten::add.out", ""], ["XnnpackBackend", ""]]
    (tmp_path / "model.pte.json").write_text('{"inputs": 3}')
    with pytest.raises(Exception, match="does not describe the file"):
        dataset.load()
    with pytest.raises(Exception, match="takes a file for LiteRT"):
        LitertDataset(filepath=str(tmp_path / "model.tflite")).save(FILE)


def test_files_of_all_targets_are_kept_as_json() -> None:
    pytest.importorskip("openvino")
    files = files_of(Net(1).eval(), DATA["inputs"], settings(openvino=True))
    adapter = TypeAdapter(Files)
    assert adapter.validate_json(adapter.dump_json(files)) == files


def test_results_of_earlier_versions_have_openvino_among_the_targets() -> None:
    measured = costs(100).model_dump() | {"openvino_bytes": 7, "openvino_latency_ms": {"1": 0.5}}
    read = Costs.model_validate({name: value for name, value in measured.items() if name != "targets"})
    assert read.targets["openvino"].bytes == read.openvino_bytes == 7
    assert read.targets["openvino"].latency_ms == {1: 0.5}
    assert Costs.model_validate(read.model_dump(mode="json")) == read
