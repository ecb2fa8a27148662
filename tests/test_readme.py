"""The commands, code and settings in README and documentation work."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

import kedro_aat
from kedro_aat import CompressionResult, compress
from kedro_aat.config import AatSettings
from kedro_aat.datasets.recipe import build_module
from kedro_aat.imports import Imported
from kedro_aat.validated import parse
from tests.documents import README, ROOT, blocks, documents

# Every command on a page, and the test that runs it.
COMMANDS = {
    "make run": "tests/pipelines/aat/test_run.py, as `kedro run --pipelines aat`",
    "make test": "continuous integration",
    "pip install 'path/to/kedro-aat[report]'": "tests/adoption/test_adoption.py, from the tree",
    "pip install 'path/to/kedro-aat[report]' scikit-learn": "tests/adoption/test_adoption.py, from the tree",
    "kedro new --name demo --tools none --example n": "tests/adoption/test_adoption.py",
    "cd demo": "tests/adoption/test_adoption.py",
    "kedro aat init": "tests/adoption/test_adoption.py",
    "kedro aat init --model WineNet --weights data/06_models/wine.pt --task classification --outputs 3 "
    "--data tensors": "tests/adoption/test_adoption.py",
    "kedro aat init --namespace small": "tests/adoption/test_adoption.py",
    "kedro aat init --namespace large": "tests/adoption/test_templates.py, as files",
    "PYTHONPATH=src python prepare.py": "tests/adoption/test_adoption.py",
    "kedro aat validate": "tests/adoption/test_adoption.py",
    "kedro aat validate --pipeline aat_small": "tests/adoption/test_adoption.py",
    "kedro aat plan": "tests/adoption/test_plans.py",
    "kedro run --pipelines aat": "tests/adoption/test_adoption.py",
    "kedro run --pipelines aat_small": "tests/adoption/test_templates.py, its wiring",
    "kedro run --namespaces small,large": "tests/adoption/test_factories.py",
    "kedro aat runs list --namespace small": "tests/adoption/test_factories.py",
    "make release": "by hand; its parts in tests/test_release.py",
    "make site": "test_documentation_builds",
    "python -m twine upload dist/kedro_aat-0.2.0.tar.gz dist/kedro_aat-0.2.0-py3-none-any.whl": "never by a test",
    "kedro run --pipelines aat_large": "the same with another name",
    "kedro run --pipelines aat --tags training": "tests/pipelines/aat/test_tags.py, its wiring",
    "kedro run --pipelines aat --tags export": "tests/pipelines/aat/test_tags.py, its wiring",
    "kedro run --pipelines aat --tags reporting": "tests/pipelines/aat/test_tags.py",
    "kedro airflow create --pipelines aat": "tests/adoption/test_airflow.py",
    "kedro aat choose": "tests/pipelines/aat/test_choose.py",
    "kedro aat choose --max-drop 0.02": "tests/pipelines/aat/test_choose.py",
    "kedro aat choose --confirm": "tests/pipelines/aat/test_choose.py",
    "kedro aat deliver": "tests/pipelines/aat/test_killed.py",
    "kedro aat certify": "tests/pipelines/aat/test_certificate.py",
    "kedro aat runs list": "tests/adoption/test_runs.py",
    "kedro aat runs compare 3f2a91 8b04cd": "tests/adoption/test_runs.py, with the names of its runs",
    "kedro aat runs prune --keep 5": "tests/adoption/test_runs.py, with another number",
    "kedro aat import-ledger data/07_model_output/certificate_ledger.json": "tests/adoption/test_ledgers.py",
    "kedro aat choose --namespace small": "tests/adoption/test_adoption.py",
    "python -m benchmarks.rivals --environments build/rivals": "by hand; its environments are none of this project's",
    "kedro run --nodes report_run --load-versions "
    "compressed_onnx:2026-11-27T09.30.00.000Z,aat_summary:2026-11-27T09.30.00.000Z": (
        "tests/pipelines/aat/test_bucket.py"
    ),
    "python -m venv build/nncf": "by hand, where NNCF can be installed",
    "build/nncf/bin/pip install torch torchvision tensorboard nncf==2.19.0": "by hand",
    "build/nncf/bin/python -m tests.nncf.record": "by hand; what it compares with is tested",
    "python -m examples.device.board": "tests/delivery/test_board.py",
    "kedro aat from-nncf config.json --force": "tests/adoption/test_adoption.py",
}
# The README's call in seconds: the same, with fewer epochs and measurements.
SHORT: dict[str, Any] = {
    "epochs": 3,
    "second_stage": None,
    "rehearsal": False,
    "export": {"latency_seconds": 0.01, "batch_sizes": [1]},
}
OUR_COMMAND = re.compile(r"^(?:\w+=\S+ )?(?:kedro|make|pip|python|cd) .*$", re.MULTILINE)


@pytest.mark.parametrize("page", documents(), ids=lambda page: page.name)
def test_every_command_is_run_by_a_test(page: Path) -> None:
    commands = [line for _, text in blocks(page) for line in OUR_COMMAND.findall(text)]
    assert {line.strip() for line in commands} <= set(COMMANDS)


def test_tests_that_run_the_commands_are_there() -> None:
    files = {words.split(",")[0] for words in COMMANDS.values() if words.startswith("tests/")}
    assert all((ROOT / name).exists() for name in files)


def test_nncf_script_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils.data import DataLoader, TensorDataset

    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text(
        """{"accuracy_aware_training": {"mode": "adaptive_compression_level", "params": {
        "maximal_absolute_accuracy_degradation": 0.5, "initial_training_phase_epochs": 1, "patience_epochs": 1,
        "maximal_total_epochs": 2}},
        "compression": {"algorithm": "magnitude_sparsity"}}"""
    )
    model = build_module(Imported(class_path="torch.nn.Linear", init_args={"in_features": 4, "out_features": 2}))
    train_loader = DataLoader(TensorDataset(torch.randn(8, 4), torch.zeros(8)), batch_size=4)

    def configure_optimizers() -> tuple[torch.optim.Optimizer, None]:
        return torch.optim.SGD(model.parameters(), lr=0.1), None

    names = {
        "model": model,
        "train_loader": train_loader,
        "train_epoch_fn": _train_epoch,
        "validate_fn": lambda model, epoch=None: 0.95,
        "configure_optimizers_fn": configure_optimizers,
    }
    (code,) = (text for _, text in blocks(README, "python") if "NNCFConfig" in text)
    exec(compile(code, str(README), "exec"), names)
    assert isinstance(names["model"], nn.Module)


def test_call_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def in_seconds(*given: Any, **settings: Any) -> CompressionResult:
        return compress(*given, **{**SHORT, **settings})

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(kedro_aat, "compress", in_seconds)
    (code,) = (text for _, text in blocks(README, "python") if "compress(" in text and "NNCFConfig" not in text)
    names: dict[str, Any] = {"__name__": "page"}
    torch.manual_seed(0)  # short settings find nothing for some initial weights
    exec(compile(code, str(README), "exec"), names)
    result = names["result"]
    assert result.outcome == "within_budget"
    assert result.compressed.onnx_bytes < result.baseline.onnx_bytes
    assert result.model(torch.zeros(1, 64)).shape == (1, 10)


def _train_epoch(controller: object, model: nn.Module, **_: object) -> float:
    return 0.0


@pytest.mark.parametrize("page", documents(), ids=lambda page: page.name)
def test_parameters_of_the_pages_are_known(page: Path) -> None:
    whole = OmegaConf.load(ROOT / "conf/base/parameters.yml")
    for title, text in blocks(page, "yaml"):
        shown = OmegaConf.create(text)
        if "aat" not in shown or "catalog" in title:
            continue
        merged = OmegaConf.merge(whole, shown)
        budget = merged.aat.budget
        if "max_relative_drop" in budget:
            del budget["max_drop"]  # only one of them may be given
        if "algorithm" in shown.aat.get("compression", {}):
            merged.aat.compression = shown.aat.compression  # another algorithm has other keys
        parse(AatSettings, OmegaConf.to_container(merged.aat), where=page.name)


def test_documentation_builds(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path / "site")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    assert (tmp_path / "site/tutorial.html").exists()
    shutil.rmtree(tmp_path / "site")


@pytest.mark.parametrize("page", [README, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)", page.read_text())
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert not missing
