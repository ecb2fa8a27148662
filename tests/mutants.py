"""Mutation tests: `make mutants`, or `make mutants MODULE=budget` for one module.

Changes the source in one place at a time (with mutmut) and runs the tests that should notice. A change that no test
notices is a survivor. Accepted survivors are listed, each with the reason, in mutants_survivors.yml; another one makes
this script fail. Three kinds of changes are left out: messages of errors and logs, other prose (strings with a space),
and statements outside functions.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from tests.mutants_source import prepared

ROOT = Path(__file__).resolve().parents[1]
SURVIVORS = ROOT / "tests/mutants_survivors.yml"
COPIED = ("src", "tests", "conf", "benchmarks", "docs", "data/01_raw", "README.md", "pyproject.toml")

# The mutated files of each module, the tests that should notice, and tests that are too slow: a mutant's tests run once
# per mutant.
MODULES: dict[str, tuple[str, list[str], list[str]]] = {
    "budget": ("budget.py", ["tests/test_budget.py"], []),
    "schedule": (
        "compression/schedule.py",
        ["tests/compression/test_schedule.py", "tests/compression/test_rate_path.py"],
        [],
    ),
    "checkpoints": (
        "training/checkpoints/[fs]*.py",
        ["tests/training/checkpoints/test_store.py", "tests/training/checkpoints/test_upgrades.py"],
        [
            "tests/training/checkpoints/test_store.py::TestEveryStore::test_every_byte_of_a_checkpoint_counts",
            "tests/training/checkpoints/test_store.py::TestEveryStore::test_two_processes_cannot_hold_one_run",
            "tests/training/checkpoints/test_store.py::TestEveryStore::test_run_of_a_killed_process_is_free",
            "tests/training/checkpoints/test_store.py::TestEveryStore::test_each_operation_may_fail_once[EIO",
            "tests/training/checkpoints/test_store.py::TestEveryStore::test_each_operation_may_fail_once[EROFS",
        ],
    ),
    "delivery": (
        "delivery/[!d]*.py",
        ["tests/delivery", "tests/reporting/test_summary.py"],
        ["tests/delivery/test_deliver.py"],
    ),
    "deliver": ("delivery/deliver.py", ["tests/delivery/test_choice.py"], []),
    "search": (
        "search/*.py",
        ["tests/search"],
        ["tests/search/test_frontier.py::TestFrontier", "tests/search/test_policies.py"],
    ),
    "certificate": (
        "certificate/*.py",
        ["tests/certificate"],
        [
            "tests/certificate/test_ledger.py::test_of_many_processes_one_has_the_split",
            "tests/certificate/test_verdict.py::test_the_whole_certificate_of_every_outcome_errs_at_most_alpha",
            "tests/certificate/test_verdict_of_other_scores.py::test_bounded_scores_err_at_most_alpha",
            "tests/certificate/test_p_values.py::test_probability_to_certify_a_violator_is_at_most_alpha",
        ],
    ),
}

# A failing example is enough: shrinking it, and more examples than these, would only take time.
CONFTEST = """
from hypothesis import Phase, settings

phases = (Phase.explicit, Phase.generate)
settings.register_profile("mutants", max_examples=30, phases=phases, database=None, derandomize=True, deadline=None)
settings.load_profile("mutants")
"""

# Every mutant of delivery would import the exporter anew, and start processes for a number that is not delivery's. This
# is run once, in the process that forks for the mutants.
DELIVERY_CONFTEST = """
import torch
from kedro_aat.export import memory, onnx_file, program

if memory.peak_memory.__name__ != "no_memory":
    def no_memory(model, examples, batch_sizes):
        return dict.fromkeys(batch_sizes, 1)

    memory.peak_memory = no_memory
    for export in (onnx_file.to_onnx, program.to_program):
        export(torch.nn.Linear(2, 2), torch.zeros(2, 2))
"""

# One process imports the tests and forks for every mutant, so that nothing cached by other tests hides a mutant.
CONFIGURATION = """
[tool.mutmut]
source_paths = ["src/"]
only_mutate = ["src/kedro_aat/{files}"]
also_copy = ["conf", "benchmarks", "docs", "data", "README.md", "conftest.py"]
process_isolation = "forkserver"
timeout_multiplier = 3
timeout_constant = 10
use_git_change_detection = false
track_dependencies = false
pytest_add_cli_args_test_selection = {tests}
pytest_add_cli_args = {arguments}
"""

STATUS = {
    0: "survived",
    1: "killed",
    3: "killed",
    5: "survived",
    33: "survived",
    24: "timeout",
    36: "timeout",
    255: "timeout",
}


def make_copy(folder: Path, module: str) -> None:
    """Copies the project and sets mutmut up for one module."""
    files, tests, slow = MODULES[module]
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT / name, folder / name)
    for path in (folder / "src/kedro_aat").glob(files):
        path.write_text(prepared(path.read_text(encoding="utf-8")), encoding="utf-8")
    arguments = ["-p", "no:cacheprovider", *(f"--deselect={test}" for test in slow)]
    with (folder / "pyproject.toml").open("a", encoding="utf-8") as file:
        file.write(CONFIGURATION.format(files=files, tests=json.dumps(tests), arguments=json.dumps(arguments)))
    conftest = CONFTEST + DELIVERY_CONFTEST * (module == "delivery")
    (folder / "conftest.py").write_text(conftest, encoding="utf-8")


def changes(folder: Path) -> list[tuple[str, str, str]]:
    """Returns file, status and change of every mutant; a change is the function with the lines before and after."""
    found = []
    for meta in sorted((folder / "mutants/src").rglob("*.py.meta")):
        path = meta.with_suffix("")
        tree = ast.parse(path.read_text(encoding="utf-8"))
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        code = {node.name: ast.unparse(node).replace(node.name, "", 1).splitlines() for node in functions}
        for key, status in json.loads(meta.read_text(encoding="utf-8"))["exit_code_by_key"].items():
            mutant = key.rpartition(".")[2]
            original = mutant.rpartition("_")[0] + "_orig"
            name = mutant.partition("__mutmut")[0].partition("__bare")[0]
            name = name[2:].replace("ǁ", ".")  # x_function or xǁClassǁmethod
            lines = difflib.unified_diff(code[original], code[mutant], n=0, lineterm="")
            change = "\n".join(line[0] + line[1:].strip() for line in list(lines)[2:] if line[0] in "-+")
            if len({re.sub(r", strict=\w+", "", line[1:]) for line in change.splitlines()}) == 1:
                continue  # the argument of `zip` only guards an invariant of ours
            file = str(path.relative_to(folder / "mutants/src/kedro_aat"))
            found.append((file, STATUS.get(abs(status or 0), "killed"), f"{name}\n{change}"))
    return found


def mutate(module: str, jobs: int, accepted: dict[str, list[str]], folder: Path) -> list[str]:
    """Mutates one module, prints its row of the table, and returns the survivors that are not accepted."""
    make_copy(folder, module)
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", str(jobs)]
    environment = os.environ | {"PYTHONPATH": str(folder / "src"), "OMP_NUM_THREADS": "1"}
    with (folder / "mutmut.log").open("w", encoding="utf-8") as log:
        done = subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=log, check=False)
    if done.returncode:
        sys.exit((folder / "mutmut.log").read_text(encoding="utf-8")[-3000:])
    mutants = changes(folder)
    statuses = [status for _, status, _ in mutants]
    survivors = [f"{file}: {change}" for file, status, change in mutants if status == "survived"]
    # An entry without a line that begins with + accepts every change of its line.
    listed = tuple(f"{file}: {change}\n" for file, changes in accepted.items() for change in changes)
    counts = [len(statuses), *(statuses.count(status) for status in ("killed", "timeout", "survived"))]
    print(f"{module:12}", *(f"{count:9}" for count in counts), flush=True)
    return [survivor for survivor in survivors if not f"{survivor}\n".startswith(listed)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("modules", nargs="*", metavar="module", help=f"{', '.join(MODULES)}; all by default")
    parser.add_argument("--jobs", type=int, default=1, help="mutants tested at the same time")
    parser.add_argument("--keep", type=Path, help="new folder for mutmut's copies, which are otherwise removed")
    arguments = parser.parse_args()
    accepted = {
        file: [change.rstrip("\n") for group in groups for change in group["changes"]]
        for file, groups in (yaml.safe_load(SURVIVORS.read_text(encoding="utf-8")) or {}).items()
    }
    print(f"{'module':12}", *(f"{title:>9}" for title in ("made", "killed", "timeout", "survived")))
    new: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        for module in arguments.modules or MODULES:
            new += mutate(module, arguments.jobs, accepted, (arguments.keep or Path(temporary)) / module)
    if new:
        sys.exit("\n\n".join(["", f"{len(new)} survivors are not in {SURVIVORS.relative_to(ROOT)}:", *new]))


if __name__ == "__main__":
    main()
