"""The Python of the documentation runs, and what task pages say about a Kedro project is what they ran."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

from kedro_aat import CompressionResult
from kedro_aat.config import AatSettings
from kedro_aat.from_python.data import as_data
from tests.documents import README, ROOT, blocks, documents, missing_packages, program, titled_blocks
from tests.from_python.same_as_pipeline import require_same_as_the_pipeline

TASKS = sorted((ROOT / "docs/tasks").glob("*.md"))
_SEARCHES = re.compile(r"\bcompress\(")  # a search takes too long for every run of the tests


def _pages(*, search: bool) -> list[Path]:
    others = [page for page in documents() if page != README and page not in TASKS]
    return [page for page in others if bool(_SEARCHES.search(page.read_text(encoding="utf-8"))) == search]


def run(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Runs the blocks of a page as a script in an empty folder; returns its names."""
    monkeypatch.chdir(folder)
    script = folder / "page.py"
    script.write_text(program(page), encoding="utf-8")
    return runpy.run_path(str(script), run_name="__main__")


@pytest.mark.parametrize("page", _pages(search=False), ids=lambda page: page.name)
def test_python_of_the_pages(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(page, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("page", _pages(search=True), ids=lambda page: page.name)
def test_python_of_the_pages_that_search(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(page, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("page", TASKS, ids=lambda page: page.name)
def test_task(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = {name for title, _ in blocks(page, "python") for name in missing_packages(title)}
    if needed:
        pytest.skip(f"needs {', '.join(needed)}")
    names = run(page, tmp_path, monkeypatch)
    result = names["result"]
    assert isinstance(result, CompressionResult)
    assert result.settings == _settings_on(page)
    given: dict[str, Any] = {f"{split}_data": as_data(names[split], split) for split in ("train", "validation")}
    for name, value in names.items():  # functions that the settings name, since the page's own module is gone
        if getattr(value, "__module__", None) == "__main__":
            monkeypatch.setattr(f"__main__.{name}", value, raising=False)
    given |= {"baseline_model": names["model"], "test_data": "withheld"}
    require_same_as_the_pipeline(result, given, tmp_path, is_timed=True)


def _settings_on(page: Path) -> AatSettings:
    """The settings that a task page gives for a Kedro project, with the functions where the page has them."""
    text = titled_blocks(page, "yaml")["conf/base/parameters_aat.yml"]
    return AatSettings.model_validate(yaml.safe_load(re.sub(r"my_project\.\w+\.", "__main__.", text))["aat"])


@pytest.mark.parametrize("page", TASKS, ids=lambda page: page.name)
def test_tasks_are_linked(page: Path) -> None:
    assert f"(tasks/{page.name})" in (ROOT / "docs/index.md").read_text(encoding="utf-8")
    assert page.name == "text.md" or not [title for title, _ in blocks(page, "python") if title]
