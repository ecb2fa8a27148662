"""Makes the text that a package index shows, from the README; everything else is in pyproject.toml.

An index has none of the files that the README links to. With a `Source` under `[project.urls]` its links become
absolute, at the tag of the version. Without one they become text, since no address is made up.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from setuptools import setup

_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\((?!\w+:|#)([^()\s]+)\)")
_HERE = "The pages and figures that this text names are in the source distribution, in `docs/` and beside it."


def described(readme: str, source: str | None, version: str) -> str:
    """The README for an index, without relative links.

    Args:
        readme: Its text in the repository.
        source: Address of the repository, on GitHub or with paths like its; None if it has none.
        version: Version of the package, whose tag is `v` and the version.
    """

    def absolute(link: re.Match[str]) -> str:
        image, text, target = link.groups()
        if source is None:
            return "" if image else text
        return f"{image}[{text}]({source.rstrip('/')}/{'raw' if image else 'blob'}/v{version}/{target})"

    parts = re.split(r"(^```.*?^```$)", readme, flags=re.MULTILINE | re.DOTALL)  # every second one is code
    found = "".join(part if number % 2 else _LINK.sub(absolute, part) for number, part in enumerate(parts))
    if source is None:
        found = f"{found.rstrip()}\n\n{_HERE}\n"
    return re.sub(r"\n{3,}", "\n\n", found)


def _main() -> None:
    root = Path(__file__).parent
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    code = (root / "src/kedro_aat/__init__.py").read_text(encoding="utf-8")
    (version,) = re.findall(r'^__version__ = "(.+)"$', code, re.MULTILINE)
    readme = (root / "README.md").read_text(encoding="utf-8")
    setup(
        long_description=described(readme, project.get("urls", {}).get("Source"), version),
        long_description_content_type="text/markdown",
    )


if __name__ == "__main__":
    _main()
