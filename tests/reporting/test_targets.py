"""The targets beside each other: in the report, the card, the terminal and the summary."""

from __future__ import annotations

import io
import re
from typing import Any

from rich.console import Console

from kedro_aat.delivery.measurements import CandidateResult
from kedro_aat.delivery.results import Summary
from kedro_aat.delivery.target_files import files_of_candidate
from kedro_aat.pipelines.aat.reporting import report_run
from kedro_aat.reporting.model_card import model_card
from kedro_aat.reporting.summary import print_summary
from kedro_aat.reporting.target_figure import targets_figure
from kedro_aat.reporting.targets import files_table, int8_words, targets_table
from tests.reporting.runs import changed, exported, layers, onnx_model, settings, summary_of, trajectory_of


def litert(share: float, *, bytes_: int) -> dict[str, Any]:
    """Costs of a file for LiteRT."""
    times = {1: 0.2 * share, 64: 4.0 * share}
    return {
        "bytes": bytes_,
        "latency_ms": times,
        "latency_fastest_ms": times,
        "details": {"operators": ["CONV_2D"], "arena_bytes": 1500},
    }


def with_litert(*, delivered: float = 0.1, delivered_bytes: int = 410) -> Summary:
    """A run whose int8 file, which is delivered, costs this much in LiteRT, where the float one costs half."""
    data = summary_of("certified").model_dump()
    floats, int8 = data["candidates"]
    costs = litert(delivered, bytes_=delivered_bytes)
    for part, own in (
        (data["baseline"], litert(1, bytes_=4100)),
        (floats, litert(0.5, bytes_=2050)),
        (int8, costs),
        (data["compressed"], costs),
    ):
        part["targets"]["litert"] = own
    agreed = {"difference": 0.0123, "same_labels": None, "batch_sizes": (1, 64)}
    int8 |= {"validations": {"openvino": 0.881, "litert": 0.879}, "validation_program": 0.882, "program_bytes": 9200}
    int8["agreement"] = {"onnx": agreed | {"difference": 0.002}, "targets": {"litert": agreed}}
    return Summary.model_validate(data)


def test_files_of_a_candidate_have_what_is_known_of_each() -> None:
    delivered = with_litert().delivered_candidate
    assert isinstance(delivered, CandidateResult)
    onnx, program, openvino, other = files_of_candidate(delivered)
    assert (onnx.target, onnx.bytes, onnx.validation, onnx.difference) == ("onnx", 400, 0.88, 0.002)
    assert onnx.peak_memory_bytes == {1: 2_000_000, 64: 3_000_000}
    assert (program.target, program.bytes, program.validation) == ("pt2", 9200, 0.882)
    assert (openvino.bytes, openvino.validation, openvino.difference) == (440, 0.881, None)
    assert (other.bytes, other.validation, other.difference, other.arena_bytes) == (410, 0.879, 0.0123, 1500)
    assert other.latency_fastest_ms == {1: 0.2 * 0.1, 64: 0.4}


def test_delivered_files_side_by_side() -> None:
    table = files_table(with_litert())
    assert table is not None
    assert table.rows == [
        ["ONNX", "400", "0.8800", "2.0e-03", "0.008", "0.160", "3.0 MB, batch 64"],
        [".pt2", "9,200", "0.8820", "-", "-", "-", "-"],
        ["OpenVINO", "440", "0.8810", "-", "0.020", "0.120", "-"],
        ["LiteRT", "410", "0.8790", "1.2e-02", "0.020", "0.400", "1,500 bytes, arena"],
    ]


def test_what_is_not_known_of_a_file_has_a_reason() -> None:
    data = with_litert().model_dump()
    int8 = data["candidates"][1]
    int8["validations"].pop("litert")
    for times in ("latency_ms", "latency_fastest_ms"):
        int8["targets"]["litert"][times] = {1: 0.02}
    table = files_table(Summary.model_validate(data))
    assert table is not None
    assert table.rows[-1] == ["LiteRT", "410", "not judged", "1.2e-02", "0.020", "-", "1,500 bytes, arena"]
    assert table.notes == [
        "Not known of .pt2: latency, since torch itself runs this file, and is not timed.",
        "Not known of .pt2 and OpenVINO: memory, since only the process of the ONNX file is measured, and the plan of "
        "ExecuTorch and LiteRT is read.",
        "Not known of LiteRT: validation, since this file was not judged.",
        "Not known of LiteRT: latency, since the file does not take batch 64.",
    ]


def test_the_numbers_of_the_device_stand_beside_the_others() -> None:
    data = with_litert().model_dump()
    floats, int8 = data["candidates"]
    for part, latency_ms in ((data["baseline"], 20.0), (floats, 8.0), (int8, 5.0)):
        part["device"] = {"target": "litert", "latency_ms": latency_ms, "memory_bytes": 90_000}
    floats["device"] = {"target": "litert", "failure": "TimeoutError: no answer in 60 s"}
    summary = Summary.model_validate(data)
    files = files_table(summary)
    assert files is not None
    assert [title for title, _ in files.columns][-2:] == ["device, ms", "device, bytes"]
    assert [row[-2:] for row in files.rows] == [["-", "-"], ["-", "-"], ["-", "-"], ["5.000", "90,000"]]
    words = "Not known of ONNX and .pt2 and OpenVINO: device, since export.measure_with got the LiteRT file."
    assert words in files.notes
    table = targets_table(summary)
    assert table is not None
    assert [row[-3:] for row in table.rows[-3:]] == [
        ["1,500", "20.000", "90,000"],
        ["1,500 (1.00x)", "-", "-"],
        ["1,500 (1.00x)", "5.000 (0.25x)", "90,000 (1.00x)"],
    ]
    panels = [each.text for each in targets_figure(summary).layout.annotations]
    assert panels[-3:] == ["Arena, bytes", "On the device: latency, ms", "On the device: memory, bytes"]
    page, card, *_ = report_run(summary, trajectory_of(summary), layers(), exported(summary), settings())
    assert words in page
    assert words in card


def test_onnx_alone_has_no_such_table() -> None:
    data = summary_of("certified").model_dump()
    for part in (data["baseline"], data["compressed"], *data["candidates"]):
        part |= {"targets": {}, **dict.fromkeys(name for name in part if name.startswith("openvino_"))}
    alone = Summary.model_validate(data)
    assert files_table(alone) is targets_table(alone) is None
    assert int8_words(alone) == []
    page, *_ = report_run(alone, trajectory_of(alone), layers(), onnx_model(), settings())
    assert "The targets beside each other" not in page
    assert "All files" not in model_card(alone, onnx_model(), "model.onnx")
    assert files_table(summary_of("infeasible")) is None


def test_int8_that_costs_more_than_float_is_said_with_the_numbers() -> None:
    assert int8_words(with_litert(delivered=0.65, delivered_bytes=2255)) == [
        "For LiteRT the int8 file is 1.10x as large as the float one (2,255 bytes instead of 2,050).",
        "In LiteRT the int8 file takes 1.30x as long as the float one (0.130 ms instead of 0.100 ms at batch 1; "
        "2.600 ms instead of 2.000 ms at batch 64).",
    ]
    # 3 % may be noise.
    found = int8_words(with_litert(delivered=0.515))
    assert found == ["In none of the targets is the int8 file larger or slower than the float one."]


def test_float_that_is_delivered_is_compared_with_the_int8_that_is_not() -> None:
    summary = changed(with_litert(delivered=0.65), delivered="filter_pruning", delivered_id="stage-1-checkpoint-2")
    assert int8_words(summary)[0].startswith("In LiteRT the int8 file takes 1.30x as long as the float one")
    table = targets_table(summary)
    assert table is not None
    assert [row[1] for row in table.rows[:3]] == ["baseline", "float: filter pruning, delivered", "int8: quantization"]


def test_int8_without_a_float_candidate_is_compared_with_the_baseline() -> None:
    summary = with_litert(delivered=1.3)
    summary = changed(summary, candidates=summary.candidates[1:])
    (words,) = int8_words(summary)
    assert "1.30x as long as the float baseline (0.260 ms instead of 0.200 ms at batch 1" in words


def test_every_target_has_the_bars_of_every_model() -> None:
    summary = with_litert()
    table = targets_table(summary)
    assert table is not None
    assert table.rows[-1] == [
        *("", "int8: quantization, delivered", "410 (0.10x)", "0.020 (0.10x)", "0.400 (0.10x)", "1,500 (1.00x)")
    ]
    figure = targets_figure(summary)
    assert [bar.name for bar in figure.data if bar.showlegend] == [row[1] for row in table.rows[:3]]
    of_bytes = {bar.name: dict(zip(bar.y, bar.x, strict=True)) for bar in figure.data[:3]}
    assert of_bytes["baseline"] == {"ONNX": 4000, "OpenVINO": 4400, "LiteRT": 4100}
    assert of_bytes["int8: quantization, delivered"] == {"ONNX": 400, "OpenVINO": 440, "LiteRT": 410}
    assert len(figure.data) == 4 * 3  # bytes, two batch sizes, and the arena


def test_report_card_and_terminal_compare_targets() -> None:
    summary = with_litert(delivered=0.65)
    (words,) = int8_words(summary)
    page, card, *_ = report_run(summary, trajectory_of(summary), layers(), exported(summary), settings())
    assert 'id="targets-data"' in page
    assert words in page
    assert "in onnxruntime, OpenVINO and LiteRT on" in page
    assert "| LiteRT | 410 | 0.8790 | 1.2e-02 | 0.130 | 2.600 | 1,500 bytes, arena |" in card
    assert words in card
    output = io.StringIO()
    print_summary(summary, Console(file=output, width=120))
    printed = output.getvalue()
    assert re.search(r"LiteRT +410 +0.8790 +1.2e-02 +0.130 +2.600 +1,500 bytes, arena", printed)
    assert words in " ".join(printed.split())
