"""What is known of a tuple that grows by an item at a time, without looking at all items again after each epoch."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Value = TypeVar("Value")

# Tuples that are remembered at a time: a trial's results and those of the polish, of two searches.
_NUM_REMEMBERED = 4


@dataclass
class _Known(Generic[Item, Value]):
    key: object
    items: tuple[Item, ...]
    value: Value


class Growing(Generic[Item, Value]):
    """Folds a tuple into a value, and goes on from there if the next tuple begins with the same items.

    The answer is a function of the tuple and the key alone. Comparing with the tuple before is fast where the items
    are the same objects.

    Args:
        begin: Makes the value of an empty tuple, from the key.
        add: Returns the value with one more item; it may change the value in place.
    """

    def __init__(self, begin: Callable[[Any], Value], add: Callable[[Value, Item], Value]) -> None:
        self._begin, self._add = begin, add
        self._of_thread = threading.local()

    def of(self, items: tuple[Item, ...], key: object = None) -> Value:
        """The value of a tuple.

        Args:
            items: The tuple.
            key: What else the value depends on; tuples with different keys have values of their own.
        """
        remembered: deque[_Known[Item, Value]] = self._of_thread.__dict__.setdefault("known", deque())
        for known in remembered:
            length = len(known.items)
            if known.key == key and length <= len(items) and items[:length] == known.items:
                remembered.remove(known)
                break
        else:
            known = _Known(key, (), self._begin(key))
        for item in items[len(known.items) :]:
            known.value = self._add(known.value, item)
        known.items = items
        remembered.appendleft(known)
        while len(remembered) > _NUM_REMEMBERED:
            remembered.pop()
        return known.value
