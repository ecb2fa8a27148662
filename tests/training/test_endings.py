"""Every outcome of the frontier search, through the public loop.

The accuracy of the scripted model depends on its rate alone. It is measured on a validation set that is drawn once:
each example is right up to a rate of its own. Thus scores are paired and a small set is coarse, as in reality.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kedro_aat import AdaptiveCompressionTrainingLoop, Evaluation, Outcome
from kedro_aat.budget import Budget
from kedro_aat.errors import ConfigurationError, DataError
from kedro_aat.training.checkpoints import CheckpointStore
from kedro_aat.training.loop import adaptive_problem
from tests.scripted import ScriptedController, ScriptedModel, train_epoch

MAXIMAL_RATE = 0.98
DROP = 0.02
NUM_EXAMPLES = 4000


class Examples:
    """Examples, each of which is right up to a rate of its own.

    Args:
        boundary: Rate at which the expected accuracy is `DROP` below that at rate 0.
        num_examples: Number of examples.
        seed: Seed of the examples.
        noise: Share of examples that are drawn again in each epoch, whatever the rate.
    """

    def __init__(self, boundary: float, num_examples: int = NUM_EXAMPLES, seed: int = 0, noise: float = 0.0) -> None:
        generator = np.random.default_rng(seed)
        # The lost share grows exponentially in u = -ln(1 - rate), and is DROP at the boundary.
        lost = generator.random(num_examples) / 0.95
        u = -math.log1p(-boundary) + np.log(np.maximum(lost, 1e-12) / DROP) / 2
        self.limits = torch.tensor(np.where(generator.random(num_examples) < 0.95, u, -1.0))
        self.noise = noise
        self.generator = torch.Generator().manual_seed(seed)

    def right_at(self, rate: float) -> Tensor:
        """1.0 for each example that is right at this rate without noise, else 0.0."""
        return (self.limits >= -math.log1p(-rate)).double()

    def evaluate(self, rate: float) -> Evaluation:
        right = self.right_at(rate)
        if self.noise:
            swapped = torch.rand(len(right), generator=self.generator) < self.noise
            right = torch.where(swapped, (torch.rand(len(right), generator=self.generator) < 0.5).double(), right)
        return Evaluation(float(right.mean()), right)

    def true_drop(self, rate: float) -> float:
        """Drop of the accuracy without noise."""
        return float(self.right_at(0.0).mean()) - float(self.right_at(rate).mean())


def search(
    examples: Examples,
    folder: Path,
    *,
    drop: float = DROP,
    epochs: int = 40,
    score: Callable[[Evaluation], Evaluation | float] = lambda evaluation: evaluation,
    minimal_rate: float = 0.0,
    **params: Any,
) -> AdaptiveCompressionTrainingLoop:
    """Runs a search to its end.

    Args:
        examples: Validation set.
        folder: Folder of logs and checkpoints.
        drop: Tolerated drop of the metric.
        epochs: Limit of epochs.
        score: Turns an evaluation into what the validation function returns.
        minimal_rate: Lowest rate that is worth returning.
        **params: Further parameters of the mode.
    """
    model = ScriptedModel(0.0)
    controller: Any = ScriptedController(model)
    config = {
        "accuracy_aware_training": {
            "mode": "adaptive_compression_level",
            "params": {
                "maximal_absolute_accuracy_degradation": drop,
                "search": {"kind": "frontier", "maximal_total_epochs": epochs},
                **params,
            },
        }
    }
    loop = AdaptiveCompressionTrainingLoop(
        config,
        controller,
        score(examples.evaluate(0.0)),
        verbose=False,
        minimal_compression_rate=minimal_rate,
        maximal_compression_rate=MAXIMAL_RATE,
    )
    loop.run(model, train_epoch, lambda model: score(examples.evaluate(float(model.state[0]))), log_dir=folder)
    return loop


def rate_of(loop: AdaptiveCompressionTrainingLoop) -> float:
    return loop.statistics.compression_rate


def test_budget_never_met(tmp_path: Path) -> None:
    loop = search(Examples(0.2), tmp_path, minimal_rate=0.9)
    assert loop.outcome is Outcome.INFEASIBLE
    assert "allow a larger drop" in loop.outcome.advice
    assert rate_of(loop) == 0
    assert len(loop.history) > 1  # rates were tried


def test_budget_met_at_once(tmp_path: Path) -> None:
    loop = search(Examples(0.9999), tmp_path)
    assert loop.outcome is Outcome.WITHIN_BUDGET
    assert rate_of(loop) == pytest.approx(MAXIMAL_RATE)


def test_budget_met_only_at_the_maximal_rate(tmp_path: Path) -> None:
    """The minimal rate is the maximal one, which keeps the budget."""
    loop = search(Examples(MAXIMAL_RATE + 0.005), tmp_path, minimal_rate=MAXIMAL_RATE)
    assert loop.outcome is Outcome.WITHIN_BUDGET
    assert rate_of(loop) == pytest.approx(MAXIMAL_RATE)


@pytest.mark.parametrize("boundary", [0.3, 0.8, 0.95])
def test_budget_met_up_to_a_boundary(tmp_path: Path, boundary: float) -> None:
    loop = search(Examples(boundary), tmp_path)
    assert loop.outcome is Outcome.WITHIN_BUDGET
    assert -math.log1p(-rate_of(loop)) == pytest.approx(-math.log1p(-boundary), abs=0.25)


@pytest.mark.parametrize("seed", range(5))
def test_heavy_noise_exceeds_the_true_budget_only_slightly(tmp_path: Path, seed: int) -> None:
    examples = Examples(0.8, num_examples=1000, seed=seed, noise=0.1)
    loop = search(examples, tmp_path)
    assert loop.outcome is Outcome.WITHIN_BUDGET
    # The luckiest epoch is about two standard errors of 0.01 too good; the search must not return it for that.
    assert examples.true_drop(rate_of(loop)) < 1.5 * DROP
    assert rate_of(loop) > 0.3


def test_lower_is_better(tmp_path: Path) -> None:
    def errors(evaluation: Evaluation) -> Evaluation:
        assert evaluation.scores is not None
        return Evaluation(1 - evaluation.metric, 1 - evaluation.scores)

    loop = search(Examples(0.8), tmp_path / "errors", score=errors, higher_is_better=False)
    same = search(Examples(0.8), tmp_path / "right")
    assert loop.outcome is Outcome.WITHIN_BUDGET
    assert rate_of(loop) == pytest.approx(rate_of(same), abs=1e-6)
    assert loop.statistics.compressed_accuracy <= loop.statistics.uncompressed_accuracy + DROP + 1e-9


def test_fifty_validation_examples_give_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    loop = search(Examples(0.8, num_examples=50), tmp_path)
    assert loop.outcome is Outcome.WITHIN_BUDGET
    assert loop.statistics.compressed_accuracy >= loop.statistics.uncompressed_accuracy - DROP - 1e-9
    (warning,) = (record.getMessage() for record in caplog.records if "too large for a budget" in record.getMessage())
    assert "too large for a budget of 0.02" in warning
    assert "times as many validation examples" in warning


def test_enough_validation_examples_give_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    search(Examples(0.8, num_examples=20_000), tmp_path)
    assert not [record for record in caplog.records if "too large for a budget" in record.getMessage()]


def test_metric_without_scores_can_be_searched(tmp_path: Path) -> None:
    loop = search(Examples(0.8), tmp_path, score=lambda evaluation: evaluation.metric)
    assert loop.outcome is Outcome.WITHIN_BUDGET
    assert all(record.standard_error is None for record in loop.history)
    with pytest.raises(DataError, match="one score per example"):
        loop.certify(Evaluation(0.9), Evaluation(0.9))


def test_resampled_metric_has_a_standard_error(tmp_path: Path) -> None:
    resamples = torch.randint(1000, (200, 1000), generator=torch.Generator().manual_seed(0))

    def resampled(evaluation: Evaluation) -> Evaluation:
        assert evaluation.scores is not None
        return Evaluation(evaluation.metric, resampled=evaluation.scores[resamples].mean(1))

    by_scores = search(Examples(0.3, 1000), tmp_path / "scores", epochs=8)
    loop = search(Examples(0.3, 1000), tmp_path / "resamples", epochs=8, score=resampled)
    by_rate = {record.requested_rate: record.standard_error for record in by_scores.history}
    compared = [(record.standard_error, by_rate.get(record.requested_rate)) for record in loop.history]
    # The error is 0 for models that agree on every example.
    discordant = [(error, other) for error, other in compared if error and other]
    assert discordant
    for error, other in discordant:
        assert error == pytest.approx(other, rel=0.3)


def test_certified_on_test_data(tmp_path: Path) -> None:
    loop = search(Examples(0.8), tmp_path)
    test = Examples(0.85, num_examples=20_000, seed=1)
    with pytest.raises(DataError, match="one score per example"):
        loop.certify(Evaluation(0.95), Evaluation(0.94))
    certificate = loop.certify(test.evaluate(0.0), test.evaluate(rate_of(loop)))
    assert certificate.is_certified
    assert loop.outcome is Outcome.CERTIFIED
    with pytest.raises(RuntimeError, match="only once"):
        loop.certify(test.evaluate(0.0), test.evaluate(rate_of(loop)))


def test_model_that_is_not_certified_stays_within_budget_and_is_tested_once(tmp_path: Path) -> None:
    loop = search(Examples(0.8), tmp_path)
    test = Examples(0.8, num_examples=100, seed=1)
    assert not loop.certify(test.evaluate(0.0), test.evaluate(rate_of(loop))).is_certified
    assert loop.outcome is Outcome.WITHIN_BUDGET
    with pytest.raises(RuntimeError, match="already tested"):
        loop.certify(test.evaluate(0.0), test.evaluate(rate_of(loop)))


def test_infeasible_search_cannot_be_certified(tmp_path: Path) -> None:
    loop = search(Examples(0.2), tmp_path, minimal_rate=0.9)
    test = Examples(0.2)
    with pytest.raises(RuntimeError, match="the outcome is infeasible"):
        loop.certify(test.evaluate(0.0), test.evaluate(0.0))


def test_checkpoints_of_the_pareto_front_stay_on_disk(tmp_path: Path) -> None:
    loop = search(Examples(0.8), tmp_path)
    (run,) = tmp_path.iterdir()
    available = CheckpointStore(tmp_path).numbers_of(run.name)
    rows = [record for record in loop.history if record.checkpoint in available]
    assert max(row.achieved_rate for row in rows) == max(row.achieved_rate for row in loop.history)
    assert len({row.achieved_rate for row in rows}) >= 5


def test_minimal_rate_that_cannot_be_reached_is_an_error() -> None:
    controller = ScriptedController(ScriptedModel(0.0), maximal_rate=0.9776)
    with pytest.raises(ConfigurationError, match=r"minimal_rate: 0\.99 cannot be reached.*can lose at most 0\.9776"):
        adaptive_problem(controller, Budget(baseline=0.9, drop=0.01), minimal_rate=0.99, maximal_rate=0.998)
