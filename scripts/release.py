"""Builds and tries what is uploaded to a package index, then tags the commit. It pushes and uploads nothing.

    python -m scripts.release

Nothing but Python, git and pip is needed. Everything is built from the commit, not from the files in the folder.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

from scripts import release_trial

TOOLS = ("build==1.6.1", "twine==7.0.0")
# What the selection of tests needs besides the extra `testing`; see tests/conftest.py and [tool.pytest.ini_options].
TEST_TOOLS = ("filelock", "pytest-timeout", "pytest-xdist")
# Some of every kind that needs neither the sources nor other packages: laws of a search, torch, files of the package.
TESTS = (
    "tests/search/test_policy.py",
    "tests/test_budget.py",
    "tests/test_model_inputs.py",
    "tests/adoption/test_init.py",
)
_RELATIVE = re.compile(r"\]\((?!\w+:|#)([^()\s]+)\)")


def version_of(root: Path) -> str:
    """The version in `__init__.py`, which is not imported."""
    code = (root / "src/kedro_aat/__init__.py").read_text(encoding="utf-8")
    (version,) = re.findall(r'^__version__ = "(.+)"$', code, re.MULTILINE)
    return str(version)


def tag_of(version: str) -> str:
    """The tag of a version."""
    return f"v{version}"


def mistakes_in(root: Path) -> list[str]:
    """Lists why a commit cannot be released: changed files, the version, the changelog, or its tag.

    Args:
        root: The clone.
    """
    version, mistakes = version_of(root), []
    if changed := _git(root, "status", "--porcelain").splitlines():
        names = ", ".join(line[3:] for line in changed[:5])
        counted = "1 file is" if len(changed) == 1 else f"{len(changed)} files are"
        mistakes.append(f"{counted} changed or not in git: {names}; commit or remove what is not released")
    if not re.fullmatch(r"\d+\.\d+\.\d+(?:rc\d+)?", version):
        final = re.split(r"\.?dev|a|b|\+", version)[0]
        mistakes.append(f"__version__ is {version}: write the version that is released, such as {final}")
    heading = re.search(rf"(?m)^## {re.escape(version)}\b(.*)$", (root / "CHANGELOG.md").read_text(encoding="utf-8"))
    if heading is None:
        mistakes.append(f"CHANGELOG.md has no section '## {version} (YYYY-MM-DD)'")
    elif not re.fullmatch(r" \(\d{4}-\d\d-\d\d\)", heading[1]):
        mistakes.append(f"CHANGELOG.md has '## {version}{heading[1]}': write its date, as '## {version} (YYYY-MM-DD)'")
    if _git(root, "tag", "--list", tag_of(version)):
        mistakes.append(f"the tag {tag_of(version)} exists: a version is released once; take the next one")
    return mistakes


def relative_links(description: str) -> list[str]:
    """The links of a Markdown text that lead nowhere on a package index."""
    return _RELATIVE.findall(description)


def missing_in(sdist: Path, tracked: Iterable[str]) -> list[str]:
    """The files of a repository that a source distribution does not hold.

    Args:
        sdist: The archive.
        tracked: Paths in the repository.
    """
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    return sorted(set(tracked) - held)


def build(root: Path, folder: Path) -> tuple[Path, Path]:
    """Builds the source distribution and, from it, the wheel; checks both.

    Args:
        root: The clone.
        folder: An empty folder to work in.

    Returns:
        The source distribution and the wheel, in `folder / "dist"`.
    """
    tools = _environment(folder / "tools", TOOLS)
    tree, dist, again = folder / "tree", folder / "dist", folder / "again"
    archive = folder / "tree.tar"
    _git(root, "archive", "--output", str(archive), "HEAD")
    with tarfile.open(archive) as opened:
        opened.extractall(tree, filter="data")
    os.environ["SOURCE_DATE_EPOCH"] = _git(root, "log", "-1", "--format=%ct")
    _run(tools, "-m", "build", "--quiet", "--outdir", dist, tree)
    _run(tools, "-m", "build", "--quiet", "--wheel", "--outdir", again, tree)
    (sdist,), (wheel,), (other,) = dist.glob("*.tar.gz"), dist.glob("*.whl"), again.glob("*.whl")
    _run(tools, "-m", "twine", "check", "--strict", sdist, wheel)
    if _contents(wheel) != _contents(other):
        raise SystemExit("The wheel from the source distribution differs from the one from the commit")
    if missing := missing_in(sdist, _git(root, "ls-files").splitlines()):
        raise SystemExit(
            f"{len(missing)} files are not in the source distribution, such as {missing[0]}; see MANIFEST.in"
        )
    if links := relative_links(description_in(_metadata(wheel))):
        raise SystemExit(f"{len(links)} links of the description are relative, such as {links[0]}; see setup.py")
    return sdist, wheel


def try_out(root: Path, folder: Path, sdist: Path, wheel: Path) -> None:
    """Installs the wheel into an environment of its own, runs a new project there, and a selection of the tests.

    Args:
        root: The clone, whose lock names the version of torch.
        folder: A folder to work in.
        sdist: The source distribution, whose tests are run; its sources are removed.
        wheel: The wheel.
    """
    python = _environment(folder / "fresh", ("-r", str(root / "requirements-torch.lock"), str(wheel)))
    release_trial.try_project(python, folder / "project")
    _run(python, "-m", "pip", "install", "--quiet", f"{wheel}[testing]", *TEST_TOOLS)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    shutil.rmtree(unpacked / "src")
    _run(python, "-m", "pytest", "-n", "0", "-q", "-p", "no:cacheprovider", *TESTS, cwd=unpacked)


def description_in(metadata: bytes) -> str:
    """The text that an index shows, in the metadata of a package.

    Args:
        metadata: The file `METADATA` of a wheel, or `PKG-INFO` of a source distribution.
    """
    return metadata.decode().partition("\n\n")[2]


def _metadata(wheel: Path) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return archive.read(name)


def _contents(wheel: Path) -> dict[str, int]:
    with zipfile.ZipFile(wheel) as archive:
        return {each.filename: each.CRC for each in archive.infolist()}


def _environment(folder: Path, packages: Iterable[str]) -> Path:
    """Makes an environment with some packages, and returns its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    python = folder / "bin" / "python"
    _run(python, "-m", "pip", "install", "--quiet", *packages)
    return python


def _run(python: Path, *arguments: str | Path, cwd: Path | None = None) -> None:
    print("+", *arguments, flush=True)
    subprocess.run([python, *arguments], check=True, cwd=cwd, env=release_trial.environment())


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout.rstrip("\n")


def main(root: Path, arguments: list[str] | None = None) -> None:
    """Releases the commit of a clone.

    Raises:
        SystemExit: It cannot be released, with all reasons; nothing is tagged.
    """
    parser = argparse.ArgumentParser(prog="make release", description=__doc__)
    parser.add_argument("--no-tag", action="store_true", help="build and try only")
    options = parser.parse_args(arguments)
    if mistakes := mistakes_in(root):
        raise SystemExit("\n".join([f"{len(mistakes)} reasons not to release:", *(f"  - {each}" for each in mistakes)]))
    version = version_of(root)
    with tempfile.TemporaryDirectory(prefix="kedro-aat-release-") as name:
        sdist, wheel = build(root, Path(name))
        try_out(root, Path(name), sdist, wheel)
        kept = [Path(shutil.copy(path, _made(root / "dist"))) for path in (sdist, wheel)]
    shown = " ".join(str(path.relative_to(root)) for path in kept)
    if options.no_tag:
        print(f"Built and tried: {shown}. There is no tag.")
        return
    _git(root, "tag", "--annotate", tag_of(version), "--message", f"kedro-aat {version}")
    print(f"Tagged {tag_of(version)}. Nothing was pushed or uploaded. Next:")
    print(f"  git push origin HEAD {tag_of(version)}")
    print(f"  python -m twine upload {shown}")


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


if __name__ == "__main__":
    try:
        main(Path(__file__).parents[1])
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"Not released: {' '.join(map(str, error.cmd))} failed with {error.returncode}") from error
