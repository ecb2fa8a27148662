"""What a package index shows and what is uploaded to it, and when the release refuses."""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.release import description_in, main, missing_in, mistakes_in, relative_links, version_of
from tests.documents import README, ROOT

described: Callable[[str, str | None, str], str] = runpy.run_path(str(ROOT / "setup.py"))["described"]
SOURCE = "https://example.org/owner/name"

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")


@pytest.mark.parametrize("source", [None, SOURCE, f"{SOURCE}/"])
def test_no_link_of_the_readme_is_relative_on_an_index(source: str | None) -> None:
    readme = README.read_text()
    assert len(relative_links(readme)) > 50
    text = described(readme, source, "1.2.3")
    assert relative_links(text) == []
    assert ("![Every epoch" in text) == (source is not None)
    assert "pip install 'path/to/kedro-aat[report]'" in text  # code is left alone
    assert text.count("```") == readme.count("```")


def test_links_lead_to_the_tag_in_the_repository() -> None:
    readme = (
        "![A figure](docs/a.png) [page](docs/b.md#c), [out](https://x.org) and [contents](#top)\n```\n[x](y)\n```\n"
    )
    assert described(readme, SOURCE, "1.2.3") == (
        f"![A figure]({SOURCE}/raw/v1.2.3/docs/a.png) [page]({SOURCE}/blob/v1.2.3/docs/b.md#c), "
        "[out](https://x.org) and [contents](#top)\n```\n[x](y)\n```\n"
    )
    without = described(readme, None, "1.2.3")
    assert without.startswith(" page, [out](https://x.org) and [contents](#top)\n```\n[x](y)\n```\n")
    assert "in the source distribution" in without


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository with a version that can be released."""
    root = tmp_path / "clone"
    (root / "src/kedro_aat").mkdir(parents=True)
    (root / "src/kedro_aat/__init__.py").write_text('"""A package."""\n\n__version__ = "1.2.0"\n')
    (root / "CHANGELOG.md").write_text("# Changelog\n\n## 1.2.0 (2026-11-27)\n\n## 1.1.0 (2026-11-01)\n")
    _git(root, "init", "--quiet")
    _commit(root)
    return root


def _git(root: Path, *arguments: str) -> str:
    names = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    command = ["git", *names, *arguments]
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout


def _commit(root: Path) -> None:
    _git(root, "add", "--all")
    _git(root, "commit", "--quiet", "--message", "A commit")


@needs_git
def test_a_commit_that_can_be_released(clone: Path) -> None:
    assert version_of(clone) == "1.2.0"
    assert mistakes_in(clone) == []


@needs_git
def test_all_reasons_not_to_release_at_once(clone: Path) -> None:
    (clone / "src/kedro_aat/__init__.py").write_text('__version__ = "1.3.0.dev0"\n')
    (clone / "new.txt").write_text("")
    assert mistakes_in(clone) == [
        "2 files are changed or not in git: src/kedro_aat/__init__.py, new.txt; commit or remove what is not released",
        "__version__ is 1.3.0.dev0: write the version that is released, such as 1.3.0",
        "CHANGELOG.md has no section '## 1.3.0.dev0 (YYYY-MM-DD)'",
    ]
    with pytest.raises(SystemExit, match=r"3 reasons not to release:\n  - 2 files are changed"):
        main(clone, [])
    assert _git(clone, "tag") == ""


@needs_git
def test_a_section_without_a_date_and_a_tag_that_exists(clone: Path) -> None:
    changelog = clone / "CHANGELOG.md"
    changelog.write_text(changelog.read_text().replace("(2026-11-27)", "(unreleased)"))
    _commit(clone)
    assert mistakes_in(clone) == [
        "CHANGELOG.md has '## 1.2.0 (unreleased)': write its date, as '## 1.2.0 (YYYY-MM-DD)'"
    ]
    changelog.write_text(changelog.read_text().replace("(unreleased)", "(2026-11-28)"))
    _commit(clone)
    _git(clone, "tag", "v1.2.0")
    assert mistakes_in(clone) == ["the tag v1.2.0 exists: a version is released once; take the next one"]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is no clone")
def test_the_source_distribution_holds_the_repository_and_no_link_of_its_text_is_relative(tmp_path: Path) -> None:
    tracked = _git(ROOT, "ls-files", "--cached").splitlines()
    tree = tmp_path / "tree"
    for name in tracked:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tree / name)
    # What runs make, and what a person configures for one machine, must stay out.
    for name in ("data/08_reporting/aat_summary.json", "conf/local/credentials.yml", "notes.txt"):
        (tree / name).write_text("secret")
    build = "import setuptools.build_meta, sys; print(setuptools.build_meta.build_sdist(sys.argv[1]))"
    command = [sys.executable, "-c", build, str(tmp_path)]
    done = subprocess.run(command, cwd=tree, check=True, capture_output=True, text=True)
    sdist = tmp_path / done.stdout.split()[-1]
    assert missing_in(sdist, tracked) == []
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames() if not archive.getmember(name).isdir()}
        (file,) = (
            file
            for name in archive.getnames()
            if name.count("/") == 1 and name.endswith("/PKG-INFO") and (file := archive.extractfile(name))
        )
        text = description_in(file.read())
    made = {name for name in held if ".egg-info/" in name} | {"PKG-INFO", "setup.cfg"}
    assert held - made == set(tracked)
    assert text.startswith("# kedro-aat")
    assert relative_links(text) == []
