"""The methods that compress a task's model: this project's search, and what it has to beat."""

from __future__ import annotations

from benchmarks.tasks.rivals.climb import climb, climb30
from benchmarks.tasks.rivals.gradual import gradual
from benchmarks.tasks.rivals.one_shot import by_hand, by_hand_batch_norm, by_hand_magnitude
from benchmarks.tasks.rivals.pipeline import ours, uniform
from benchmarks.tasks.rivals.scratch import scratch, scratch_distilled
from benchmarks.tasks.task import Method

METHODS: dict[str, Method] = {
    "ours": ours,
    "uniform": uniform,
    "by_hand": by_hand,
    "by_hand_magnitude": by_hand_magnitude,
    "by_hand_batch_norm": by_hand_batch_norm,
    "gradual": gradual,
    "scratch": scratch,
    "scratch_distilled": scratch_distilled,
    "climb": climb,
    "climb30": climb30,
}
FILTERS_ONLY = frozenset({"by_hand_magnitude", "by_hand_batch_norm", "scratch", "scratch_distilled"})
