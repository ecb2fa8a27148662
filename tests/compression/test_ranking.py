from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kedro_aat.compression.ranking import SAMPLE_SIZE, importance, keep_most_important, kth_smallest
from kedro_aat.compression.settings import Importance

DISTRIBUTIONS = [
    *("normal", "uniform", "heavy tails", "few values", "two values", "constant", "mostly zero"),
    *("rising", "falling", "periodic", "in blocks", "one far away", "subnormal"),
]
SIZES = [1, 2, 3, 1000, SAMPLE_SIZE - 1, SAMPLE_SIZE, SAMPLE_SIZE + 1, 2 * SAMPLE_SIZE, 5 * SAMPLE_SIZE + 77]


def draw(kind: str, size: int, seed: int) -> Tensor:
    """Scores, at least 0, in float32."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(size, generator=generator).abs()
    uniform = torch.rand(size, generator=generator)
    position = torch.arange(size, dtype=torch.float32)
    return {
        "normal": normal,
        "uniform": uniform,
        "heavy tails": (20 * torch.randn(size, generator=generator)).exp(),
        "few values": (10 * uniform).floor(),
        "two values": (uniform > 0.5).float(),
        "constant": torch.full((size,), 0.25),
        "mostly zero": torch.where(uniform > 0.99, normal, 0.0),
        "rising": position,
        "falling": size - position,
        # A regular sample sees only one of its values, which is the worst that can happen to it.
        "periodic": position % max(1, size // SAMPLE_SIZE),
        "in blocks": (position / max(1, size // 7)).floor() + 1e-3 * uniform,
        "one far away": torch.where(position == size // 2, 1e30, normal),
        "subnormal": normal * 1e-42,
    }[kind]


@settings(deadline=None, max_examples=150)
@given(
    kind=st.sampled_from(DISTRIBUTIONS),
    size=st.sampled_from(SIZES) | st.integers(1, 3 * SAMPLE_SIZE),
    share=st.floats(0, 1) | st.sampled_from([0.0, 0.5, 0.998, 1.0]),
    seed=st.integers(0, 100),
)
def test_kth_smallest_is_exact(kind: str, size: int, share: float, seed: int) -> None:
    values = draw(kind, size, seed)
    k = min(max(1, round(share * size)), size)
    assert torch.equal(kth_smallest(values, k), values.kthvalue(k).values)


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
@pytest.mark.parametrize("k", [1, 2, 2 * SAMPLE_SIZE, 4 * SAMPLE_SIZE - 1, 4 * SAMPLE_SIZE])
def test_kth_smallest_at_its_limits(kind: str, k: int) -> None:
    values = draw(kind, 4 * SAMPLE_SIZE, seed=0)
    assert torch.equal(kth_smallest(values, k), values.kthvalue(k).values)


@settings(deadline=None, max_examples=100)
@given(
    tensors=st.lists(
        st.tuples(st.sampled_from(DISTRIBUTIONS), st.integers(1, 300), st.integers(0, 100)), min_size=1, max_size=4
    ),
    share=st.floats(0, 1) | st.sampled_from([0.0, 0.5, 1.0]),
)
def test_exactly_the_lowest_are_removed(tensors: list[tuple[str, int, int]], share: float) -> None:
    scores = [draw(*tensor) for tensor in tensors]
    flat = torch.cat(scores)
    num_removed = round(share * len(flat))
    keep = keep_most_important(scores, num_removed)
    assert [mask.shape for mask in keep] == [score.shape for score in scores]
    kept = torch.cat(keep)
    assert int((~kept).sum()) == num_removed
    if 0 < num_removed < len(flat):
        highest_removed, lowest_kept = flat[~kept].max(), flat[kept].min()
        assert highest_removed <= lowest_kept
        # Of equal scores the first are removed.
        equal = kept[flat == highest_removed]
        assert torch.equal(equal, equal.sort().values)


def test_exactly_the_lowest_of_many_are_removed() -> None:
    scores = [draw("few values", 2 * SAMPLE_SIZE, 0), draw("normal", 3 * SAMPLE_SIZE, 1)]
    for num_removed in (1, SAMPLE_SIZE, 4 * SAMPLE_SIZE + 1, 5 * SAMPLE_SIZE - 1, 5 * SAMPLE_SIZE):
        keep = keep_most_important(scores, num_removed)
        assert sum(int((~mask).sum()) for mask in keep) == num_removed


# --- importance ------------------------------------------------------------------------------------------------

KINDS: tuple[Importance, ...] = get_args(Importance)


@settings(deadline=None, max_examples=100)
@given(
    kind=st.sampled_from(KINDS),
    distribution=st.sampled_from(DISTRIBUTIONS),
    size=st.integers(1, 500),
    seed=st.integers(0, 100),
)
def test_within_a_layer_a_larger_weight_is_never_less_important(
    kind: Importance, distribution: str, size: int, seed: int
) -> None:
    magnitude = draw(distribution, size, seed).clamp_max(1e15)  # whose square is a float32 still
    signs = 1 - 2 * torch.randint(2, (size,), generator=torch.Generator().manual_seed(seed))
    scores = importance(magnitude * signs, kind)
    assert scores.shape == (size,)
    assert scores.dtype == torch.float32
    assert torch.isfinite(scores).all()
    assert (scores >= 0).all()
    ascending = scores[magnitude.argsort()]
    assert (ascending.diff() >= 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_importance_of_any_shape_and_precision(kind: Importance, dtype: torch.dtype) -> None:
    weight = torch.linspace(-2, 1, 24, dtype=dtype).view(2, 3, 4).transpose(0, 2)
    scores = importance(weight, kind)
    assert torch.equal(scores.argsort(stable=True), weight.flatten().abs().float().argsort(stable=True))


def test_abs_and_squared_abs_are_what_they_say() -> None:
    weight = torch.tensor([[3.0, -4.0], [0.0, 0.5]])
    assert importance(weight, "abs").tolist() == [3.0, 4.0, 0.0, 0.5]
    assert importance(weight, "squared_abs").tolist() == [9.0, 16.0, 0.0, 0.25]


def test_normed_abs_is_relative_to_the_norm_of_the_layer() -> None:
    assert importance(torch.tensor([3.0, -4.0]), "normed_abs").tolist() == pytest.approx([0.6, 0.8])
    weight = torch.randn(50, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(importance(weight, "normed_abs"), importance(1000 * weight, "normed_abs"))


def test_lamp_score_is_that_of_the_paper() -> None:
    weight = torch.tensor([1.0, -3.0, 2.0])
    assert importance(weight, "lamp").tolist() == pytest.approx([1 / 14, 1.0, 4 / 13])
    torch.testing.assert_close(importance(weight, "lamp"), importance(1e-3 * weight, "lamp"))


@pytest.mark.parametrize("kind", KINDS)
def test_layer_of_zeros_is_the_least_important_of_all(kind: Importance) -> None:
    assert not importance(torch.zeros(5), kind).any()
