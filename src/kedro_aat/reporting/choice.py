"""What a choice for another budget gains and loses against the model that is delivered."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kedro_aat.delivery.results import Summary
from kedro_aat.reporting.numbers import Row, cost_rows, files_title, metric_words, tolerated


def gains_and_losses(delivered: Summary, chosen: Summary) -> list[Row]:
    """The delivered file beside the chosen one: metric, rate and costs.

    Args:
        delivered: Summary of the run whose files are delivered.
        chosen: Summary of the choice.

    Returns:
        Label, value of the delivered file, value of the chosen one, and the change; no rows unless both have a file.
    """
    before, after = delivered.delivered_candidate, chosen.delivered_candidate
    if before is None or after is None:
        return []
    old, new = before.shipped_validation, after.shipped_validation
    change = "" if old is None or new is None else f"{new - old:+.4f}"
    metric = (f"{chosen.metric.name}, validation", metric_words(old), metric_words(new), change)
    return [metric, ("  tolerated", tolerated(delivered), tolerated(chosen), ""), *cost_rows(before, after)]


def sentences(delivered: Summary | None, chosen: Summary) -> list[str]:
    """What is gained and what is lost, in words.

    Args:
        delivered: Summary of the run whose files are delivered; None if there is none.
        chosen: Summary of the choice.
    """
    before = None if delivered is None else delivered.delivered_candidate
    after = chosen.delivered_candidate
    if after is None:
        return [f"Nothing is chosen. {chosen.reason}"]
    named = f"Chosen for a drop of at most {chosen.budget.drop:.4g}: {after.name}."
    if delivered is None or before is None:
        return [named, "Nothing is delivered so far."]
    if after.id == before.id:
        return [named, "It is the model that is delivered already."]
    sign = 1 if chosen.metric.higher_is_better else -1
    old, new = before.shipped_validation, after.shipped_validation
    gain = 0.0 if old is None or new is None else sign * (new - old)
    accuracy = f"{abs(gain):.4g} of {chosen.metric.name} on the validation split"
    gained, lost = ([accuracy], []) if gain > 0 else ([], [accuracy] if gain < 0 else [])
    costs: list[tuple[str, float, float]] = [
        ("bytes of the ONNX file", before.onnx_bytes, after.onnx_bytes),
        *(
            (f"bytes of the {files_title(name)}", before.targets[name].bytes, costs.bytes)
            for name, costs in after.targets.items()
            if name in before.targets
        ),
        ("parameters", before.parameters, after.parameters),
        ("MACs", before.macs, after.macs),
    ]
    for words, old, new in costs:
        if new != old:
            (gained if new < old else lost).append(f"{abs(new - old):,} {words} ({new / old:.2f}x)")
    if delivered.certificate.is_certified:
        lost.append("the certificate, because the test split was read for the delivered model")
    return [named, f"Gained: {', '.join(gained) or 'nothing'}.", f"Lost: {', '.join(lost) or 'nothing'}."]


def print_comparison(delivered: Summary | None, chosen: Summary, console: Console) -> None:
    """Prints what is gained and lost, and both files beside each other.

    Args:
        delivered: Summary of the run whose files are delivered; None if there is none.
        chosen: Summary of the choice.
        console: Where to print.
    """
    for words in sentences(delivered, chosen):
        console.print(Text(words))
    rows = [] if delivered is None else gains_and_losses(delivered, chosen)
    if not rows:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for column in ("delivered", "chosen", "change"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)
