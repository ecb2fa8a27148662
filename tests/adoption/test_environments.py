"""Environments of Kedro's: what they replace, and the folder in which they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from kedro.config import OmegaConfigLoader

from kedro_aat.adoption.commands import aat
from kedro_aat.adoption.environments import notes_on_environment
from tests.adoption.demo import Demo
from tests.documents import ROOT, titled_blocks

KEYS = ("aat", "small.aat", "absent")
BASE = """
aat: {seed: 1, budget: {max_drop: 0.1}, training: {batch_size: "${size}"}}
small: {aat: {seed: 1, goal: size}}
size: 8
"""


def _loader(folder: Path, prod: str, **options: Any) -> OmegaConfigLoader:
    for name, text in {"base": BASE, "prod": prod, "local": ""}.items():
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "parameters.yml").write_text(text)
    return OmegaConfigLoader(str(folder), **{"env": "prod", "base_env": "base", "default_run_env": "local"} | options)


def _notes(loader: OmegaConfigLoader) -> list[str]:
    parameters = loader["parameters"]
    notes = list(notes_on_environment(loader, KEYS, parameters))
    assert loader["parameters"] == parameters  # as before
    return notes


@pytest.mark.parametrize(
    ("prod", "starts"),
    [
        ("aat: {seed: 2}", ["conf/prod replaces aat, without 2 of the 3 keys in conf/base: budget, training. Kedro"]),
        (
            "small: {aat: {seed: 2}}",
            ["conf/prod replaces small.aat, without 1 of the 2 keys in conf/base: goal. Kedro"],
        ),
        (
            "small: {other: 1}",
            ["conf/prod replaces small.aat, without 2 of the 2 keys in conf/base: seed, goal. Kedro"],
        ),
        ("small: {aat: {seed: 2, goal: accuracy}}", []),
        ("other: 1", []),
    ],
)
def test_settings_that_an_environment_leaves_out_are_noted(prod: str, starts: list[str], tmp_path: Path) -> None:
    notes = _notes(_loader(tmp_path, prod))
    assert len(notes) == len(starts)
    for note, start in zip(notes, starts, strict=True):
        assert note.startswith(start)


def test_the_way_that_the_note_and_the_page_name_keeps_all_keys(tmp_path: Path) -> None:
    (note,) = _notes(_loader(tmp_path, "aat: {seed: 2}"))
    assert 'The entry "merge_strategy": {"parameters": "soft"}, added to CONFIG_LOADER_ARGS' in note
    settings: dict[str, Any] = {}
    exec(titled_blocks(ROOT / "docs/how-to/deploy.md", "python")["src/demo/settings.py"], settings)
    loader = OmegaConfigLoader(str(tmp_path), env="prod", **settings["CONFIG_LOADER_ARGS"])
    assert _notes(loader) == []
    assert loader["parameters"]["aat"] == {"seed": 2, "budget": {"max_drop": 0.1}, "training": {"batch_size": 8}}


def test_without_an_environment_there_is_nothing_to_note(tmp_path: Path) -> None:
    assert _notes(_loader(tmp_path, "aat: {seed: 2}", env=None)) == []


def test_a_base_that_needs_the_environment_is_left_alone(tmp_path: Path) -> None:
    loader = _loader(tmp_path, "size: 4\naat: {seed: 2}")
    (tmp_path / "base/parameters.yml").write_text(BASE.replace("size: 8", ""))
    assert list(notes_on_environment(loader, KEYS, {"aat": {"seed": 2}})) == []


def test_each_command_that_reads_an_environment_takes_a_folder_of_configuration() -> None:
    assert isinstance(aat, click.Group)
    groups = {name: command for name, command in aat.commands.items() if isinstance(command, click.Group)}
    commands = {name: command for name, command in aat.commands.items() if name not in groups}
    commands |= {f"{name} {part}": each for name, group in groups.items() for part, each in group.commands.items()}
    options = {name: {option.name for option in command.params} for name, command in commands.items()}
    assert {name for name, own in options.items() if "env" in own and "conf_source" not in own} == set()
    assert {name for name, own in options.items() if "conf_source" not in own} == {"schema"}


def test_commands_read_and_write_another_folder_of_configuration(demo: Demo) -> None:
    helped = demo.kedro("--help")
    assert "Project specific commands from kedro-aat\nCommands:\n  aat  Accuracy-aware training." in helped
    other = demo.folder.parent / "other conf"
    for name in ("base", "prod"):
        (other / name).mkdir(parents=True)
    output = demo.kedro("aat", "init", "--conf-source", str(other))
    assert f"kedro aat validate --conf-source '{other}'" in output
    assert (other / "base/catalog_aat.yml").exists()
    assert not (demo.base / "catalog_aat.yml").exists()
    (other / "prod/parameters_aat.yml").write_text("aat: { seed: 3 }\n")
    words = " ".join(demo.kedro("aat", "validate", "--conf-source", str(other), "--env", "prod", code=1).split())
    assert "Note: conf/prod replaces aat, without " in words
    assert "aat.budget: this key is required" in words
    assert "baseline_model: " in words  # of the catalog in the other folder
    assert "does not exist" in demo.kedro("aat", "certify", "--conf-source", "nowhere", code=2)
