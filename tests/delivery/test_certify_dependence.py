"""Certificates for examples that depend on each other: groups and copies."""

from __future__ import annotations

import torch
from torch import Tensor

from kedro_aat.certificate.ledger import CertificateLedger
from kedro_aat.delivery.certify import certify_once
from kedro_aat.export.onnx_file import to_onnx
from tests.delivery.certifying import BUDGET, Threshold, export_with_drop, settings, split


def grouped_split(num_groups: int) -> dict[str, Tensor]:
    """Five copies of each of the equally spaced inputs, in a group of their own."""
    once = split(num_groups)
    return {name: values.repeat_interleave(5) for name, values in once.items()} | {
        "patient": torch.arange(num_groups).repeat_interleave(5)
    }


def test_groups_of_examples_are_tested(ledger: CertificateLedger) -> None:
    # 100 patients of whom none is lost: 500 independent examples would certify it, and 100 do not.
    arguments = (export_with_drop(0.0), Threshold(0.5), grouped_split(100), BUDGET)
    grouped = certify_once(*arguments, settings(group="patient"), ledger, alpha=0.05)
    assert not grouped.is_certified
    assert grouped.result.groups == 100
    assert "500 test examples in 100 groups" in grouped.words
    apart = CertificateLedger(ledger.path.with_name("other.json"))
    independent = certify_once(*arguments, settings(), apart, alpha=0.05)
    assert independent.is_certified


def test_copies_among_the_test_examples_are_said(ledger: CertificateLedger) -> None:
    class First(Threshold):
        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(inputs[:, 0])

    inputs = torch.cat([(torch.arange(400) / 400)[:, None], torch.rand(400, 11)], dim=1).repeat(2, 1)
    data = {"inputs": inputs, "targets": (inputs[:, 0] >= 0.5).long()}
    file = to_onnx(First(0.5).eval(), inputs[:4])
    verdict = certify_once(file, First(0.5), data, BUDGET, settings(), ledger, alpha=0.05)
    assert verdict.words.startswith("Measured drop 0 ")
    assert "test examples" in verdict.words.partition("Nothing was chosen on these examples.")[2]
