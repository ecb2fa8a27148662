"""Which of Kedro's runners can run several models at a time."""

from __future__ import annotations

from kedro.pipeline import Pipeline

from kedro_aat.adoption.shared_files import our_nodes


def runner_mistakes(runner: str, pipeline: Pipeline) -> list[str]:
    """Says why a runner cannot run a pipeline; empty if it can.

    Threads share torch's random generators, and torch.export cannot run in two threads at a time.

    Args:
        runner: Name of Kedro's runner, or how it describes itself.
        pipeline: The nodes of one run.
    """
    models = sorted({node.namespace or "no namespace" for node in our_nodes(pipeline, "kedro_aat.pipelines.aat.")})
    if "ThreadRunner" not in runner or len(models) < 2:
        return []
    return [
        f"--runner: the run compresses {len(models)} models ({', '.join(models)}); in the threads of ThreadRunner they "
        "would draw from the same random numbers and break each other's export. Use ParallelRunner, which has "
        "processes, or SequentialRunner"
    ]
