"""NumPy's numbers and arrays in the state of optimizers and schedulers come back as they were."""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kedro_aat.budget import Outcome
from kedro_aat.errors import CheckpointError
from kedro_aat.training.checkpoints import Checkpoint, CheckpointStore
from kedro_aat.training.checkpoints.numpy_values import decoded, encoded
from kedro_aat.training.runner import Evaluation
from tests.scripted import ScriptedModel
from tests.training.checkpoints.small_search import search
from tests.training.scripted_loop import FORMULA, PARAMS, ScriptedLoop

VALUES: list[Any] = [
    *(np.float64(0.1), np.float32(0.1), np.float16(0.1), np.longdouble(0.1), np.int64(-(2**62)), np.uint8(255)),
    *(np.bool_(True), np.complex64(1 + 2j), np.float64("nan"), np.float64("-inf"), np.float64(5e-324)),
    *(np.str_("cosine"), np.str_(""), np.bytes_(b"\x00a"), np.datetime64("2026-01-02", "s"), np.timedelta64(3, "ms")),
    *(np.array(0.1), np.array([]), np.arange(6).reshape(2, 3), np.zeros((2, 0, 3), np.float16)),
    *(np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.arange(6)[::-2], np.array([True, False])),
    *(np.arange(3, dtype=">i4"), np.array(["a", "bc"])),
]


def stored(tmp_path: Path, training: dict[str, Any], *, wait: bool = True) -> Any:
    with CheckpointStore(tmp_path).open({"seed": 0}) as run:
        run.save(Checkpoint(0, {"weight": torch.zeros(2)}, training, {}), wait=wait)
        return run.load(0).training


def assert_same(one: Any, other: Any) -> None:
    """Compares values and types, and NaN with NaN."""
    assert type(one) is type(other)
    if isinstance(one, np.ndarray):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert one.flags["W"]
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("wait", [True, False])
def test_values_and_types_are_kept(tmp_path: Path, wait: bool) -> None:
    back = stored(tmp_path, {"values": VALUES, "nested": [({"deep": VALUES[0]},)]}, wait=wait)
    for one, other in zip(back["values"], VALUES, strict=True):
        assert_same(one, other)
    assert_same(back["nested"][0][0]["deep"], VALUES[0])


def test_numbers_may_be_keys_and_members(tmp_path: Path) -> None:
    state = {
        "milestones": Counter({np.int64(3): 2}),
        "ordered": OrderedDict({np.float32(0.5): np.bool_(False)}),
        "known": {np.int16(1), 2},
        "plain": (1, "a", None),
        "size": torch.Size([2, 3]),
    }
    back = stored(tmp_path, state)
    assert back == state
    assert [type(each) for each in back.values()] == [type(each) for each in state.values()]
    assert [type(key) for key in (*back["milestones"], *back["ordered"])] == [np.int64, np.float32]


@pytest.mark.parametrize(
    "value",
    [
        np.array([object()]),
        np.array([None]),
        np.zeros(2, dtype="f4,i4"),
        np.ma.masked_array([1.0]),
        np.zeros(1).view(np.recarray),
    ],
)
def test_what_cannot_be_kept_is_named_at_the_first_checkpoint(tmp_path: Path, value: Any) -> None:
    kind = type(value).__qualname__
    with pytest.raises(CheckpointError, match=rf"training\.lr_schedulers\[0\]\.rates of a checkpoint is a {kind}"):
        stored(tmp_path, {"lr_schedulers": [{"rates": value}]})


def test_no_objects_are_made_from_a_file() -> None:
    tag, _, shape, contents = encoded(np.zeros(1))
    with pytest.raises(ValueError, match="array of object is not allowed"):
        decoded((tag, "O", shape, contents))
    with pytest.raises(TypeError, match="too small"):
        decoded((tag, "<f8", (100,), contents))


# --- in a loop ------------------------------------------------------------------------------------------------


class OwnScheduler:
    """A scheduler of a user's own, whose state is NumPy's."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._rates = np.geomspace(1.0, 1e-3, 20, dtype=np.float32)
        self._count = np.int64(0)

    def step(self) -> None:
        self._count += 1
        self._optimizer.param_groups[0]["lr"] = self._rates[self._count]

    def state_dict(self) -> dict[str, Any]:
        return {"rates": self._rates, "count": self._count, "warm": np.bool_(self._count < 3), "base": np.array(1.0)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._rates, self._count = state["rates"], state["count"]


def with_numpy_rate(subject: ScriptedLoop) -> tuple[Any, Any]:
    rate: Any = np.float32(0.1)
    return torch.optim.SGD(subject.model.parameters(), rate), None


def with_cosine(subject: ScriptedLoop) -> tuple[Any, Any]:
    optimizer = torch.optim.SGD(subject.model.parameters(), 0.1)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5 * (1 + np.cos(epoch / 10)))


def with_milestones(subject: ScriptedLoop) -> tuple[Any, Any]:
    optimizer = torch.optim.SGD(subject.model.parameters(), 0.1)
    return optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, np.arange(1, 4), np.float64(0.5))


def with_tensor_rate(subject: ScriptedLoop) -> tuple[Any, Any]:
    return torch.optim.AdamW(subject.model.parameters(), torch.tensor(0.1)), None


def with_own_scheduler(subject: ScriptedLoop) -> tuple[Any, Any]:
    optimizer = torch.optim.SGD(subject.model.parameters(), np.float64(1.0))
    return optimizer, OwnScheduler(optimizer)


@dataclass
class Stopping:
    """The subject's training function, stopped before an epoch. A run is not identified by attributes of objects."""

    subject: ScriptedLoop
    stop_at: int | None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.subject.num_trained == self.stop_at:
            raise KeyboardInterrupt
        return self.subject.train(*args, **kwargs)


def run(folder: Path, configure: Any, stop_at: int | None = None) -> ScriptedLoop:
    """Runs a loop, or continues it."""
    subject = ScriptedLoop()
    subject.run(folder, Stopping(subject, stop_at), configure=lambda: configure(subject))
    return subject


@pytest.mark.parametrize(
    "configure", [with_numpy_rate, with_cosine, with_milestones, with_tensor_rate, with_own_scheduler]
)
def test_search_goes_on_as_if_it_had_not_been_stopped(tmp_path: Path, configure: Any) -> None:
    whole = run(tmp_path / "whole", configure)
    run(tmp_path / "parts", configure, stop_at=5)
    rest = run(tmp_path / "parts", configure)
    assert 0 < rest.num_trained < whole.num_trained
    assert rest.trajectory == whole.trajectory
    kinds = [[type(rates[0]) for rates in loop.learning_rates] for loop in (whole, rest)]
    assert kinds[1] == kinds[0][-rest.num_trained :]


@pytest.mark.parametrize("number", [np.float32, np.float64, np.array, torch.tensor, lambda value: np.array([value])[0]])
def test_functions_may_return_any_number(tmp_path: Path, number: Any) -> None:
    plain, subject = ScriptedLoop(baseline=0.9), ScriptedLoop(baseline=Evaluation(number(0.9)))  # type: ignore[arg-type]
    functions = []
    for loop, wrap, truth in ((plain, float, bool), (subject, number, np.bool_)):

        def train(*args: Any, loop: Any = loop, wrap: Any = wrap, **kwargs: Any) -> Any:
            return wrap(loop.train(*args, **kwargs))

        def validate(model: ScriptedModel, wrap: Any = wrap) -> Any:
            return wrap(np.float32(model.accuracy(FORMULA)))

        loop.run(tmp_path / wrap.__name__, train, validate, early_stopping_fn=lambda metric, truth=truth: truth(False))
        functions.append(loop)
    assert [row.metric for row in subject.loop.history] == pytest.approx([row.metric for row in plain.loop.history])
    assert {type(row.metric) for row in subject.loop.history} == {float}
    assert subject.loop.outcome is plain.loop.outcome


# --- in settings that Python code makes -------------------------------------------------------------------------


@pytest.mark.parametrize("number", [np.float64, np.float32, np.array, torch.tensor])
def test_arguments_of_a_setting_may_be_numpys(tmp_path: Path, number: Any) -> None:
    steps = {"milestones": [np.int64(2), np.int64(4)], "gamma": number(0.5)}
    found = []
    for wrap, scheduler in ((float, {"milestones": [2, 4], "gamma": 0.5}), (number, steps)):
        ended = search(
            tmp_path,
            optimizer={"class_path": "torch.optim.SGD", "init_args": {"lr": wrap(0.0625)}},
            scheduler={"class_path": "torch.optim.lr_scheduler.MultiStepLR", "init_args": scheduler},
        )
        found.append(ended)
    assert found[0].folder == found[1].folder  # the same numbers are the same run
    assert found[0].trained
    assert not found[1].trained


def test_nncf_config_may_have_numpys_numbers(tmp_path: Path) -> None:
    numbers = {"maximal_absolute_accuracy_degradation": np.float32(0.5), "maximal_total_epochs": np.int64(8)}
    subject = ScriptedLoop(params=PARAMS | numbers)
    subject.run(tmp_path)
    assert subject.loop.outcome is Outcome.WITHIN_BUDGET
