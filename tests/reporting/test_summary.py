"""The summary and its table on the terminal."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from kedro_aat.budget import Outcome
from kedro_aat.reporting.summary import print_summary, summarize
from tests.reporting.runs import summary_of


def printed(summary: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=200)
    print_summary(summary, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_brackets_are_printed_as_they_are() -> None:
    """An exporter's words and a metric's name are no markup."""
    words = "cannot read [/models/net] as [bold]"
    summary = summary_of("within_budget")
    summary["reason"] = summary["certificate"]["words"] = summary["metric"]["name"] = words
    summary["rejected"] = {"filter_pruning": words}
    assert printed(summary).count(words) >= 5


@pytest.mark.parametrize(("are_candidates", "advice"), [(False, "allow a larger drop"), (True, "export.limits")])
def test_advice_is_on_what_was_not_kept(are_candidates: bool, advice: str) -> None:
    made = summary_of("certified")
    stage = {"epochs": {"used": 1, "allowed": 1}, "seconds": {"used": 1.0}, "run": "1", "device": "cpu"}
    export = {key: made[key] for key in ("reason", "baseline", "rejected")}
    export |= {"outcome": Outcome.INFEASIBLE, "delivered": None, "compressed": None}
    summary = summarize(
        {"validation": 0.9, "metric": made["metric"], "forecast": None},
        stage | {"budget": made["budget"]},
        {"outcome": "skipped"},
        export | {"candidates": made["candidates"] if are_candidates else []},
        {"baseline": None, "compressed": None, "is_certified": False, "words": ""},
        seed=0,
        time_limit=None,
        distillation=None,
    )
    assert advice in summary["advice"]
    assert advice in printed(summary)
