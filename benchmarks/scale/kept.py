"""Checkpoints that simulated searches leave on disk: where the number in a plan comes from.

python -m benchmarks.scale kept [--size 1]
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path

from benchmarks.scale.bars import Row
from benchmarks.simulator import SimulatedProblem, SimulatedRun, load_problems, with_tactics
from kedro_aat.planning.formulas import num_checkpoints
from kedro_aat.search.frontier import Frontier
from kedro_aat.search.policy import Problem, Stop
from kedro_aat.training.records import EpochRecord, pareto_front

PROBLEMS = Path(__file__).parents[1] / "search_problems.json"
EPOCHS = (3, 6, 12, 24, 60)


def rows(size: float) -> Iterator[Row]:
    """Simulates searches of several lengths.

    Args:
        size: In 60 problems.
    """
    problems, maximal_rate = load_problems(PROBLEMS)
    for epochs in EPOCHS:
        kept = [_kept(with_tactics(each), maximal_rate, epochs) for each in problems[: round(60 * size)]]
        yield Row(f"{epochs} epochs: checkpoints kept, median", statistics.median(kept), "")
        yield Row(f"{epochs} epochs: checkpoints kept, most", max(kept), "")
        yield Row(f"{epochs} epochs: checkpoints in a plan", num_checkpoints(epochs), "")


def _kept(problem: SimulatedProblem, maximal_rate: float, epochs: int) -> int:
    """Checkpoints at the end, by the rule of `fine_tune`."""
    run, policy = SimulatedRun(problem, 0), Frontier(maximal_total_epochs=epochs)
    state = policy.initial(
        Problem(
            minimal_rate=0.0,
            maximal_rate=maximal_rate,
            initial_rate=0.0,
            tolerated_drop=problem.drop,
            rankings=tuple(ranking for ranking, _ in problem.effects.cliffs),
            can_sample=True,
            can_distill=True,
            num_validation=problem.N,
        )
    )
    before, on_front, on_disk = state, set[int](), set[int]()
    history: list[EpochRecord] = []
    while not isinstance(move := policy.ask(state), Stop):
        result = run.answer(move)
        state = policy.tell(state, result)
        number = result.checkpoint
        history.append(
            EpochRecord(
                **result.model_dump(exclude={"early_stop"}),
                epoch=number,
                started_from=move.start_from,
                loss=None,
                learning_rate=None,
                lr_scale=1.0,
                best_rate=None,
                seconds=0.0,
                tactic=None,
            )
        )
        available = sorted(on_front | {number})
        on_front = pareto_front([history[each] for each in available], available)
        on_disk = (on_disk & ({0, number - 1} | on_front | state.needed | before.needed)) | {number}
        before = state
    return len(on_disk)
