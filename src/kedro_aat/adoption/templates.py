"""The files that `kedro aat init` writes into a project, with or without a namespace."""

from __future__ import annotations

import re
import textwrap
from importlib.resources import files
from pathlib import Path

from kedro_aat.errors import ConfigurationError

TEMPLATES = ("parameters_aat.yml", "catalog_aat.yml")

_IMPORT_LINE = "from kedro_aat.pipelines.aat import create_pipeline as aat"

_MODULE = '''"""Accuracy-aware training; Kedro finds this module by its location and name."""

from __future__ import annotations

{import_line}
from kedro.pipeline import Pipeline


def create_pipeline(**_: object) -> Pipeline:
    """The pipeline of kedro-aat."""
    return {call}
'''


def pipeline_name(namespace: str | None = None) -> str:
    """The name of the pipeline in a registry."""
    return "aat" if namespace is None else f"aat_{namespace}"


def registry_lines(namespace: str | None = None) -> tuple[str, str]:
    """The two lines for a handwritten `pipeline_registry.py`: the import, and the one inside `register_pipelines`."""
    return _IMPORT_LINE, f'pipelines["{pipeline_name(namespace)}"] = {_call(namespace)}'


def pipeline_module(namespace: str | None = None) -> str:
    """The text of a module that `find_pipelines` finds.

    `registry_lines` alone are not enough if a registry calls `find_pipelines(raise_errors=True)`, as Kedro's template
    does: it then refuses to run a pipeline that it did not find itself.
    """
    return _MODULE.format(import_line=_IMPORT_LINE, call=_call(namespace))


def _call(namespace: str | None) -> str:
    return "aat()" if namespace is None else f'aat(namespace="{namespace}")'


def template(name: str, namespace: str | None = None) -> str:
    """The text of one of `TEMPLATES`.

    Args:
        name: File name of the template.
        namespace: As for `in_namespace`.
    """
    return in_namespace(name, (files("kedro_aat.adoption") / "templates" / name).read_text(encoding="utf-8"), namespace)


def in_namespace(name: str, text: str, namespace: str | None) -> str:
    """The text of a template, or of what was made of it, in a namespace.

    Args:
        name: File name of the template.
        text: Its text.
        namespace: Prefix of the datasets' names (`namespace.dataset`), folder of their files, and key under which the
            parameters are; None for none.

    Raises:
        ConfigurationError: If the namespace is not a valid name.
    """
    if namespace is None:
        return text
    if not namespace.isidentifier():
        raise ConfigurationError("--namespace", [f"must be a name such as small_model, but got {namespace!r}"])
    if name.startswith("parameters"):
        return f"{namespace}:\n{textwrap.indent(text, '  ')}"
    text = re.sub(r"(?m)^(# )?([a-z_]+):$", rf"\1{namespace}.\2:", text)
    return re.sub(r"(filepath: data/\w+)/", rf"\1/{namespace}/", text)


def written_to(name: str, folder: Path, namespace: str | None = None) -> Path:
    """The file that a template becomes.

    Args:
        name: File name of the template.
        folder: A folder such as `conf/base`.
        namespace: Namespace, which is a part of the file's name; None for none.
    """
    suffix = "" if namespace is None else f"_{namespace}"
    return folder / name.replace(".yml", f"{suffix}.yml")


def write_new(texts: dict[Path, str], *, force: bool = False) -> None:
    """Writes text files.

    Args:
        texts: The text of each file.
        force: Whether to overwrite existing files.

    Raises:
        ConfigurationError: Lists the files that exist already; nothing is written then.
    """
    existing = [] if force else [path for path in texts if path.exists()]
    if existing:
        raise ConfigurationError(
            "Nothing was written",
            [f"{path} exists already; move it away, or use --force to overwrite it" for path in existing],
        )
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
