"""A search whose weights are divided among ranks, against one on a single process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.ranks.commands import found_by, start_group
from tests.training.ranks.shared_search import search
from tests.training.ranks.test_ranks import assert_same

OPTIONS = {"batch_size": 33, "gradient_clip_norm": 0.5, "distillation": {}}


def test_divided_weights_find_what_a_single_process_finds(tmp_path: Path) -> None:
    """With BatchNorm, clipped gradients, a teacher, and a layer with fewer rows than fit on each rank."""
    commands = start_group(tmp_path / "two", 2, epochs=2, sharding="fully_shard", **OPTIONS)
    single = search(tmp_path / "one", epochs=2, **OPTIONS)
    assert_same(found_by(commands[0]), single)
    files = {path.name for path in (tmp_path / "two").rglob("checkpoint-000001/*")}
    assert {"model-00000-of-00002.safetensors", "model-00001-of-00002.safetensors"} <= files


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_four_ranks_find_what_a_single_process_finds(tmp_path: Path, norm: str) -> None:
    """The last layer has fewer rows than there are ranks."""
    commands = start_group(tmp_path / "four", 4, sharding="fully_shard", norm=norm, **OPTIONS)
    single = search(tmp_path / "one", norm=norm, **OPTIONS)
    assert_same(found_by(commands[0]), single)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((2, "fully_shard"), (4, "fully_shard")),
        ((4, "fully_shard"), (1, "none")),
        ((1, "none"), (2, "fully_shard")),
        ((2, "fully_shard"), (2, "none")),
    ],
)
def test_a_run_goes_on_with_other_ranks(tmp_path: Path, before: tuple[int, str], after: tuple[int, str]) -> None:
    """With the optimizer's momentum, and as if nothing had happened, but for rounding."""
    options = OPTIONS | {"optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.003}}}
    undisturbed = search(tmp_path / "undisturbed", epochs=5, **options)
    for epochs, (size, sharding) in ((4, before), (5, after)):
        commands = start_group(tmp_path / "run", size, epochs=epochs, sharding=sharding, **options)
        found = [command.wait() for command in commands]
        assert found == [0] * size, commands[0].output
    assert_same(found_by(commands[0]), undisturbed)
