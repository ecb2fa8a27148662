"""Kedro's dataset factories for what the pipeline writes: one file of entries for the models of all namespaces.

A factory names one of our results, such as `{namespace}.compressed_onnx`, and never `{namespace}.{name}`, which would
catch every dataset that a project has in a namespace. What stands in a catalog under its full name goes before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from kedro.io import DataCatalog
from kedro.pipeline import Pipeline

from kedro_aat.adoption.shared_files import our_nodes, stem
from kedro_aat.adoption.templates import template

FILE = "catalog_namespaces_aat.yml"  # no namespace gives catalog_aat.yml this name

_CATALOG = "catalog_aat.yml"
_RESULTS = "# Models and files that the pipeline writes"
_HEADING = f"""# What the `aat` pipeline writes, for the models of all namespaces: Kedro's dataset factories. The entry
# "{{namespace}}.compressed_onnx" makes `small.compressed_onnx`. An entry with the full name, in any file of the
# catalog, goes before it. `kedro catalog resolve-patterns` shows what they make. The layers are for Kedro-Viz.
#
# A filepath may be an address such as s3://bucket/{{namespace}}/name, with `credentials`; that of checkpoint_store
# stays a folder here, with an address as its `mirror`. All but the handles (checkpoint_store, certificate_ledger,
# tensorboard_log) take `versioned: true`.

{_RESULTS}
"""
_NAME = re.compile(r"(?m)^([a-z_]+):$")


def factory_of(name: str) -> str:
    """The key of the factory that makes a result in any namespace."""
    return f"{{namespace}}.{name}"


def results() -> list[str]:
    """The names of all that the pipeline writes, without a namespace."""
    return [name for _, name in _blocks(template(_CATALOG)) if name is not None]


def factories(left_out: Iterable[str] = ()) -> str:
    """The text of the file with the factories.

    Args:
        left_out: Names of results that get none.
    """
    text = "\n\n".join(_with_headings(_blocks(template(_CATALOG)), set(left_out)))
    text = _NAME.sub(lambda found: f'"{factory_of(found[1])}":', text)
    text = re.sub(r"(filepath: data/\w+)/", r"\1/{namespace}/", text)
    return f"{_HEADING}\n{text}\n"


def without_results(text: str, covered: Iterable[str]) -> str:
    """The template of the catalog, or what was made of it, without results that factories make.

    Args:
        text: Its text, without a namespace.
        covered: Names of these results.
    """
    covered = set(covered)
    own = text[: text.index(_RESULTS)]
    left = _with_headings(_blocks(text), covered)
    if covered:
        own += f"# What the pipeline writes is in {FILE}, for all namespaces. An entry here goes before it.\n"
    if not left:
        return own
    between = "\n" if covered else ""
    return f"{own}{between}{_RESULTS}\n\n" + "\n\n".join(left) + "\n"


def covered_by(text: str) -> set[str]:
    """The names of the results for which a file of the catalog has a factory."""
    return {name for name in results() if re.search(rf'(?m)^["\']?{re.escape(factory_of(name))}["\']?:', text)}


def others_in_namespaces(registered: Mapping[str, Pipeline]) -> dict[str, str]:
    """Datasets of the project that are called like a result, in a namespace that has no model of ours.

    Args:
        registered: The project's pipelines.

    Returns:
        Full name of the dataset -> name of the result.
    """
    ours = {name for pipeline in registered.values() for node in our_nodes(pipeline) for name in _data_of(node)}
    known = set(results())
    return {
        name: last
        for pipeline in registered.values()
        for name in map(stem, sorted(pipeline.datasets()))
        if name not in ours and "." in name and ":" not in name and (last := name.rpartition(".")[2]) in known
    }


def notes_on_factories(registered: Mapping[str, Pipeline], catalog: DataCatalog) -> Iterator[str]:
    """Says which datasets of the project a factory of ours takes for a result.

    Args:
        registered: The project's pipelines.
        catalog: The project's datasets.
    """
    resolver = catalog.config_resolver
    for name, result in others_in_namespaces(registered).items():
        if name not in resolver.config and resolver.match_dataset_pattern(name) == factory_of(result):
            yield (
                f"{name} is none of ours, but the factory {factory_of(result)} in {FILE} writes it to a file. "
                f"Give it an entry of its own, such as `{name}: {{ type: MemoryDataset }}`, or another name."
            )


def _data_of(node: object) -> Iterator[str]:
    for names in (getattr(node, "inputs", ()), getattr(node, "outputs", ())):
        yield from map(stem, names)


def _blocks(text: str) -> list[tuple[str, str | None]]:
    """The results in a catalog, with their comments, and the headings between them, whose name is None."""
    parts = text[text.index(_RESULTS) :].strip("\n").split("\n\n")[1:]
    return [(part, found[1] if (found := _NAME.search(part)) else None) for part in parts]


def _with_headings(blocks: list[tuple[str, str | None]], left_out: set[str]) -> list[str]:
    """The texts of blocks, without those of some names, and without headings of nothing."""
    kept = [(text, name) for text, name in blocks if name not in left_out]
    following = [*kept[1:], ("", None)]
    return [text for (text, name), (_, after) in zip(kept, following, strict=True) if name or after]
