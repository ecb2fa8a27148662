"""Importance scores, and the selection of the lowest ones."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kedro_aat.compression.settings import Importance
from kedro_aat.compression.sparsity import importance as importance_module
from kedro_aat.compression.sparsity import selection
from kedro_aat.compression.sparsity.importance import LayerScores
from kedro_aat.compression.sparsity.selection import keep_most_important, kth_smallest
from tests.compression.sparsity import reference

DISTRIBUTIONS = [
    *("normal", "heavy tails", "few values", "two values", "constant", "mostly zero"),
    *("rising", "falling", "periodic", "in blocks", "one far away", "subnormal"),
]
LARGE = 200_000  # large enough to expose sampling or an approximation


def draw(kind: str, size: int, seed: int) -> Tensor:
    """Float32 scores of at least 0."""
    generator = torch.Generator().manual_seed(seed)
    position = torch.arange(size, dtype=torch.float32)

    def normal() -> Tensor:
        return torch.randn(size, generator=generator).abs()

    def uniform() -> Tensor:
        return torch.rand(size, generator=generator)

    match kind:
        case "normal":
            return normal()
        case "heavy tails":
            return (20 * torch.randn(size, generator=generator)).exp()
        case "few values":
            return (10 * uniform()).floor()
        case "two values":
            return (uniform() > 0.5).float()
        case "constant":
            return torch.full((size,), 0.25)
        case "mostly zero":
            return torch.where(uniform() > 0.99, normal(), 0.0)
        case "rising":
            return position
        case "falling":
            return size - position
        case "periodic":
            return position % 7
        case "in blocks":
            return (position / max(1, size // 7)).floor() + 1e-3 * uniform()
        case "one far away":
            return torch.where(position == size // 2, 1e30, normal())
        case "subnormal":
            return normal() * 1e-42
    raise ValueError(kind)


@settings(deadline=None, max_examples=100)
@given(kind=st.sampled_from(DISTRIBUTIONS), size=st.integers(1, 2000), data=st.data())
def test_kth_smallest_is_exact(kind: str, size: int, data: st.DataObject) -> None:
    values = draw(kind, size, seed=0)
    k = data.draw(st.integers(1, size))
    assert kth_smallest(values, k) == values.sort().values[k - 1]


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_kth_smallest_of_many_is_exact(kind: str) -> None:
    values = draw(kind, LARGE, seed=0)
    ascending = values.sort().values
    for k in (1, 2, LARGE // 3, LARGE // 2, round(0.998 * LARGE), LARGE - 1, LARGE):
        assert kth_smallest(values, k) == ascending[k - 1]


KINDS: tuple[Importance, ...] = get_args(Importance)
TENSORS = st.lists(
    st.tuples(st.sampled_from(DISTRIBUTIONS), st.integers(1, 300), st.integers(0, 100)), min_size=1, max_size=4
)


def importance(weight: Tensor, kind: Importance) -> Tensor:
    """The scores of all weights."""
    return LayerScores(weight, kind).all()


@settings(deadline=None, max_examples=200)
@given(
    tensors=TENSORS,
    kind=st.sampled_from(KINDS),
    share=st.floats(0, 1) | st.sampled_from([0.0, 0.5, 1.0]),
    are_few=st.booleans(),
    masked=st.sampled_from([0.0, 0.8]),
)
def test_same_weights_are_removed_as_if_all_were_scored(
    tensors: list[tuple[str, int, int]], kind: Importance, share: float, are_few: bool, masked: float
) -> None:
    weights = [draw(*tensor).clamp_max(1e15) for tensor in tensors]
    for weight in weights:
        weight[::2] *= -1
        weight[torch.rand(len(weight), generator=torch.Generator().manual_seed(0)) < masked] = 0
    num_removed = round(share * sum(map(len, weights)))
    expected = reference.keep_most_important([reference.importance(weight, kind) for weight in weights], num_removed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "_FEW", 1 << 20 if are_few else 0)
        patch.setattr(importance_module, "_CHUNK_ON_CPU", 64)
        found = keep_most_important(weights, kind, num_removed)
    for mine, other in zip(found, expected, strict=True):
        assert torch.equal(mine, other)
    kept, flat = torch.cat(found), torch.cat([reference.importance(weight, kind) for weight in weights])
    assert int((~kept).sum()) == num_removed
    if 0 < num_removed < len(flat):
        highest_removed, lowest_kept = flat[~kept].max(), flat[kept].min()
        assert highest_removed <= lowest_kept
        # Among equal scores, the first are removed.
        equal = kept[flat == highest_removed]
        assert torch.equal(equal, equal.sort().values)


@pytest.mark.parametrize("kind", KINDS)
def test_same_of_many_weights_are_removed(kind: Importance) -> None:
    """With layers of several chunks, and in the memory format of images."""
    weights = [
        draw("normal", 1_000_000, 0).view(1000, 10, 10, 10),
        draw("few values", LARGE, 1),
        draw("normal", LARGE, 2),
    ]
    weights[0] = weights[0].to(memory_format=torch.channels_last)
    scores = [reference.importance(weight, kind) for weight in weights]
    total = sum(map(len, scores))
    for num_removed in (1, total // 3, total - 1, total):
        found = keep_most_important(weights, kind, num_removed)
        for mine, other, weight in zip(found, reference.keep_most_important(scores, num_removed), weights, strict=True):
            assert torch.equal(mine, other.view(weight.shape))


# --- importance ------------------------------------------------------------------------------------------------


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
    magnitude = draw(distribution, size, seed).clamp_max(1e15)  # so that its square is finite in float32
    signs = 1 - 2 * torch.randint(2, (size,), generator=torch.Generator().manual_seed(seed))
    scores = importance(magnitude * signs, kind)
    assert scores.shape == (size,)
    assert scores.dtype == torch.float32
    assert torch.isfinite(scores).all()
    assert (scores >= 0).all()
    order = magnitude.argsort()
    ascending, rises = scores[order], magnitude[order].diff() > 0
    highest_below = ascending.cummax(0).values[:-1]
    lowest_above = ascending.flip(0).cummin(0).values.flip(0)[1:]
    assert (highest_below <= lowest_above)[rises].all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_importance_of_any_shape_and_precision(kind: Importance, dtype: torch.dtype) -> None:
    weight = torch.linspace(-2, 1, 24, dtype=dtype).view(2, 3, 4).transpose(0, 2)
    scores = importance(weight, kind)
    assert torch.equal(scores.argsort(stable=True), weight.flatten().abs().float().argsort(stable=True))


def test_abs_and_squared_abs_are_the_magnitude_and_its_square() -> None:
    weight = torch.tensor([[3.0, -4.0], [0.0, 0.5]])
    assert importance(weight, "abs").tolist() == [3.0, 4.0, 0.0, 0.5]
    assert importance(weight, "squared_abs").tolist() == [9.0, 16.0, 0.0, 0.25]


def test_complex_weights_are_ranked_by_their_magnitude() -> None:
    weight = torch.tensor([3 + 4j, 1 + 0j, 0 - 2j])
    assert importance(weight, "abs").tolist() == [5, 1, 2]


def test_normed_abs_is_relative_to_the_norm_of_the_layer() -> None:
    assert importance(torch.tensor([3.0, -4.0]), "normed_abs").tolist() == pytest.approx([0.6, 0.8])
    weight = torch.randn(50, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(importance(weight, "normed_abs"), importance(1000 * weight, "normed_abs"))


def test_lamp_score_is_that_of_the_paper() -> None:
    weight = torch.tensor([1.0, -3.0, 2.0])
    assert importance(weight, "lamp").tolist() == pytest.approx([1 / 14, 1.0, 4 / 13])
    torch.testing.assert_close(importance(weight, "lamp"), importance(1e-3 * weight, "lamp"))


@pytest.mark.parametrize("kind", KINDS)
def test_layer_of_zeros_is_less_important_than_any_other(kind: Importance) -> None:
    assert not importance(torch.zeros(5), kind).any()
