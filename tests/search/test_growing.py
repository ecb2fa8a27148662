"""A fold over tuples that grow, shrink and change is the fold over each of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kedro_aat.search.growing import Growing

tuples = st.lists(st.integers(0, 2), max_size=6).map(tuple)


@given(st.lists(st.tuples(tuples, st.sampled_from(["a", "b"])), max_size=12))
def test_value_is_that_of_the_tuple_whatever_came_before(asked: list[tuple[tuple[int, ...], str]]) -> None:
    growing: Growing[int, list[str]] = Growing(lambda key: [key], lambda value, item: [*value, str(item)])
    for items, key in asked:
        assert growing.of(items, key) == [key, *map(str, items)]


def test_items_are_seen_once() -> None:
    seen: list[int] = []
    growing: Growing[int, None] = Growing(lambda _: None, lambda _, item: seen.append(item))
    for length in (1, 3, 3, 5):
        growing.of(tuple(range(length)))
    assert seen == [0, 1, 2, 3, 4]
