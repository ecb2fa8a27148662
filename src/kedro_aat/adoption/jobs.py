"""Finds the parts of a project's `aat` pipeline, however its parameters, datasets and nodes are renamed."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from kedro_aat.adoption.checks import dispensable_inputs, exists
from kedro_aat.adoption.makers import producers_in
from kedro_aat.adoption.shared_files import our_nodes, stem
from kedro_aat.errors import ConfigurationError

_SEARCH = "finetune_adaptively"
_NODES = "kedro_aat.pipelines.aat."


@dataclass(frozen=True)
class Job:
    """One accuracy-aware training in a registered pipeline.

    Attributes:
        pipeline: Name of the pipeline in the registry.
        registered: All registered pipelines by name.
        search: The node of its first search.
    """

    pipeline: str
    registered: Mapping[str, Pipeline]
    search: Node

    @classmethod
    def find(cls, pipeline: str, registered: Mapping[str, Pipeline], namespace: str | None = None) -> Job:
        """The job of a pipeline, or that of one namespace.

        Args:
            pipeline: Name of the pipeline in the registry.
            registered: All registered pipelines by name.
            namespace: Namespace of its nodes; None for the only one, or the one without a namespace.

        Raises:
            ConfigurationError: If there is no such job, or several.
        """
        found = _named(registered[pipeline], _SEARCH)
        if namespace is not None or len(found) > 1:
            namespaces = ", ".join(sorted(node.namespace or "none" for node in found))
            found = [node for node in found if node.namespace == namespace]
            if not found:
                wanted = "no namespace" if namespace is None else f"the namespace {namespace}"
                raise ConfigurationError(
                    f"Pipeline {pipeline}",
                    [f"no search has {wanted}, but these exist: {namespaces or 'no search'}; give --namespace"],
                )
        if len(found) != 1:
            raise ConfigurationError(
                f"Pipeline {pipeline}", [f"it must have 1 search of kedro-aat, but has {len(found)}; give --pipeline"]
            )
        return cls(pipeline, registered, found[0])

    @property
    def settings(self) -> str:
        """Dotted key of its parameters, such as `aat`."""
        return _arguments(self.search)["settings"].removeprefix("params:")

    def node(self, function: str) -> Node:
        """The node with a function of ours after the search, such as `summarize_run`.

        Raises:
            ConfigurationError: If the pipeline has no such node.
        """
        after = self.registered[self.pipeline].from_nodes(self.search.name)
        found = [node for node in _named(after, function) if node.namespace == self.search.namespace]
        if not found:
            raise ConfigurationError(f"Pipeline {self.pipeline}", [f"it has no node {function}"])
        return found[0]

    def dataset(self, argument: str, function: str = _SEARCH) -> str:
        """Name of the dataset that a node of ours takes as an argument."""
        return _arguments(self.search if function == _SEARCH else self.node(function))[argument]

    @property
    def results(self) -> list[str]:
        """Names of the datasets with the results of the stages, in order."""
        arguments = _arguments(self.node("summarize_run"))
        wanted = ("search_result", "second_result", "third_result")
        return [arguments[name] for name in wanted if name in arguments]

    def nodes_from(
        self, first: Node, catalog: CatalogProtocol[Any, Any], *, only_ours: bool = False, repeats: bool = True
    ) -> tuple[list[str], list[str]]:
        """The nodes from one on, with those before that make what no dataset holds, such as data in memory.

        Args:
            first: The node to begin with.
            catalog: The project's catalog.
            only_ours: Whether nodes of the user's that read our results are left out.
            repeats: Whether nodes of ours that train, choose or export may be among those before it.

        Returns:
            Names of the registered pipelines that have these nodes, and names of the nodes.

        Raises:
            ConfigurationError: If such a node would be needed, and must not be.
        """
        own = self.registered[self.pipeline].from_nodes(first.name)
        nodes = {node.name: node for node in (our_nodes(own) if only_ours else own.nodes)}
        used = {self.pipeline}
        producers = producers_in(self.registered, self.pipeline)
        while missing := _missing(nodes.values(), catalog, producers.keys()):
            made = {output: producers[stem(output)] for output in missing}
            if not repeats and (again := {name: node for name, (node, _) in made.items() if _is_step(node)}):
                raise ConfigurationError(f"Pipeline {self.pipeline}", [_unsaved(*each) for each in again.items()])
            for node, name in made.values():
                nodes[node.name] = node
                used.add(name)
        return sorted(used), sorted(nodes)


def _missing(nodes: Collection[Node], catalog: CatalogProtocol[Any, Any], made: Collection[str]) -> list[str]:
    """What nodes read, that none of them makes and no dataset holds, although some other node makes it."""
    outputs = {stem(name) for node in nodes for name in node.outputs}
    inputs = {name for node in nodes for name in node.inputs if stem(name) not in outputs and stem(name) in made}
    dispensable = {name for name in dispensable_inputs(nodes, catalog) if name not in catalog}
    return sorted(name for name in inputs - dispensable if not exists(catalog, name))


def _is_step(node: Node) -> bool:
    """Whether a node of ours trains, chooses or exports, and does not only report."""
    return node.func.__module__.startswith(_NODES) and not node.func.__module__.endswith(".reporting")


def _unsaved(name: str, node: Node) -> str:
    return (
        f"{name} is not saved, so {node.name} would run again, which this command must not do. If the catalog has no "
        "entry for it, `kedro aat init --upgrade` adds one; then `kedro run` saves it, and trains nothing again that "
        "is in the checkpoint store. Repeat this command after that"
    )


def _named(pipeline: Pipeline, function: str) -> list[Node]:
    return [
        node
        for node in our_nodes(pipeline)
        if node.func.__name__ == function and node.func.__module__.startswith(_NODES)
    ]


def _arguments(node: Node) -> dict[str, str]:
    return dict(inspect.signature(node.func).bind(*node.inputs).arguments)
