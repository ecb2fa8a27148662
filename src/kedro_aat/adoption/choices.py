"""What `kedro aat choose` shows: the models that the searches kept, and a choice beside what is delivered."""

from __future__ import annotations

from typing import Any

from kedro.io import CatalogProtocol

from kedro_aat.adoption.beside import FOLDER, loaded_beside, remove_beside, written_beside
from kedro_aat.adoption.jobs import Job
from kedro_aat.budget import Outcome
from kedro_aat.errors import ConfigurationError
from kedro_aat.reading import reading
from kedro_aat.validated import parse

__all__ = ["last_drop", "print_choice", "remove_choice", "show_front", "written_beside"]


def show_front(job: Job, catalog: CatalogProtocol[Any, Any]) -> None:
    """Prints the models that the searches kept.

    Args:
        job: The job.
        catalog: The project's catalog.

    Raises:
        ConfigurationError: A result of the search is missing, or is none.
        MissingRunError: The store does not have the runs of the searches.
        DataError: A file cannot be read.
    """
    from pydantic import RootModel

    from kedro_aat.delivery.results import BaselineEvaluation, LaterSearchResult, SearchResult
    from kedro_aat.reporting.front import print_front

    evaluation, store = (job.dataset(argument) for argument in ("baseline_evaluation", "checkpoint_store"))
    first, *later = job.results
    if missing := [name for name in (first, evaluation, store) if not catalog.exists(name)]:
        raise ConfigurationError(
            "There is no search to choose from",
            [f"{', '.join(missing)}: not found; `kedro run --pipelines {job.pipeline}` creates them"],
        )
    names = [first, *(name for name in later if catalog.exists(name))]
    loaded = {name: _load(catalog, name) for name in (*names, evaluation, store)}
    results = [parse(RootModel[LaterSearchResult], loaded[name], where=name).root for name in names]
    searches = [result for result in results if isinstance(result, SearchResult)]
    loaded[store].require(*(result.run for result in searches))
    print_front(parse(BaselineEvaluation, loaded[evaluation], where=evaluation), searches, loaded[store])


def last_drop(job: Job, catalog: CatalogProtocol[Any, Any]) -> float:
    """The drop of the last choice that was not confirmed, in metric units.

    Args:
        job: The job.
        catalog: The project's catalog.

    Raises:
        ConfigurationError: If there is none, or if it has no model.
    """
    from kedro_aat.delivery.results import SearchResult

    name = job.results[0]
    if (result := loaded_beside(catalog, name)) is None:
        raise ConfigurationError(
            "There is no choice to confirm",
            [f"{name}: nothing was chosen before. Choose first: `kedro aat choose --max-drop DROP`"],
        )
    chosen = parse(SearchResult, result, where=name)
    if chosen.outcome is Outcome.INFEASIBLE:
        raise ConfigurationError(
            "The last choice has no model to deliver",
            [f"{name}: none keeps a budget of {chosen.budget.drop:.6g}. Choose with a larger --max-drop"],
        )
    return chosen.budget.drop


def print_choice(job: Job, catalog: CatalogProtocol[Any, Any], options: str) -> None:
    """Prints what the last choice gains and loses against what is delivered, and how it is confirmed.

    Args:
        job: The job.
        catalog: The project's catalog.
        options: The options that confirm the choice, as they are written on a command line.
    """
    from rich.console import Console

    from kedro_aat.delivery.results import Summary
    from kedro_aat.reporting.choice import print_comparison

    name = job.node("summarize_run").outputs[0]
    chosen = loaded_beside(catalog, name)
    console = Console()
    if chosen is None:
        console.print(f"The choice is not compared with what is delivered: {name} is not saved by the catalog.")
    else:
        delivered = parse(Summary, _load(catalog, name), where=name) if catalog.exists(name) else None
        choice = parse(Summary, chosen, where=name)
        print_comparison(delivered, choice, console)
        if choice.delivered is None:
            console.print("The delivered files are unchanged.")
            return
    console.print(
        f"It is in folders named {FOLDER} beside the delivered files, which are unchanged. "
        f"`kedro aat choose {options}` replaces them.",
        highlight=False,
        markup=False,
        soft_wrap=True,  # to be copied
    )


def remove_choice(job: Job, catalog: CatalogProtocol[Any, Any]) -> None:
    """Removes the folders of a choice that has become what is delivered.

    Args:
        job: The job.
        catalog: The project's catalog.
    """
    remove_beside(catalog, sorted(job.registered[job.pipeline].from_nodes(job.search.name).all_outputs()))


def _load(catalog: CatalogProtocol[Any, Any], name: str) -> Any:
    with reading(name):
        return catalog.load(name)
