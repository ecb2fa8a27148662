"""A plan as a table for people, and as JSON data."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from typing import Any

from rich.console import Console
from rich.table import Table

from kedro_aat.messages import duration, rounded
from kedro_aat.planning.advice import advice, in_bytes
from kedro_aat.planning.formulas import Item, Plan, plan, total

WIDTH = 110  # characters of a table


def shown(planned: Plan, title: str = "") -> str:
    """The tables, and what to do.

    Args:
        planned: The plan.
        title: What is planned; by default the number of parameters and the algorithms.
    """
    text = io.StringIO()
    console = Console(file=text, width=WIDTH)
    console.print(f"{title or 'Plan'}: {_what(planned)}", highlight=False, markup=False)
    table = Table("", "number", "origin", "how", box=None, title_justify="left")
    for name, items, unit in _sections(planned):
        table.add_row(f"[bold]{name}", f"[bold]{unit(total(items))}", "", "")
        for item in items:
            table.add_row(f"  {item.name}", unit(item.value), item.origin, item.formula)
    console.print(table)
    console.print()
    console.print(_alternatives(planned))
    console.print()
    for line in advice(planned) or [_fits(planned)]:
        console.print(line, highlight=False, markup=False)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def as_json(planned: Plan) -> dict[str, Any]:
    """The plan as JSON data: bytes and seconds."""
    totals = {name: total(items) for name, items, _ in _sections(planned)}
    return asdict(planned) | {"totals": totals, "peak_bytes": planned.peak_bytes, "advice": list(advice(planned))}


def _what(planned: Plan) -> str:
    job = planned.job
    stages = ", then ".join(f"{stage.algorithm} ({stage.epochs:g} epochs)" for stage in job.stages)
    machine, number = job.machine, job.machine.devices
    on = {"cpu": "the CPU", "gpu": "a GPU"}[machine.kind] if number == 1 else f"{number} devices"
    sharded = ", sharded (computed, not measured)" if machine.sharded else ""
    return f"{job.model.parameters:,.0f} parameters, {stages}, on {on}{sharded}"


def _sections(planned: Plan) -> Iterator[tuple[str, tuple[Item, ...], Any]]:
    gpu = planned.job.machine.kind == "gpu"
    number = f", stage {planned.stage + 1}" if len(planned.job.stages) > 1 else ""
    yield f"{'device' if gpu else 'memory'} while it trains{number}", planned.device, in_bytes
    if planned.host:
        yield f"host while it trains{number}", planned.host, in_bytes
    if planned.delivery:
        yield "memory while files are made", planned.delivery, in_bytes
    yield "disk at the end", planned.disk, in_bytes
    if planned.job.knows_time:
        yield "an epoch", planned.epoch, _seconds
        yield "the whole run", planned.time, duration


def _alternatives(planned: Plan) -> Table:
    """What other settings would change."""
    table = Table("with", "memory while it trains", box=None)
    timed = planned.job.knows_time
    if timed:
        table.add_column("an epoch")
        table.add_column("the whole run")
    for name, other, knows_time in _others(planned):
        row = [name, in_bytes(total(other.device))]
        if timed:
            row += [_seconds(total(other.epoch)), duration(total(other.time))] if knows_time else ["unknown", "unknown"]
        table.add_row(*row)
    return table


def _others(planned: Plan) -> Iterator[tuple[str, Plan, bool]]:
    """Other settings, their plans, and whether their time is known."""
    job = planned.job
    machine = job.machine
    yield "these settings", planned, True
    for devices in (2 * machine.devices, 8 * machine.devices):
        yield f"devices: {devices}", plan(replace(job, machine=replace(machine, devices=devices))), True
    if machine.devices > 1 and not machine.sharded and not job.not_sharded:
        yield "sharded (computed)", plan(replace(job, machine=replace(machine, sharded=True))), False
    size = job.stages[0].work.batch_size
    if size >= 2 and any(stage.work.example_bytes for stage in job.stages):
        halved = [replace(stage, work=replace(stage.work, batch_size=size // 2)) for stage in job.stages]
        yield f"batch_size: {size // 2:g}", plan(replace(job, stages=tuple(halved))), False
    if machine.kind == "gpu" and job.distills:
        yield "distillation: null", plan(replace(job, distills=False)), False
    if job.optimizer_values > 1:
        yield "optimizer: SGD with momentum", plan(replace(job, optimizer_values=1.0)), False


def _fits(planned: Plan) -> str:
    machine = planned.job.machine
    limits = {
        "of memory on the host": (planned.peak_bytes, machine.host_bytes),
        "on the device": (total(planned.device), machine.memory_bytes if machine.kind == "gpu" else None),
        "on disk": (total(planned.disk), machine.disk_bytes),
    }
    known = [f"{in_bytes(need)} of {in_bytes(has)} {where}" for where, (need, has) in limits.items() if has is not None]
    return f"It fits: {_listed(known)}." if known else "Memory and disk of the machine are not known."


def _listed(parts: Iterable[str]) -> str:
    *before, last = parts
    return f"{', '.join(before)} and {last}" if before else last


def _seconds(number: float) -> str:
    return f"{rounded(number)} s" if number < 120 else duration(number)
