"""Parts in which a batch is computed where it does not fit into memory as a whole."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Any

from kedro_aat.model_inputs import num_examples, take_examples
from kedro_aat.training.ranks.sharding import Part
from kedro_aat.training.teacher import Answered

logger = logging.getLogger(__name__)


class BatchParts:
    """Splits batches into inputs and targets, and then into parts, whose gradients are added up.

    Args:
        batch_size: Examples in a batch.

    Attributes:
        number: Parts of a batch; usually one, the batch itself.
    """

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self.number = 1

    def __call__(self, batch: Any, form: Callable[[Any], tuple[Any, Any]]) -> list[tuple[Sequence[Any], float]]:
        """The parts, one after another, each with its share of the batch.

        Args:
            batch: A batch, perhaps with the teacher's answers, or this rank's part of one.
            form: Splits it into inputs and targets.

        Returns:
            Inputs, targets and perhaps answers, and a number in (0, 1].
        """
        number, weight, is_sharded = self.number, 1.0, isinstance(batch, Part)
        if is_sharded:  # as many parts on every rank
            number, weight = min(number, batch.smallest), batch.number / batch.total
            batch = batch.examples
        whole = (*form(batch.examples), batch.answers) if type(batch) is Answered else form(batch)
        if number == 1 or not (size := num_examples(whole[0])):
            return [(whole, weight)]
        if not is_sharded:
            step = -(-size // number)
            starts = range(0, size, step)
            return [(take_examples(whole, slice(each, each + step)), min(step, size - each) / size) for each in starts]
        ends = [size * part // number for part in range(number + 1)]
        return [
            (take_examples(whole, slice(start, end)), weight * (end - start) / size)
            for start, end in itertools.pairwise(ends)
        ]

    def halve(self) -> bool:
        """Doubles the number of parts from now on; False if a part is a single example already."""
        if 2 * self.number > self._batch_size:
            return False
        self.number *= 2
        logger.warning(
            "Out of memory: the epoch starts again with batches of %d in %d parts, whose gradients are added up.",
            self._batch_size,
            self.number,
        )
        return True
