"""The data of a split: tensors or a torch dataset, counted, sampled and hashed."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from kedro_aat.errors import DataError
from kedro_aat.tensors import hash_tensors, mark_made_up, synthetic_like
from kedro_aat.training.random_state import rng_state, seed_everything, set_rng_state


class Examples(Protocol):
    """A dataset of (input, target) pairs with a length; torch's own `Dataset` does not promise one."""

    def __len__(self) -> int:
        """Number of pairs."""
        ...

    def __getitem__(self, index: int) -> Any:
        """One pair."""
        ...


Data = Mapping[str, Tensor] | Examples

NUM_HASHED_EXAMPLES = 16
NUM_RANGED_EXAMPLES = 64  # give the range of made-up inputs


def as_dataset(data: Data, split: str) -> Examples:
    """The data of a split as a torch dataset.

    Raises:
        DataError: If the split is empty, or inputs and targets differ in number.
    """
    if isinstance(data, Mapping):
        missing = [key for key in ("inputs", "targets") if key not in data]
        if missing:
            raise DataError(f"The {split} split needs {' and '.join(missing)}, but has {', '.join(data) or 'nothing'}.")
        sizes = {key: len(data[key]) for key in ("inputs", "targets")}
        if len(set(sizes.values())) > 1:
            raise DataError(f"The {split} split has {sizes['inputs']} inputs, but {sizes['targets']} targets.")
        data = TensorDataset(data["inputs"], data["targets"])
    if len(data) == 0:
        raise DataError(f"The {split} split has 0 examples. Add examples, or give it a larger share of the data.")
    return data


def example_input(data: Data, num_examples: int = 2) -> Tensor:
    """The first inputs of a split, (num_examples, ...)."""
    dataset = as_dataset(data, "validation")
    count = min(num_examples, len(dataset))
    return torch.stack([dataset[index][0] for index in range(count)])


def synthetic_input(data: Data, num_examples: int = 2) -> Tensor:
    """Made-up inputs like those of a split, (num_examples, ...), for what is saved; see `synthetic_like`."""
    return mark_made_up(synthetic_like(example_input(data, NUM_RANGED_EXAMPLES), num_examples))


def example_count(data: Data) -> int:
    """Number of examples of a split."""
    return len(as_dataset(data, "given"))


def data_fingerprint(data: Data) -> str:
    """Hash that identifies a split: of all tensors, or of a dataset's size and some of its examples."""
    dataset = as_dataset(data, "given")
    if type(dataset) is TensorDataset:
        return hash_tensors(enumerate(dataset.tensors))
    size = len(dataset)
    before = rng_state()
    seed_everything(0)  # random augmentation must not change the hash
    examples = [dataset[index] for index in range(0, size, max(1, size // NUM_HASHED_EXAMPLES))]
    set_rng_state(before)
    parts = [torch.as_tensor(np.asarray(part)) for example in examples for part in example]
    return f"{size}-{hash_tensors(enumerate(parts))}"


def ignore_ctrl_c(worker: int) -> None:
    """Lets a worker load the rest of the epoch; a terminal sends Ctrl-C to it, too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
