"""Fuzzing: `make fuzz`, or `make fuzz ARGS="--size 0.1"` for a tenth of the cases.

Gives kedro-aat thousands of configurations and files that nobody should have written, and runs searches with settings
that are valid but odd. Every case must be accepted or end in one of our errors, in time and without much memory. The
cases depend on the seed alone: `--only "mutated recipe" --case 17` repeats one of them. If code in C hangs, the process
ends, and a file hung-*.txt in the folder for temporary files has the name of the case.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from pathlib import Path

import torch

from tests.fuzzing import configurations, files, harness
from tests.fuzzing.corpus import make_corpus
from tests.projects import Project

# Kind -> number of cases at size 1.
CONFIGURATIONS = {
    "changed parameters": (configurations.changed_parameters, 9000),
    "changed parameter files": (configurations.changed_parameter_files, 1000),
    "valid by schema": (configurations.valid_by_schema, 6000),
    "searched": (configurations.searched, 180),
    "delivered": (configurations.delivered, 20),
}
NUM_MUTATED, NUM_DAMAGED = 6000, 1320


def all_cases(corpus: Path) -> dict[str, tuple[harness.Case, int]]:
    """All kinds of cases with their numbers.

    Args:
        corpus: Folder with the files of `make_corpus`.
    """
    mutated = {f"mutated {name}": files.mutation(reader, corpus) for name, reader in files.READERS.items()}
    readers = files.READERS | files.DAMAGED_ONLY
    damaged = {f"damaged {name}": files.damage(reader, corpus) for name, reader in readers.items()}
    return {
        **CONFIGURATIONS,
        **{name: (case, -(-NUM_MUTATED // len(mutated))) for name, case in mutated.items()},
        **{name: (case, -(-NUM_DAMAGED // len(damaged))) for name, case in damaged.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--size", type=float, default=1.0, help="factor on the number of cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one kind, or the start of its name")
    parser.add_argument("--case", type=int, help="number of one case")
    parser.add_argument("--project", type=Path, help="a project in which the job has run; otherwise it is run first")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger().setLevel(logging.ERROR)
    logging.getLogger("kedro").setLevel(logging.ERROR)
    logging.getLogger("kedro_aat").setLevel(logging.ERROR)
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        project = arguments.project or _run_project(Path(folder, "project"))
        corpus = Path(folder, "corpus")
        corpus.mkdir()
        make_corpus(project, corpus)
        for name, (case, number) in all_cases(corpus).items():
            if name.startswith(arguments.only or ""):
                start = time.monotonic()
                count = max(1, round(number * arguments.size))
                numbers = range(count) if arguments.case is None else range(arguments.case, arguments.case + 1)
                result = harness.run(name, case, numbers, arguments.seed)
                print(f"{result} ({time.monotonic() - start:.0f} s)", flush=True)
                failures += result.failures
    print("\n\n".join([*failures, f"{len(failures)} failures"]))
    sys.exit(bool(failures))


def _run_project(folder: Path) -> Path:
    print("Running the job whose files are changed ...", flush=True)
    folder.mkdir()
    Project.create(folder).spawn("--pipelines", "aat")
    return folder


if __name__ == "__main__":
    main()
