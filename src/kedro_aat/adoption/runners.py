"""Which of Kedro's runners can run several models at a time."""

from __future__ import annotations

from multiprocessing.reduction import ForkingPickler
from pickle import PicklingError

from kedro.io import DataCatalog, DatasetError
from kedro.pipeline import Pipeline

from kedro_aat.adoption.shared_files import our_nodes
from kedro_aat.errors import first_of

_MAX_LISTED = 3


def runner_mistakes(runner: str, pipeline: Pipeline, catalog: DataCatalog) -> list[str]:
    """Says why a runner cannot run a pipeline; empty if it can.

    Threads share torch's random generators, and torch.export cannot run in two threads at a time. Processes get their
    datasets by pickle, which the classes of kedro-datasets refuse with the clients of some storages.

    Args:
        runner: Name of Kedro's runner, or how it describes itself.
        pipeline: The nodes of one run.
        catalog: Its datasets.
    """
    models = sorted({node.namespace or "no namespace" for node in our_nodes(pipeline, "kedro_aat.pipelines.aat.")})
    if "ParallelRunner" in runner and models:
        return _not_for_processes(pipeline, catalog)
    if "ThreadRunner" not in runner or len(models) < 2:
        return []
    return [
        f"--runner: the run compresses {len(models)} models ({', '.join(models)}); in the threads of ThreadRunner they "
        "would draw from the same random numbers and break each other's export. Use ParallelRunner, which has "
        "processes, or SequentialRunner"
    ]


def _not_for_processes(pipeline: Pipeline, catalog: DataCatalog) -> list[str]:
    remote: dict[str, list[str]] = {}
    for name in sorted(pipeline.datasets()):
        try:
            dataset = catalog.get(name)
        except DatasetError:  # its entry is a mistake of its own
            continue
        protocol = getattr(dataset, "_protocol", "file")
        if protocol == "file":
            continue
        try:
            ForkingPickler.dumps(dataset)
        except (AttributeError, PicklingError):  # as Kedro asks
            remote.setdefault(protocol, []).append(name)
    return [
        f"--runner: ParallelRunner cannot give its processes {len(names)} of the datasets at {protocol}:// "
        f"({first_of(names, _MAX_LISTED)}): their classes cannot be "
        "pickled there. Use SequentialRunner, or start a `kedro run --namespaces NAME` for each model"
        for protocol, names in remote.items()
    ]
