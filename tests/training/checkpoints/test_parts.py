"""Files with rows that ranks have written, read by other numbers of ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.forks import script
from tests.ranks import Ranks

SCRIPT = """
from pathlib import Path
from tests.training.checkpoints.divided import {function}
{function}(Path({folder!r}))
"""


def ranks(function: str, folder: Path, size: int) -> list[str]:
    """What they print."""
    name = f"{function}-{size}.py"
    (folder / name).write_text(SCRIPT.format(function=function, folder=str(folder)))
    started = Ranks(script, name, folder=folder, size=size)
    assert started.wait() == [0] * size, started.outputs
    return started.outputs


@pytest.mark.slow
def test_any_number_of_ranks_reads_the_rows_that_others_wrote(tmp_path: Path) -> None:
    """Masks as bits, shadows, BatchNorm and AdamW included; some ranks hold fewer rows, or none."""
    ranks("write", tmp_path, 2)
    for size in (2, 3, 4):
        assert all("the same state" in output for output in ranks("compare", tmp_path, size))
