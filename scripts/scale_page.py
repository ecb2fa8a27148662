"""Writes the computed tables of docs/scale.md, with the functions that `kedro aat plan` uses.

python -m scripts.scale_page
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from kedro_aat.planning.advice import in_bytes
from kedro_aat.planning.formulas import Plan, cut_copy_bytes, num_checkpoints, plan, total, traffic_bytes
from kedro_aat.planning.job import Algorithm, Job, Machine, Stage, computed_job

PAGE = Path(__file__).parents[1] / "docs/scale.md"
SIZES = {"1M": 1e6, "100M": 1e8, "1B": 1e9, "7B": 7e9, "70B": 70e9}
# Name of a column -> algorithm, values of the optimizer for each parameter.
COLUMNS: dict[str, tuple[Algorithm, float]] = {
    "sparsity, AdamW": ("sparsity", 2),
    "sparsity, SGD with momentum": ("sparsity", 1),
    "filters, AdamW": ("filters", 2),
    "int8, AdamW": ("int8", 2),
}


def page(text: str) -> str:
    """The text of the page, with its tables computed anew.

    Args:
        text: The text as it is.
    """
    tables: dict[str, Callable[[], Iterator[str]]] = {"per parameter": _per_parameter, "sizes": _sizes, "kept": _kept}
    for name, lines in tables.items():
        begin, end = f"<!-- computed: {name} -->", f"<!-- end: {name} -->"
        text = re.sub(
            f"{re.escape(begin)}.*?{re.escape(end)}",
            lambda _, begin=begin, end=end, lines=lines: "\n\n".join([begin, "\n".join(lines()), end]),  # type: ignore[misc]
            text,
            flags=re.DOTALL,
        )
    return text


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _head(first: str, others: Sequence[str]) -> Iterator[str]:
    yield _row(first, *others)
    yield _row("---", *("---:" for _ in others))


def _job(algorithm: Algorithm, values: float, parameters: float = 1e9, *, cpu: bool = False) -> Job:
    job = computed_job(parameters)
    machine = Machine("cpu") if cpu else job.machine
    model = replace(job.model, maskable=0.0) if algorithm == "int8" else job.model
    return replace(
        job, model=model, stages=(Stage(algorithm),), optimizer_values=values, process_bytes=0.0, machine=machine
    )


def _per_parameter() -> Iterator[str]:
    """Bytes for each parameter; a billion of them, so that nothing else counts."""
    plans = [plan(_job(*column)) for column in COLUMNS.values()]
    jobs = [each.job for each in plans]
    yield from _head("bytes for each parameter", list(COLUMNS))

    def row(name: str, values: Sequence[float]) -> str:
        return _row(name, *(f"{value / 1e9:.4g}" if value else "-" for value in values))

    for item in ("weights", "masks", "optimizer", "teacher", "gradients", "cut copy"):
        named = "cut copy, at a rate of 0.5" if item == "cut copy" else item
        yield row(named, [_value(each, item) for each in plans])
    yield row("**device, without activations**", [total(each.device) for each in plans])
    on_cpu = [plan(_job(*column, cpu=True)) for column in COLUMNS.values()]
    yield row("host, with a GPU: uncompressed model, copy of a checkpoint", [total(each.host) for each in plans])
    yield row("**on a CPU: all together, without a second teacher**", [total(each.device) for each in on_cpu])
    yield row("newest checkpoint", [each.checkpoint for each in plans])
    yield row("older one, without optimizers", [each.older for each in plans])
    yield row("sent in a step by each of 8 devices", [_traffic(job, 8, sharded=False) for job in jobs])
    yield row("the same, sharded", [_traffic(job, 8, sharded=True) for job in jobs])
    assert [_value(each, "cut copy") for each in plans][2] == cut_copy_bytes(jobs[2])


def _value(planned: Plan, name: str) -> float:
    return sum(item.value for item in planned.device if item.name == name)


def _traffic(job: Job, devices: int, *, sharded: bool) -> float:
    return traffic_bytes(replace(job, machine=replace(job.machine, devices=devices, sharded=sharded)))


def _sizes() -> Iterator[str]:
    yield from _head("computed", list(SIZES))

    def row(name: str, value: Callable[[float], float]) -> str:
        return _row(name, *(in_bytes(value(parameters)) for parameters in SIZES.values()))

    def device(devices: int, *, sharded: bool) -> Callable[[float], float]:
        return lambda parameters: total(plan(computed_job(parameters, devices=devices, sharded=sharded)).device)

    def host(devices: int, *, sharded: bool) -> Callable[[float], float]:
        return lambda parameters: total(plan(computed_job(parameters, devices=devices, sharded=sharded)).host)

    yield row("device, 1 GPU", device(1, sharded=False))
    yield row("each of 8 or 64, data parallel", device(8, sharded=False))
    yield row("each of 8, sharded", device(8, sharded=True))
    yield row("each of 64, sharded", device(64, sharded=True))
    yield row("host, the process that writes", host(1, sharded=False))
    yield row("host, each of 64 processes, sharded", host(64, sharded=True))
    yield row("newest checkpoint", lambda parameters: plan(computed_job(parameters)).checkpoint)
    yield row("older one", lambda parameters: plan(computed_job(parameters)).older)
    yield row("disk after 60 epochs", lambda parameters: total(plan(computed_job(parameters)).disk))
    yield row("sent in a step by each of 8", lambda parameters: _traffic(computed_job(parameters), 8, sharded=False))
    yield row(
        "sent in a step by each of 64, sharded",
        lambda parameters: _traffic(computed_job(parameters), 64, sharded=True),
    )


def _kept() -> Iterator[str]:
    epochs = (3, 6, 12, 24, 60, 200)
    yield from _head("epochs of a search", [str(each) for each in epochs])
    yield _row("checkpoints at its end, about", *(f"{num_checkpoints(each):.0f}" for each in epochs))


def main() -> None:
    """Writes the page."""
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
