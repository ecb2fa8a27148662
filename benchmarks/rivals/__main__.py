"""Trains the baseline, runs each tool, and prints what their files reach on data that no tool saw.

Each tool needs an environment with torch, onnx, onnxscript, onnxruntime and itself, below the folder `--environments`:
`nncf` (nncf), `modelopt` (nvidia-modelopt, requests, huggingface_hub). kedro-aat and Torch-Pruning run in this one.
What has no environment, or fails, has a row that says so. Files are timed in alternating turns on one
thread; with a budget of one point, ten of the 1,000 validation images may be lost.

    python -m benchmarks.rivals --environments build/rivals [--epochs 30] [--seeds 1] [--out results.json]
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.rivals.task import LR, Net, accuracy, fine_tune
from benchmarks.tasks.shapes import labeled
from kedro_aat.export.measure import measure_latency
from kedro_aat.export.onnx_file import to_onnx

ROOT = Path(__file__).parents[2]
SIZES = {"train": 1500, "validation": 1000, "test": 20_000}
MAX_DROP = 0.01
BASELINE_EPOCHS = 30
TIMEOUT = 900  # seconds for one tool
TOOLS = {  # label -> environment (empty for this one), command
    "kedro-aat, objective bytes": ("", ["ours", "bytes"]),
    "kedro-aat, objective latency": ("", ["ours", "latency"]),
    "Torch-Pruning": ("", ["with_torch_pruning"]),
    "ModelOpt, FastNAS and int8": ("modelopt", ["with_modelopt"]),
    "NNCF 3, int8 with training": ("nncf", ["with_nncf"]),
    "NNCF 3, int8 with accuracy control": ("nncf", ["with_nncf_control"]),
}


@dataclass
class Row:
    """What a tool reached.

    Attributes:
        tool: The tool, and how it was used.
        seed: Seed of data and baseline.
        validation: Accuracy of the file on the validation split; None without a file.
        test: The same on the test split.
        num_bytes: Size of the file.
        median_ms: Median time at batch size 1.
        fastest_ms: Time of the fastest turn.
        seconds: Time that the tool took.
        note: What else is to be said, or why there is no file.
    """

    tool: str
    seed: int
    validation: float | None = None
    test: float | None = None
    num_bytes: int | None = None
    median_ms: float | None = None
    fastest_ms: float | None = None
    seconds: float | None = None
    note: str = ""


def splits_of(seed: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Noisy shapes, other ones for each seed."""
    splits = {}
    for index, (name, size) in enumerate(SIZES.items()):
        split = labeled(size, 20, 0.28, 0.17, torch.Generator().manual_seed(3 * seed + index))
        splits[name] = split["inputs"], split["targets"]
    return splits


def accuracy_of(file: bytes, data: tuple[torch.Tensor, torch.Tensor]) -> float:
    """Share of right answers of an ONNX file in onnxruntime."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    answers = [session.run(None, {name: batch.numpy()})[0].argmax(1) for batch in data[0].split(500)]
    return float((np.concatenate(answers) == data[1].numpy()).mean())


def run_tool(tool: str, folder: Path, environments: Path | None) -> tuple[bytes | None, float | None, str]:
    """Runs a tool in its environment, and returns its file, the seconds it took, and what it says of it."""
    environment, command = TOOLS[tool]
    own = (environments or Path()).absolute() / environment / "bin/python"
    python = own if environment else Path(sys.executable)
    if not python.exists():
        return None, None, f"not run: no environment {environment}"
    module, *more = command
    try:
        ended = subprocess.run(
            [python, "-m", f"benchmarks.rivals.{module}", folder, *more],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None, None, f"not finished in {TIMEOUT:,} s"
    (folder / "log.txt").write_text(ended.stdout + ended.stderr, encoding="utf-8")
    if ended.returncode:
        return None, None, f"failed: {ended.stderr.strip().splitlines()[-1][:200]}"
    found = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    path = folder / "model.onnx"
    return path.read_bytes() if path.exists() else None, found["seconds"], found["note"]


def compare(seed: int, num_epochs: int, tools: list[str], work: Path, environments: Path | None) -> list[Row]:
    """One row for the baseline, and one for each tool."""
    splits = splits_of(seed)
    torch.manual_seed(seed)
    baseline = Net()
    fine_tune(baseline, splits["train"], BASELINE_EPOCHS, lr=3 * LR)
    lowest = accuracy(baseline, splits["validation"]) - MAX_DROP
    rows, files = [Row("baseline", seed)], [to_onnx(baseline.eval(), splits["test"][0][:2]).SerializeToString()]
    for tool in tools:
        folder = work / f"{seed}-{tool.replace(' ', '-').replace(',', '')}"
        folder.mkdir(parents=True)
        torch.save({name: splits[name] for name in ("train", "validation")}, folder / "data.pt")
        torch.save(baseline.state_dict(), folder / "baseline.pt")
        terms = {"epochs": num_epochs, "lowest": lowest, "max_drop": MAX_DROP}
        (folder / "terms.json").write_text(json.dumps(terms), encoding="utf-8")
        file, seconds, note = run_tool(tool, folder, environments)
        rows.append(Row(tool, seed, seconds=seconds, note=note))
        files.append(file or b"")
        print(f"{tool}: {note or 'done'}", file=sys.stderr)
    made = [(row, file) for row, file in zip(rows, files, strict=True) if file]
    times = measure_latency([onnx.load_from_string(file) for _, file in made], splits["test"][0][:1], batch_sizes=(1,))
    for (row, file), taken in zip(made, times, strict=True):
        row.validation, row.test = accuracy_of(file, splits["validation"]), accuracy_of(file, splits["test"])
        row.num_bytes, row.median_ms, row.fastest_ms = len(file), taken[1].median, taken[1].fastest
    return rows


def processor_name() -> str:
    """The name of this CPU, where Linux gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def table_of(rows: list[Row]) -> Table:
    """The rows with their ratios to the baseline of their seed."""
    title = f"{processor_name()}; onnxruntime {onnxruntime.__version__}, 1 thread; {platform.system()}"
    names = ("tool", "seed", "bytes", "", "ms, batch 1 (median)", "fastest turn", "validation", "test", "true drop")
    table = Table(*names, "minutes", "note", title=title, box=None)
    for row in rows:
        base = next(each for each in rows if each.tool == "baseline" and each.seed == row.seed)
        cells = ["-"] * 7
        if row.num_bytes and base.num_bytes and row.median_ms and row.fastest_ms and base.fastest_ms:
            assert row.validation is not None
            assert row.test is not None
            assert base.test is not None
            cells = [
                f"{row.num_bytes:,}",
                f"1/{base.num_bytes / row.num_bytes:.1f}",
                f"{row.median_ms:.4f}",
                f"{row.fastest_ms / base.fastest_ms:.2f}x",
                f"{row.validation:.4f}",
                f"{row.test:.4f}",
                f"{base.test - row.test:+.4f}",
            ]
        minutes = "-" if row.seconds is None else f"{row.seconds / 60:.1f}"
        table.add_row(row.tool, str(row.seed), *cells, minutes, row.note)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--environments", type=Path)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--tools", nargs="*", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    for seed in range(arguments.seeds):
        with tempfile.TemporaryDirectory() as folder:
            rows += compare(seed, arguments.epochs, arguments.tools, Path(folder), arguments.environments)
        if arguments.out:
            arguments.out.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
    Console(width=220).print(table_of(rows))


if __name__ == "__main__":
    main()
