"""Workers and data that stay from epoch to epoch: each epoch is the one that new workers and the host would give."""

from __future__ import annotations

import copy
import gc
import itertools
import multiprocessing
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler, TensorDataset

from kedro_aat.model_inputs import map_tensors
from kedro_aat.testing.training import assert_same_bits
from kedro_aat.training.guards import watchdog
from kedro_aat.training.loading.loaders import Passed
from kedro_aat.training.loading.on_device import CopiedAhead
from kedro_aat.training.loading.workers import holds_generator
from kedro_aat.training.teacher import Answered
from tests.nets import Pairs
from tests.training.training_run import TRAIN, VALIDATION, TrainingRun, make_sparse

CPU = torch.device("cpu")
HALF: dict[str, Any] = {"num_workers": 2}


class Augmented(Dataset[Any]):
    """Random noise from the generators of torch, NumPy and Python, and a shift that depends on the epoch."""

    def __init__(self, own: np.random.Generator | None = None) -> None:
        self.epoch = 0
        self.more: Any = {"generators": [own]}

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(TRAIN["targets"])

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        noise = torch.rand(()) + np.random.rand() + random.random() + self.epoch
        return TRAIN["inputs"][index] + 0.1 * noise.float(), TRAIN["targets"][index]


def workers() -> set[int]:
    return {process.pid for process in multiprocessing.active_children() if process.pid}


def test_workers_stay_by_default_and_end_with_the_training() -> None:
    before, run = workers(), TrainingRun(train=Pairs(**TRAIN), validation=Pairs(**VALIDATION), **HALF)
    run.train_epochs(1)
    first = workers() - before
    run.train_epochs(2)
    assert len(first) == 4  # for training and validation
    assert workers() - before == first
    del run
    gc.collect()
    assert workers() == before


@pytest.mark.parametrize(
    "changes",
    [
        {"loader": {"persistent_workers": False}},
        {"loader": {"worker_init_fn": "tests.training.loading.cases.init_worker"}},
        {"train": Augmented(np.random.default_rng(0)), "validation": VALIDATION},
    ],
    ids=["false", "worker_init_fn", "own generator"],
)
def test_workers_that_may_be_in_another_state_are_made_anew(changes: dict[str, Any]) -> None:
    before = workers()
    run = TrainingRun(**{"train": Pairs(**TRAIN), "validation": Pairs(**VALIDATION), **HALF, **changes})
    run.runner.train_epoch()
    assert workers() == before


def test_a_resumed_run_draws_what_an_uninterrupted_one_does() -> None:
    """Augmentation in workers follows the epoch, not how long the worker has lived."""
    old, new = (TrainingRun(train=Augmented(), **HALF) for _ in range(2))
    old.train_epochs(2)
    checkpoint = copy.deepcopy(old.runner.checkpoint(0, {}))
    expected = old.train_epochs(2)
    new.runner.resume(checkpoint)
    assert new.train_epochs(2) == expected
    assert_same_bits(new.weights, old.weights)


def test_workers_that_stay_give_what_new_ones_do() -> None:
    """All but NumPy's numbers, whose seed torch keeps to itself."""

    def losses(**loader: Any) -> list[float]:
        return TrainingRun(train=Pairs(**TRAIN), loader=loader, **HALF).train_epochs(3)

    assert losses() == losses(persistent_workers=False)


def test_an_epoch_that_is_left_early_does_not_disturb_the_next() -> None:
    whole, left = (TrainingRun(train=Pairs(**TRAIN), **HALF) for _ in range(2))
    whole.train_epochs(1)
    left.train_epochs(1)
    state = torch.get_rng_state()
    next(iter(left.training.train_batches(0)))
    torch.set_rng_state(state)
    for epoch in (1, 2):
        batches = [[labels for _, labels in run.training.train_batches(epoch)] for run in (whole, left)]
        assert torch.equal(torch.cat(batches[0]), torch.cat(batches[1]))


class DrawnOnce(Sampler[int]):
    """Draws its order when it is made, so it belongs to one epoch."""

    def __init__(self, dataset: Any, generator: torch.Generator) -> None:
        self.order = torch.randperm(len(dataset), generator=generator).tolist()

    def __iter__(self) -> Iterator[int]:
        return iter(self.order)

    def __len__(self) -> int:
        return len(self.order)


def labels_of(batches: Any) -> list[int]:
    return torch.cat([labels for _, labels in batches]).tolist()


@pytest.mark.parametrize("changes", [HALF, {"loader": {"on_device": True}}], ids=["workers", "device"])
def test_a_sampler_is_made_for_each_epoch(changes: dict[str, Any]) -> None:
    def orders(epochs: tuple[int, ...], **more: Any) -> list[list[int]]:
        loader = {"sampler": f"{__name__}.DrawnOnce", **more.pop("loader", {})}
        run = TrainingRun(train=TensorDataset(TRAIN["inputs"], torch.arange(96)), loader=loader, **more)
        return [labels_of(run.training.train_batches(epoch)) for epoch in epochs]

    first, second = orders((0, 1), **changes)
    assert first != second
    assert [first, second] == orders((0, 1), loader={"on_device": False})
    assert orders((1,), **changes) == [second]  # as a resumed run


def test_an_epoch_that_has_begun_goes_on_while_others_are_asked_for() -> None:
    run, undisturbed = (TrainingRun(train=Augmented(), **HALF) for _ in range(2))
    torch.manual_seed(3)
    expected = [inputs for inputs, _ in undisturbed.training.train_batches(5)]
    torch.manual_seed(3)
    for number, (inputs, _) in enumerate(run.training.train_batches(5)):
        assert run.training.steps_per_epoch == 6
        assert torch.equal(inputs, expected[number])


class Lazy(Mapping[str, Any]):
    """Loads what it holds when it is asked for it, as HDF5's groups do."""

    def __getitem__(self, key: str) -> Any:
        raise AssertionError("the file is read")

    def __iter__(self) -> Iterator[str]:
        return iter("ab")

    def __len__(self) -> int:
        return 2


def test_a_generator_is_not_looked_for_in_what_a_dataset_loads() -> None:
    dataset = Augmented()
    dataset.more = {"file": Lazy()}
    assert not holds_generator(dataset)
    dataset.more = {"file": Lazy(), "generators": [random.Random(0)]}
    assert holds_generator(dataset)


def train_on_the_dataset(controller: Any, model: nn.Module, data: Any, **others: Any) -> float:
    labels = [data.dataset[index][1] for index in range(len(data.dataset))]
    return float(sum(labels)) + float(data.dataset.epoch)


def test_functions_of_the_user_see_the_dataset_behind_workers_that_stay() -> None:
    own = f"{__name__}.train_on_the_dataset"
    run = TrainingRun(train=Augmented(), train_epoch=own, loader={"persistent_workers": True}, **HALF)
    assert run.runner.train_epoch() == float(TRAIN["targets"].sum())


# --- data on the device ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"step_timeout_seconds": 60}, {"num_workers": 1}])
@pytest.mark.parametrize("num_steps", [None, 4])
def test_data_on_the_device_train_like_data_on_the_host(num_steps: int | None, changes: dict[str, Any]) -> None:
    runs = [
        TrainingRun(compress=make_sparse, loader={"on_device": stays, "steps_per_epoch": num_steps}, **changes)
        for stays in (True, False)
    ]
    assert runs[0].train_epochs(2) == runs[1].train_epochs(2)
    assert_same_bits(runs[0].weights, runs[1].weights)
    assert runs[0].training.steps_per_epoch == runs[1].training.steps_per_epoch
    assert runs[0].runner.validate().metric == runs[1].runner.validate().metric


def test_data_on_the_device_leave_the_same_random_numbers() -> None:
    states = []
    for stays in (True, False):
        run = TrainingRun(loader={"on_device": stays})
        run.train_epochs(2)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


class Endless(Sampler[int]):
    def __init__(self, dataset: Any) -> None:
        self.number = len(dataset)

    def __iter__(self) -> Iterator[int]:
        for index in itertools.count():
            assert index < 4 * 16  # of the steps
            yield -1 - index % self.number

    def __len__(self) -> int:
        return 1 << 40


@pytest.mark.parametrize("stays", [True, False])
def test_a_sampler_may_count_from_the_end_and_never_end(stays: bool) -> None:
    loader = {"sampler": f"{__name__}.Endless", "steps_per_epoch": 4, "on_device": stays}
    run = TrainingRun(train=TensorDataset(TRAIN["inputs"], torch.arange(96)), loader=loader)
    assert labels_of(run.training.train_batches(0)) == list(range(95, 31, -1))


# --- batches that are copied ahead ---------------------------------------------------------------------------------


def test_batches_that_are_copied_ahead_come_in_their_order() -> None:
    """On the CPU, whose streams do nothing; the order, the structure and what is loaded when are the same."""
    loaded: list[int] = []

    class Batches(list[Any]):
        def __iter__(self) -> Any:
            for number, batch in enumerate(super().__iter__()):
                loaded.append(number)
                yield batch

        sampler = "kept"

    tensors = TensorDataset(torch.arange(12.0), torch.arange(12))
    batches = Batches(Answered(tensors[i : i + 4], {"logits": torch.ones(4) * i}) for i in range(0, 12, 4))
    ahead, seen = CopiedAhead(batches, CPU), list[Any]()
    assert (len(ahead), ahead.sampler) == (3, "kept")
    for number, batch in enumerate(ahead):
        assert len(loaded) == min(number + 2, 3)
        assert type(batch) is Answered
        seen.append(batch)
    assert str(seen) == str(list(list.__iter__(batches)))


class Scan(tuple[Any, ...]):
    """A tuple that is made of other arguments than its parts."""

    def __new__(cls, image: Tensor, label: Tensor) -> Scan:
        return super().__new__(cls, (image, label))


def test_batches_of_a_class_of_the_users_come_as_they_are() -> None:
    batches = [Scan(torch.ones(2), torch.zeros(2)) for _ in range(3)]
    assert all(one is other for one, other in zip(CopiedAhead(batches, CPU), batches, strict=True))


def test_all_batches_are_copied_in_one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory of a stream is not used again in another one."""
    used: list[Any] = []
    original = torch.cpu.stream

    def noted(stream: Any) -> Any:
        used.append(stream)
        return original(stream)

    monkeypatch.setattr(torch.cpu, "stream", noted)
    for _ in range(2):
        assert len(list(CopiedAhead([(torch.ones(2),)] * 3, CPU))) == 3
    assert len(used) == 6
    assert len(set(map(id, used))) == 1


def test_the_last_step_is_watched_too() -> None:
    batches = Passed([(torch.ones(2),)] * 3, timeout=60.0)
    for _ in CopiedAhead(batches, CPU, timeout=60.0):
        assert watchdog._RUNNING
    assert not watchdog._RUNNING


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_copies_to_a_gpu_arrive() -> None:
    batches = [(torch.randn(1 << 20).pin_memory(), torch.arange(4)) for _ in range(20)]
    sums = [inputs.double().sum() for (inputs, _) in CopiedAhead(batches, torch.device("cuda"))]
    assert torch.allclose(torch.stack(sums).cpu(), torch.stack([each.double().sum() for each, _ in batches]))
    gpu, host = (TrainingRun(device=device) for device in ("cuda", "cpu"))
    assert gpu.train_epochs(2) == pytest.approx(host.train_epochs(2), rel=1e-3)
    assert {each.device.type for each in map_tensors(Tensor.detach, list(gpu.weights.values()))} == {"cuda"}
