"""Everything that the package imports is declared, so that no other package has to bring it along by chance."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from scripts.lowest_versions import lowest_versions

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# The `digits` pipeline and Kedro's settings belong to this repository's project, not to the plugin.
EXTRAS = ("report", "images", "openvino", "mlflow", "database", "testing", "project")


def imported_modules() -> set[str]:
    modules = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module.partition(".")[0])
    return modules - set(sys.stdlib_module_names) - {"kedro_aat"}


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_imports_are_declared() -> None:
    extras = [text for extra in EXTRAS for text in PROJECT["optional-dependencies"][extra]]
    declared = {normalized(Requirement(text).name) for text in (*PROJECT["dependencies"], *extras)}
    distributions = packages_distributions()
    undeclared = {
        module
        for module in imported_modules()
        if not declared & {normalized(name) for name in distributions.get(module, [module])}
    }
    assert undeclared == set()


def test_every_requirement_has_a_lower_bound_that_it_allows() -> None:
    """`make test-lowest` installs them; a requirement without one would be tested in its newest version alone."""
    versions = lowest_versions()
    requirements = {Requirement(text) for text in PROJECT["dependencies"]}
    assert set(versions) == {requirement.name for requirement in requirements}
    assert all(requirement.specifier.contains(versions[requirement.name]) for requirement in requirements)
    assert lowest_versions(["images"]) == versions | {"pillow": "11"}
    with pytest.raises(KeyError, match="nothing"):
        lowest_versions(["nothing"])


def test_locked_versions_are_allowed() -> None:
    locked = dict(re.findall(r"^([\w.-]+)==([^ ]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    locked |= dict(re.findall(r"^(torch)==(.+)", (ROOT / "requirements-torch.lock").read_text(), re.MULTILINE))
    for text in PROJECT["dependencies"]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(locked[normalized(requirement.name)]), text


def test_lock_has_an_exact_version_and_a_hash_for_every_package() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    entries = re.findall(r"^([\w.-]+)(==[^ ]+)?((?: \\\n {4}--hash=sha256:[0-9a-f]{64})*)$", lock, re.MULTILINE)
    assert len(entries) > 100
    assert [name for name, version, hashes in entries if not version or not hashes] == []
    # torch has builds of its own for each machine, with packages of their own, so it is installed by itself.
    assert "torch" not in {name for name, _, _ in entries}
    assert re.search(r"^torch==\d", (ROOT / "requirements-torch.lock").read_text(), re.MULTILINE)


def test_dependencies_are_imported() -> None:
    distributions = packages_distributions()
    imported = {normalized(name) for module in imported_modules() for name in distributions.get(module, [module])}
    declared = {normalized(Requirement(text).name) for text in PROJECT["dependencies"]}
    assert declared - imported == {"tensorboard"}  # for torch.utils.tensorboard
