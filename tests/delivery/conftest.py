"""The exporter as made-up tools, and a ledger of certificates."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from kedro_aat.certificate.ledger import CertificateLedger
from kedro_aat.delivery import deliver as choice
from kedro_aat.delivery import judging
from tests.delivery.made_up import MadeProgram, MadeTarget, Tools


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> Tools:
    tools = Tools()
    for name in ("files_of", "evaluate_file", "count_zeros", "measure", "measure_latency"):
        monkeypatch.setattr(judging, name, getattr(tools, name))
    monkeypatch.setattr(choice, "to_program", tools.to_program)
    for name, kind in {"verify_onnx": "onnx", "verify_program": "pt2"}.items():
        monkeypatch.setattr(judging, name, partial(tools.verify, kind))
    monkeypatch.setattr(judging, "verify_file", lambda title, *args, **settings: tools.verify_read(*args, **settings))
    monkeypatch.setattr(judging, "OnnxModel", lambda file: ("onnx", file))
    monkeypatch.setattr(judging, "read_back", MadeProgram)
    monkeypatch.setattr(judging, "target_of", MadeTarget)
    monkeypatch.setattr(judging, "quantized_spec", lambda model: model.spec)
    return tools


@pytest.fixture
def ledger(tmp_path: Path) -> CertificateLedger:
    return CertificateLedger(tmp_path / "ledger.json")
