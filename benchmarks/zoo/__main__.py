"""Compresses published architectures, and writes what works and what does not to `docs/zoo.md`.

Each model is measured in a process of its own, with a time limit. Every result is added to a file at once and is not
measured again, so that the same command continues after it was stopped; `--again` repeats parts.

The models come from two packages that nothing else needs: `make zoo` installs them.

    python -m benchmarks.zoo [--models resnet18 ...] [--parts torch_pruning filters sparse int8] [--again]
        [--seconds 300] [--out results.json] [--page docs/zoo.md]
"""

from __future__ import annotations

import argparse
import multiprocessing
import warnings
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from benchmarks.zoo.measure import PARTS, Facts
from benchmarks.zoo.models import Entry, all_entries
from benchmarks.zoo.results import Results
from benchmarks.zoo.table import page

RESULTS = Path(__file__).with_name("results.json")
PAGE = Path(__file__).parents[2] / "docs" / "zoo.md"


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(all_entries()), choices=list(all_entries()))
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--again", action="store_true", help="repeat what is in the file")
    parser.add_argument("--seconds", type=float, default=300, help="time limit of each part of a model")
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON file with the results")
    parser.add_argument("--page", type=Path, default=PAGE, help="Markdown file that is made of them")
    return parser.parse_args()


def _child(entry: Entry, part: str, end: Connection) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    try:
        end.send(PARTS[part](entry))
    except Exception as error:  # every failure is a result
        end.send({"error": f"{type(error).__name__}: {_first_line(str(error))}"})


def _first_line(text: str) -> str:
    return " ".join(text.split())[:300]


def measured(entry: Entry, part: str, seconds: float) -> Facts:
    """One part of one model, in a process of its own that is ended after some seconds."""
    # Imports of minutes are shared by forking; nothing here has started a thread.
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(entry, part, there), daemon=False)
    process.start()
    there.close()
    try:
        if here.poll(seconds):
            facts: Facts = here.recv()
            return facts
        return {"error": f"not finished after {seconds:.0f} s"}
    except EOFError:
        return {"error": "the process died"}
    finally:
        process.kill()
        process.join()


def main(names: Sequence[str], parts: Sequence[str], arguments: argparse.Namespace) -> None:
    results, entries = Results(arguments.out), all_entries()
    torch.set_num_threads(1)
    for name in names:
        for part in parts:
            if arguments.again or not results.has(name, part):
                facts = measured(entries[name], part, arguments.seconds)
                results.add(name, entries[name], part, facts)
                shown = {key: f"{fact:.3g}" if isinstance(fact, float) else fact for key, fact in facts.items()}
                print(f"{name}, {part}: {shown}", flush=True)
    arguments.page.write_text(page(results.rows()), encoding="utf-8")


if __name__ == "__main__":
    chosen = parsed()
    main(chosen.models, chosen.parts, chosen)
