"""Compares search policies on simulated problems: how small, how often the budget is truly broken, how fast.

    python benchmarks/search.py [problems.json] [--policies frontier uniform_decrease] [--epochs 40] [--seed 0 1]
        [--validation 360 10000 50000] [--first 100] [--z 0 0.5 1] [--noise paired] [--plain] [--regrows]
        [--test 2500 --alpha 0.05 --discordance 0.03]

`problems.json` has the format of search_problems.json in this folder; there is a table for each number of validation
examples, and one of all. The policy is told what the training loop would tell it, and the right learning rate and
ranking are drawn (simulator.py says how); `--noise unpaired --plain` is the problems as they were published, without
either. With `--regrows` the policy is told that what it removed learns again when it comes back, as single weights do.
Everything is compared with `uniform_decrease`, which starts at a rate of 0.5 and may go up to 0.95. `nncf` is
`uniform_decrease` as in NNCF, which stops before it trains at the maximal rate. A search that returns no model counts
as rate 0.

With `--test` each returned model is certified once on this number of freshly drawn test examples, and the table shows
how often a model is certified although it truly breaks its budget, with its 95% interval (Clopper and Pearson).
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that the file runs as a script

from benchmarks.certificate import Verdicts, draw, interval
from benchmarks.simulated_validation import VALIDATIONS, Noise
from benchmarks.simulator import Ending, SimulatedProblem, load_problems, simulate, with_tactics
from kedro_aat.search.attempts import u_of
from kedro_aat.search.frontier import Frontier
from kedro_aat.search.policy import Epoch, Stop
from kedro_aat.search.stepping import Interpolate, SteppingState, UniformDecrease

REFERENCE = "uniform_decrease"
# Where the stepping strategies start, and the highest rate that they may try: NNCF's defaults.
STEPPING_RATES = {"initial_rate": 0.5, "maximal_rate": 0.95}


@dataclass(frozen=True)
class Certification:
    """How the returned models are certified.

    Attributes:
        examples: Number of test examples, which are drawn for each model.
        alpha: Accepted probability of certifying a model that breaks its budget.
        discordance: Minimal share of examples on which only one of baseline and candidate is right.
    """

    examples: int
    alpha: float
    discordance: float


class Original(UniformDecrease):
    """`uniform_decrease` as in NNCF: it stops instead of training at the maximal rate."""

    def _change_rate(self, state: SteppingState) -> tuple[SteppingState, Epoch | Stop]:
        rate, _ = self._next_rate(state)
        if rate > state.problem.maximal_rate + 1e-9:
            return state, state.stop("The maximal rate was reached.")
        return super()._change_rate(state)


def policies(names: list[str], epochs: int, z: list[float]) -> dict[str, Any]:
    """Returns the policies to compare by name, `frontier` once for each z.

    Args:
        names: Names of policies, in addition to the reference.
        epochs: Limit on the number of epochs trained.
        z: Values of `acceptance_z`.
    """
    chosen: dict[str, Any] = {REFERENCE: UniformDecrease(maximal_total_epochs=epochs)}
    for name in names:
        if name == "frontier":
            chosen |= {
                f"frontier z={value:g}": Frontier(maximal_total_epochs=epochs, acceptance_z=value) for value in z
            }
        elif name == "interpolate":
            chosen[name] = Interpolate(maximal_total_epochs=epochs)
        elif name == "nncf":
            chosen[name] = Original(maximal_total_epochs=epochs)
    return chosen


def endings(
    name: str,
    policy: Any,
    problems: list[SimulatedProblem],
    seeds: list[int],
    *,
    maximal_rate: float,
    noise: Noise = "paired",
    regrows: bool = False,
) -> list[Ending]:
    """Runs one search for each seed and problem.

    Args:
        name: Name of the policy, for the progress bar.
        policy: The search policy.
        problems: The simulated problems.
        seeds: Seeds of the noise.
        maximal_rate: Highest rate that `frontier` may try.
        noise: What the validation measures.
        regrows: Whether the policy is told that what comes back learns again.
    """
    rates = {"initial_rate": 0.0, "maximal_rate": maximal_rate} if isinstance(policy, Frontier) else STEPPING_RATES
    runs = [(problem, seed) for seed in seeds for problem in problems]
    console = Console(stderr=True)
    return [
        simulate(policy, problem, seed, noise=noise, regrows=regrows, **rates)
        for problem, seed in track(runs, description=name, console=console, transient=True)
    ]


def shares(true_drop: float, discordance: float) -> tuple[float, float]:
    """Returns the shares of examples that the candidate loses and wins; they differ by the true drop."""
    won = max((discordance - true_drop) / 2, -true_drop, 0.0)
    return won + true_drop, won


def certified(found: list[Ending], test: Certification) -> list[bool]:
    """Returns for each search whether its model is certified, each on its own test examples."""
    generator = np.random.default_rng(0)
    budgets = {ending.tolerated_drop for ending in found}
    verdicts = {budget: Verdicts(test.examples, budget, test.alpha) for budget in budgets}
    judged = []
    for ending in found:
        if ending.true_drop is None:
            judged.append(False)
            continue
        ((lost, won),) = draw(generator, test.examples, *shares(ending.true_drop, test.discordance), runs=1)
        judged.append(verdicts[ending.tolerated_drop](int(lost), int(won)))
    return judged


def certificates(found: list[Ending], test: Certification) -> list[str]:
    """Formats how often models are certified, and how often they are although they truly break their budget."""
    judged = certified(found, test)
    wrong = sum(ending.broken for ending, is_certified in zip(found, judged, strict=True) if is_certified)
    low, high = interval(wrong, len(found))
    return [f"{statistics.mean(judged):.1%}", f"{wrong / len(found):.2%} ({low:.2%}-{high:.2%})"]


def row(name: str, found: list[Ending], reference: list[Ending]) -> list[str]:
    """Formats the results of one policy.

    Args:
        name: Name of the policy.
        found: The endings of its searches.
        reference: The endings of the reference on the same problems.
    """
    gains = [u_of(ending.rate) - u_of(other.rate) for ending, other in zip(found, reference, strict=True)]
    low, middle, high = np.quantile([ending.relative_rate for ending in found], [0.1, 0.5, 0.9])
    broken = statistics.mean(ending.broken for ending in found)
    speeds = [
        ending.epochs_to(other.rate) / max(1.0, other.epochs_to(other.rate))
        for ending, other in zip(found, reference, strict=True)
    ]
    return [
        name,
        f"{math.exp(statistics.mean(gains)):.3f}",
        f"{low:.2f} / {middle:.2f} / {high:.2f}",
        f"{broken:.1%} +- {math.sqrt(broken * (1 - broken) / len(found)):.1%}",
        f"{statistics.median(speeds):.2f}",
        f"{statistics.mean(ending.num_epochs for ending in found):.1f}",
        f"{statistics.mean(ending.rate == 0 for ending in found):.1%}",
        f"{1000 * statistics.mean(ending.seconds for ending in found):.2f}",
    ]


def table_of(title: str, found: dict[str, list[Ending]], test: Certification | None) -> Table:
    """Formats the results of all policies, by name."""
    columns = ["policy", *(f"size ratio to {name}" for name in found if name in {REFERENCE, "nncf"})]
    columns += ["r / r* at 10/50/90%", "truly broken", "epochs to its rate", "epochs", "returned at 0", "ms an epoch"]
    if test:
        columns += ["certified", "certified, truly broken"]
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="left" if column == "policy" else "right")
    for name, policy_endings in found.items():
        cells = row(name, policy_endings, found[REFERENCE])
        if "nncf" in found:
            cells.insert(2, row(name, policy_endings, found["nncf"])[1])
        table.add_row(*cells, *(certificates(policy_endings, test) if test else ()))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("problems", type=Path, nargs="?", default=Path(__file__).with_name("search_problems.json"))
    choices = [REFERENCE, "nncf", "interpolate", "frontier"]
    parser.add_argument("--policies", nargs="*", default=["nncf", "frontier"], choices=choices)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--validation", type=int, nargs="+", default=[10_000, 50_000])
    parser.add_argument("--first", type=int, help="only the first problems with each number of validation examples")
    parser.add_argument("--noise", default="paired", choices=list(VALIDATIONS))
    parser.add_argument("--plain", action="store_true", help="without a choice of learning rate, ranking, distillation")
    parser.add_argument("--regrows", action="store_true", help="what comes back learns again, as single weights do")
    parser.add_argument("--z", type=float, nargs="+", default=[0.0, 0.5, 1.0])
    parser.add_argument("--test", type=int, help="test examples on which each returned model is certified")
    parser.add_argument("--alpha", type=float, default=0.05)
    parser.add_argument("--discordance", type=float, default=0.03)
    arguments = parser.parse_args()

    problems, maximal_rate = load_problems(arguments.problems)
    by_size = {size: [each for each in problems if size == each.N][: arguments.first] for size in arguments.validation}
    problems = [problem for some in by_size.values() for problem in some]
    if not problems:
        parser.error(f"no problem in {arguments.problems} has {arguments.validation} validation examples")
    if not arguments.plain:
        problems = [with_tactics(problem) for problem in problems]
    found = {
        name: endings(
            name,
            policy,
            problems,
            arguments.seed,
            maximal_rate=maximal_rate,
            noise=arguments.noise,
            regrows=arguments.regrows,
        )
        for name, policy in policies(arguments.policies, arguments.epochs, arguments.z).items()
    }
    sizes = [problem.N for _ in arguments.seed for problem in problems]  # of the searches of each policy
    test = Certification(arguments.test, arguments.alpha, arguments.discordance) if arguments.test else None
    settings = f"{arguments.epochs} epochs, seeds {' '.join(map(str, arguments.seed))}, {arguments.noise} noise"
    console = Console(width=None if sys.stdout.isatty() else 220)
    for size, some in by_size.items():
        if 0 < len(some) < len(problems):
            part = {
                name: [ending for ending, its_size in zip(all_endings, sizes, strict=True) if its_size == size]
                for name, all_endings in found.items()
            }
            title = f"{len(some)} problems with {size:,} validation examples, {settings}"
            console.print(table_of(title, part, test))
    console.print(table_of(f"{len(problems)} problems, {settings}", found, test))


if __name__ == "__main__":
    main()
