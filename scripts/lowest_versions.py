"""Prints the lowest version that pyproject.toml allows of each direct dependency, as constraints for pip.

`make test-lowest` installs them, so that a bound that is no release, or that another dependency rules out, is an error.

Usage: `python -m scripts.lowest_versions [EXTRA ...]`
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def lowest_versions(extras: Iterable[str] = ()) -> dict[str, str]:
    """The lowest versions of what the package and some extras need; requirements without a lower bound are left out.

    Args:
        extras: Names of the extras.

    Returns:
        Name of the package, as pyproject.toml spells it -> version.

    Raises:
        KeyError: pyproject.toml has no such extra.
    """
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    texts = [*project["dependencies"]]
    for extra in extras:
        texts += project["optional-dependencies"][extra]
    return {
        requirement.name: specifier.version
        for requirement in map(Requirement, texts)
        for specifier in requirement.specifier
        if specifier.operator == ">="
    }


if __name__ == "__main__":
    for name, version in lowest_versions(sys.argv[1:]).items():
        print(f"{name}=={version}")
