"""The exporter as made-up tools, and a ledger of certificates."""

from __future__ import annotations

from pathlib import Path

import pytest

from kedro_aat.certificate.ledger import CertificateLedger
from kedro_aat.delivery import deliver as choice
from tests.delivery.made_up import Tools


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> Tools:
    tools = Tools()
    for name in ("files_of", "to_program", "evaluate_file", "count_zeros", "measure", "measure_latency"):
        monkeypatch.setattr(choice, name, getattr(tools, name))
    verifiers = {"verify_onnx": "ONNX", "verify_program": ".pt2", "verify_openvino": "OpenVINO"}
    for name, kind in verifiers.items():
        monkeypatch.setattr(
            choice,
            name,
            lambda file, model, inputs, *, tolerance, paths=None, kind=kind: tools.verify(
                kind, file, model, inputs, tolerance
            ),
        )
    for name, kind in {"OnnxModel": "ONNX", "read_back": ".pt2", "OpenvinoModel": "OpenVINO"}.items():
        monkeypatch.setattr(choice, name, lambda file, *_, kind=kind: (kind, file))
    monkeypatch.setattr(choice, "paths_of", lambda file: {})
    monkeypatch.setattr(choice, "quantized_spec", lambda model: model.spec)
    return tools


@pytest.fixture
def ledger(tmp_path: Path) -> CertificateLedger:
    return CertificateLedger(tmp_path / "ledger.json")
