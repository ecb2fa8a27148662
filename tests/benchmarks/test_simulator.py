"""Simulated problems, compared with values computed by hand, and the benchmark that uses them."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks import search as benchmark
from benchmarks.simulator import Ending, SimulatedRun, Weights, load_problems, raised, simulate
from kedro_aat.search.frontier import Frontier
from kedro_aat.search.policy import Epoch
from tests.benchmarks.simulated_problems import problem

ROOT = Path(__file__).parents[2]
HALF = math.log(2)  # u at a rate of 0.5


def test_the_cap_is_the_baseline_at_first_and_falls_off_a_cliff() -> None:
    assert problem().cap(0.0) == pytest.approx(0.9)
    # x(1) = 0.01 (1 - 1/e) = 0.0063212; 0.8 (1 - exp(-x / 0.8)) = 0.0062963
    assert problem().cap(1.0) == pytest.approx(0.8937037, abs=1e-7)
    assert problem(s=100.0).cap(3.0) == pytest.approx(0.1)
    # The bonus of light compression is 0.002 (1 - exp(-3)) = 0.0019004, and x grows with it by a fifth.
    assert problem(beta=0.002).cap(1.0) == pytest.approx(0.9 + 0.0019004 - 0.0075496, abs=1e-6)


def test_a_raise_damages_by_a_power_of_its_size() -> None:
    weights = raised(problem(), Weights(), HALF)
    # d = 0.1 * 0.5^2 = 0.025, of which 0.2 * 0.5 recovers slowly
    assert (weights.u, weights.fast, weights.slow) == pytest.approx((HALF, 0.0225, 0.0025))
    beyond = raised(problem(rho=2.0, uc=HALF - 0.5), Weights(), HALF)
    assert beyond.fast == pytest.approx(0.0225 * math.e)


def test_damage_is_limited_to_what_the_model_knows() -> None:
    weights = raised(problem(K=10.0, p=1.0), Weights(penalty=0.001), HALF)
    assert weights.fast + weights.slow == pytest.approx(0.8)
    assert weights.fast / weights.slow == pytest.approx(9)
    assert weights.penalty == 0.001


def test_lowering_the_rate_recovers_nothing() -> None:
    assert raised(problem(), Weights(u=1.0, fast=0.02, slow=0.01), HALF) == Weights(u=HALF, fast=0.02, slow=0.01)


def test_damage_recovers_with_the_root_of_the_learning_rate() -> None:
    run = SimulatedRun(problem(breset=0.04, lam=0.008), seed=0)
    run.answer(Epoch(train=False))
    run.answer(Epoch(lr_scale=0.25, new_optimizer=True))
    # 0.04 * 0.25 of damage, which recovers in 1 / sqrt(0.25) = 2 epochs
    recovered = run.checkpoints[-1]
    assert (recovered.fast, recovered.slow, recovered.penalty) == pytest.approx((0.01 * math.exp(-0.5), 0.0, 0.002))
    assert run.truths[-1] == pytest.approx(0.9 - 0.01 * math.exp(-0.5) - 0.002)


def test_slow_damage_takes_six_times_as_long_and_longer_at_high_rates() -> None:
    run = SimulatedRun(problem(), seed=0, initial_rate=0.5)
    run.answer(Epoch(train=False))
    run.answer(Epoch())
    time = 1 + 0.3 * HALF
    recovered = run.checkpoints[-1]
    assert (recovered.fast, recovered.slow) == pytest.approx(
        (0.0225 * math.exp(-1 / time), 0.0025 * math.exp(-1 / 6 / time))
    )


def test_two_small_raises_damage_less_than_a_large_one() -> None:
    def damage(*rates: float) -> float:
        run = SimulatedRun(problem(), seed=0)
        run.answer(Epoch(train=False, rate_path=rates))
        return run.checkpoints[-1].fast + run.checkpoints[-1].slow

    assert damage(0.5) == pytest.approx(0.1 * 0.5**2)
    assert damage(0.25, 0.5) == pytest.approx(0.1 * (0.25**2 + (1 / 3) ** 2))


def test_a_validation_changes_no_weights() -> None:
    run = SimulatedRun(problem(jit=0.01, breset=0.01), seed=0, initial_rate=0.5)
    run.answer(Epoch(train=False, new_optimizer=True))
    run.answer(Epoch(train=False))
    assert run.checkpoints[0] == run.checkpoints[1] == raised(problem(), Weights(), HALF)
    assert run.truths[0] == run.truths[1]


@pytest.mark.parametrize("examples", [360, 10_000])
def test_measured_accuracies_are_counts_of_examples(examples: int) -> None:
    run = SimulatedRun(problem(N=examples), seed=3, noise="unpaired")
    results = [run.answer(Epoch()) for _ in range(20)]
    for result in results:
        assert result.metric is not None
        count = result.metric * examples
        assert count == pytest.approx(round(count), abs=1e-6)
        assert result.standard_error == pytest.approx(math.sqrt(result.metric * (1 - result.metric) / examples))
        assert result.margin == pytest.approx(result.metric - run.budget.lowest_tolerated)
    spread = math.sqrt(0.9 * 0.1 / examples)
    assert len({result.metric for result in results}) > 1
    assert all(result.metric == pytest.approx(0.9, abs=6 * spread) for result in results)


def test_measured_accuracies_stay_between_0_and_1() -> None:
    run = SimulatedRun(problem(A0=1.0, N=360), seed=0, noise="unpaired")
    metrics = [run.answer(Epoch()).metric for _ in range(50)]
    assert max(metric for metric in metrics if metric is not None) == 1.0


def test_a_seed_determines_the_run() -> None:
    def metrics(seed: int, number: int = 7) -> list[float | None]:
        run = SimulatedRun(problem(id=number, jit=0.01), seed)
        return [run.answer(Epoch(rate_path=(0.1 * step,))).metric for step in range(1, 6)]

    assert metrics(0) == metrics(0)
    assert metrics(0) != metrics(1)
    assert metrics(0) != metrics(0, number=8)
    ending = simulate(Frontier(maximal_total_epochs=10), problem(), 0, maximal_rate=0.99, initial_rate=0.0)
    again = simulate(Frontier(maximal_total_epochs=10), problem(), 0, maximal_rate=0.99, initial_rate=0.0)
    assert ending == again


def test_restored_checkpoints_are_the_same_state() -> None:
    run = SimulatedRun(problem(lam=0.004), seed=0)
    run.answer(Epoch(rate_path=(0.5,)))
    run.answer(Epoch(rate_path=(0.8,)))
    run.answer(Epoch(train=False, start_from=0))
    assert run.checkpoints[2] == run.checkpoints[0]
    assert run.truths[2] == run.truths[0]
    run.answer(Epoch(start_from=1))
    other = SimulatedRun(problem(lam=0.004), seed=5)
    for move in (Epoch(rate_path=(0.5,)), Epoch(rate_path=(0.8,)), Epoch()):
        other.answer(move)
    assert other.checkpoints[-1] == run.checkpoints[-1]


def test_a_search_that_returns_nothing_counts_as_rate_0() -> None:
    ending = simulate(Frontier(maximal_total_epochs=0), problem(), 0, maximal_rate=0.99, initial_rate=0.5)
    assert (ending.rate, ending.relative_rate, ending.broken, ending.num_epochs) == (0.0, 0.0, False, 0)
    assert ending.true_drop is None


def test_the_best_rate_separates_rates_that_keep_the_budget_from_those_that_break_it() -> None:
    problems, maximal_rate = load_problems(ROOT / "benchmarks" / "search_problems.json")
    limit = -math.log1p(-maximal_rate)
    assert len(problems) == 500
    for drawn in problems:
        lowest = drawn.A0 - drawn.drop
        assert drawn.cap(drawn.ustar - 1e-3) > lowest - 1e-6
        assert drawn.ustar == pytest.approx(limit) or drawn.cap(drawn.ustar + 1e-3) < lowest + 1e-6


@pytest.mark.parametrize("true_drop", [-0.2, -0.01, 0.0, 0.01, 0.2])
def test_lost_and_won_shares_differ_by_the_true_drop(true_drop: float) -> None:
    lost, won = benchmark.shares(true_drop, discordance=0.03)
    assert lost - won == pytest.approx(true_drop)
    assert lost + won == pytest.approx(max(0.03, abs(true_drop)))
    assert min(lost, won) >= 0


def test_certificates_distinguish_good_models_from_broken_ones() -> None:
    def ended(true_drop: float | None) -> Ending:
        broken = true_drop is not None and true_drop > 0.01
        return Ending(
            rate=0.5, relative_rate=1.0, broken=broken, true_drop=true_drop, tolerated_drop=0.01, rises=(), num_epochs=1
        )

    found = [ended(-0.02), ended(0.05), ended(None)]
    assert benchmark.certified(found, benchmark.Certification(examples=2500, alpha=0.05, discordance=0.03)) == [
        True,
        False,
        False,
    ]


def three_problems(folder: Path) -> Path:
    rows = [asdict(problem(id=number)) for number in range(3)]
    for row in rows:
        del row["c0"], row["effects"]
    path = folder / "three.json"
    path.write_text(json.dumps({"u_max": 4.6, "floor_accuracy": 0.1, "problems": rows}))
    return path


def test_the_benchmark_compares_policies_on_a_file_of_problems(tmp_path: Path) -> None:
    script, problems = ROOT / "benchmarks" / "search.py", three_problems(tmp_path)
    done = subprocess.run(
        [sys.executable, script, problems, "--epochs", "12", "--z", "0.5", "--test", "400"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert "3 problems, 12 epochs, seeds 0" in done.stdout
    for name in ("uniform_decrease", "nncf", "frontier z=0.5"):
        assert name in done.stdout


def test_no_problem_with_this_number_of_examples_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["search.py", str(three_problems(tmp_path)), "--validation", "360"])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert "has [360] validation examples" in capsys.readouterr().err
