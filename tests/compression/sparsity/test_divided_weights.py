"""Masks of weights that are divided among ranks, against those of a single process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.forks import script
from tests.ranks import Ranks

SCRIPT = """
from tests.compression.sparsity.divided import compare_masks
compare_masks({num_cases})
"""


@pytest.mark.parametrize(("size", "num_cases"), [(2, 3), pytest.param(4, 20, marks=pytest.mark.slow)])
def test_ranks_mask_what_a_single_process_masks(tmp_path: Path, size: int, num_cases: int) -> None:
    """All importances, at several rates, with ties and with fewer rows than ranks."""
    (tmp_path / "compare.py").write_text(SCRIPT.format(num_cases=num_cases))
    ranks = Ranks(script, "compare.py", folder=tmp_path, size=size)
    assert ranks.wait() == [0] * size, ranks.outputs
    assert all("the same masks" in output for output in ranks.outputs)
