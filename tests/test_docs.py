"""README and documentation name files that exist, all files, and nothing twice."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from kedro_aat.pipelines.aat import create_pipeline
from tests.documents import README, ROOT, blocks, documents

SOURCE = ROOT / "src/kedro_aat"
ARCHITECTURE = ROOT / "docs/architecture.md"
DECISIONS = ROOT / "docs/decisions"
ELSEWHERE = ("src/demo/", "data/", "conf/", "pipelines/aat/__init__.py", "path/to/")  # in a user's project
_CODE = re.compile(r"`([^`\s]+)`")


def paths_in(page: Path) -> Iterator[str]:
    """What stands in backticks and looks like a file or folder of this repository: `search/`, `docs/tutorial.md`."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for word in _CODE.findall(text):
        is_path = re.fullmatch(r"[\w./-]+", word) and ("/" in word or word.endswith((".py", ".md", ".toml")))
        if is_path and not word.startswith(ELSEWHERE):
            yield word


def tree_files() -> set[str]:
    """The files in the architecture's tree, relative to the package."""
    (tree,) = (text for _, text in blocks(ARCHITECTURE) if text.startswith("src/kedro_aat/\n"))
    folders: list[str] = []
    files = set()
    for line in tree.splitlines()[1:]:
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2 - 1
        del folders[depth:]
        if name.endswith("/"):
            folders.append(name)
        else:
            files.add("".join(folders) + name)
    return files


@pytest.mark.parametrize("page", [*documents(), ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_paths_exist(page: Path) -> None:
    missing = [path for path in paths_in(page) if not any((root / path).exists() for root in (ROOT, SOURCE))]
    assert not missing


def test_architecture_names_every_file() -> None:
    modules = {path for path in SOURCE.rglob("*") if path.suffix in (".py", ".jinja") and path.name != "__init__.py"}
    assert tree_files() == {path.relative_to(SOURCE).as_posix() for path in modules}


def test_architecture_has_the_layers_that_are_checked() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    assert "\n".join(layers) + "\n" in [text for _, text in blocks(ARCHITECTURE)]


def test_reference_lists_every_result_of_a_run() -> None:
    text = (ROOT / "docs/reference/files.md").read_text(encoding="utf-8")
    handles = {"checkpoint_store", "certificate_ledger", "tensorboard_log"}
    assert not {name for name in create_pipeline().all_outputs() | handles if f"`{name}`" not in text}


def test_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


def test_every_decision_has_a_status_and_a_place_in_the_index() -> None:
    pages = {page.name: page.read_text(encoding="utf-8") for page in DECISIONS.glob("*.md")}
    listed = re.findall(r"\]\(([\w-]+\.md)\)", pages.pop("index.md"))
    assert sorted(listed) == sorted(pages)
    for name, text in pages.items():
        assert re.match(r"# .+\n\n- Status: (accepted|superseded by .+)\n- Date: \d{4}-\d{2}-\d{2}\n", text), name


def test_every_fence_of_python_is_found() -> None:
    """What `blocks` does not find is executed by no test."""
    for page in documents():
        num_fences = len(
            re.findall(r"^\s*(?:```|~~~) *\{?\.?py(?:thon)?\b", page.read_text(encoding="utf-8"), re.MULTILINE)
        )
        assert num_fences == len([*blocks(page, "python")]), page.name


def pages_in_the_navigation() -> set[str]:
    """The pages that mkdocs.yml names."""
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    return set(re.findall(r"[\w/-]+\.md$", text.partition("\nnav:\n")[2], re.MULTILINE))


def test_every_page_is_in_the_navigation() -> None:
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    decisions = {page for page in pages if page.startswith("decisions/") and not page.endswith("index.md")}
    assert pages - decisions == pages_in_the_navigation()


def test_every_how_to_and_reference_is_linked_from_the_start_page() -> None:
    start = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    assert not {page for page in pages_in_the_navigation() - {"index.md"} if f"({page})" not in start}
