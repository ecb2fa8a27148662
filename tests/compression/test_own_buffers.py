"""The buffers that compression adds: not sent by DistributedDataParallel, compared by a hash, and read in old forms."""

from __future__ import annotations

import copy
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kedro_aat.compression.build import build_controller
from kedro_aat.compression.controller import ModelController
from kedro_aat.compression.own_buffers import mask_hash
from kedro_aat.compression.settings import (
    Composite,
    CompressionSettings,
    FilterPruning,
    MagnitudeSparsity,
    Quantization,
    keeping_zeros,
)
from kedro_aat.search.tactics import Ranking
from kedro_aat.testing.training import BATCH, assert_same_bits, sgd, small_net, train
from kedro_aat.training.fingerprints.identity import fingerprint

ALGORITHMS: dict[str, CompressionSettings] = {
    "sparsity": MagnitudeSparsity(),
    "filters": FilterPruning(importance="taylor"),
    "quantization": keeping_zeros(Quantization()),
    "both": Composite(algorithms=(FilterPruning(), MagnitudeSparsity())),
}
IGNORED = "_ddp_params_and_buffers_to_ignore"


def compressed(settings: CompressionSettings, model: nn.Module | None = None) -> ModelController:
    return build_controller(model or small_net(), settings, example_input=BATCH["inputs"])


def sent_by_ddp(model: nn.Module) -> set[str]:
    """Names of the buffers that DDP sends before a forward pass."""
    ignored = set(getattr(model, IGNORED, ()))
    return {name for name, _ in model.named_buffers() if name not in ignored}


# --- DistributedDataParallel -------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_ddp_sends_no_buffers_of_ours_but_ranges(algorithm: str) -> None:
    controller = compressed(ALGORITHMS[algorithm])
    controller.compression_rate = 0.5
    own = {name for name, _ in small_net().named_buffers()}
    assert own  # of BatchNorms
    ranges = {"_activation_ranges"} if algorithm == "quantization" else set()
    assert sent_by_ddp(controller.model) == own | ranges
    assert not hasattr(controller.strip(), IGNORED)
    assert sent_by_ddp(copy.deepcopy(controller).model) == own | ranges
    controller.strip(do_copy=False)
    assert not hasattr(controller.model, IGNORED)


@pytest.mark.parametrize("of_user", [["a", "conv_mask"], {"a", "conv_mask"}, ("a", "conv_mask")])
def test_what_the_user_ignores_stays_ignored(of_user: Any) -> None:
    model = small_net()
    setattr(model, IGNORED, of_user)
    controller = compressed(MagnitudeSparsity(), model)
    assert {"a", "conv_mask"} < set(getattr(model, IGNORED))
    assert set(getattr(controller.strip(), IGNORED)) == {"a", "conv_mask"}
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ["b"])
    assert getattr(controller.strip(), IGNORED) == ["b"]


def _train_in_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    controller = compressed(MagnitudeSparsity(), small_net(seed=rank))
    parallel = DistributedDataParallel(controller.model)  # sends the weights of rank 0
    for rate in (0.3, 0.8):
        controller.compression_rate = rate
        train(parallel, sgd(parallel))
    torch.save([mask_hash(controller.model), controller.model.state_dict()], Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_work_out_the_same_masks(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=_train_in_rank, args=(rank, str(tmp_path))) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    (first_hash, first), (second_hash, second) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first_hash == second_hash
    masks = [name for name in first if name.endswith("_sparsity_mask")]
    assert masks
    assert_same_bits({name: first[name] for name in masks}, {name: second[name] for name in masks})


# --- the hash ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_hash_tells_masks_apart_and_nothing_else(algorithm: str) -> None:
    controller = compressed(ALGORITHMS[algorithm])
    hashes = []
    for rate in (0.0, 0.5, 0.9):
        controller.compression_rate = rate
        hashes.append(mask_hash(controller.model))
    assert len(set(hashes)) == 3
    train(controller.model, sgd(controller.model))
    assert mask_hash(controller.model) == hashes[-1] == mask_hash(copy.deepcopy(controller).model)
    assert mask_hash(controller.model.double()) == hashes[-1]
    controller.compression_rate = 0.0
    assert mask_hash(controller.model) == hashes[0]
    assert mask_hash(controller.strip()) == mask_hash(nn.Linear(1, 1)) != hashes[0]


# --- memory ------------------------------------------------------------------------------------------------------


def size_of_shadows(controller: ModelController) -> int:
    state = controller.model.state_dict()
    weights = {f"{name}_shadow" for name, _ in controller.model.named_parameters()}
    return sum(tensor.numel() for name, tensor in state.items() if name in weights)


@pytest.mark.parametrize("settings", [MagnitudeSparsity(), FilterPruning()], ids=["sparsity", "filters"])
def test_shadows_exist_only_where_weights_may_get_their_values_back(settings: Any) -> None:
    controller = compressed(settings)
    assert size_of_shadows(controller) == 0
    controller.compression_rate = 0.5
    assert size_of_shadows(controller) > 0
    controller.compression_rate = 0.0
    assert size_of_shadows(controller) == 0
    controller.compression_rate = 0.5
    controller.rank_by(Ranking())
    assert size_of_shadows(controller) == 0
    before = mask_hash(controller.model)
    controller.compression_rate = 0.8
    assert size_of_shadows(controller) == 0
    assert mask_hash(controller.model) != before
    state = controller.model.state_dict()
    masks = [tensor for name, tensor in state.items() if name.endswith(("weight_mask", "weight_sparsity_mask"))]
    assert masks
    assert {mask.dtype for mask in masks} == {torch.bool}


@pytest.mark.parametrize("kind", ["global", "local"])
def test_weights_that_begin_at_zero_are_not_ranked_again_at_the_same_rate(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kedro_aat.compression.sparsity import controller as module

    controller = compressed(MagnitudeSparsity())
    controller.rank_by(Ranking(importance="lamp", ranking=kind))
    controller.compression_rate = 0.5
    before = mask_hash(controller.model)
    train(controller.model, sgd(controller.model))
    monkeypatch.delattr(module, "keep_most_important")
    controller.compression_rate = 0.5
    assert mask_hash(controller.model) == before
    controller.compression_rate = 0.0  # for which nothing is ranked either
    assert mask_hash(controller.model) == mask_hash(compressed(MagnitudeSparsity()).model)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_large_weights_stay_zero_in_any_memory_format(memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(64, 300, 3), nn.Flatten(), nn.Linear(300, 500))
    model.to(memory_format=memory_format)  # type: ignore[call-overload]  # missing in torch's types
    controller = build_controller(model, MagnitudeSparsity())
    controller.compression_rate = 0.8
    zeros = [weight == 0 for weight in model.parameters() if weight.dim() > 1]
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1.0)
    model(torch.randn(2, 64, 3, 3))
    after = [weight == 0 for weight in model.parameters() if weight.dim() > 1]
    assert all(torch.equal(one, other) for one, other in zip(zeros, after, strict=True))


def test_shadow_on_the_host_changes_nothing_else() -> None:
    states = []
    for on_host in (False, True):
        controller = compressed(MagnitudeSparsity(shadow_on_host=on_host))
        for rate in (0.8, 0.3):
            controller.compression_rate = rate
            train(controller.model, sgd(controller.model))
        states.append(dict(controller.model.state_dict()))
    assert_same_bits(*states)


# --- earlier versions --------------------------------------------------------------------------------------------


def state_of_version_0_1(controller: ModelController) -> dict[str, Tensor]:
    """The model's state with masks that are numbers, and a shadow of each weight."""
    state, weights = dict(controller.model.state_dict()), dict(controller.model.named_parameters())
    for name, weight in weights.items():
        for suffix in ("_mask", "_sparsity_mask"):
            if name + suffix in state:
                state[name + suffix] = state[name + suffix].float()
        if f"{name}_shadow" in state and not state[f"{name}_shadow"].numel():
            state[f"{name}_shadow"] = weight.detach().clone()
    return state


@pytest.mark.parametrize(
    ("algorithm", "rate", "forgets", "assign"),
    [
        ("sparsity", 0.0, False, False),
        ("sparsity", 0.5, False, True),
        ("sparsity", 0.5, True, False),
        ("filters", 0.5, False, False),
        ("filters", 0.5, True, False),
        ("both", 0.5, False, False),
    ],
)
def test_state_of_version_0_1_is_loaded(algorithm: str, rate: float, forgets: bool, assign: bool) -> None:
    old, new = compressed(ALGORITHMS[algorithm]), compressed(ALGORITHMS[algorithm], small_net(seed=1))
    for controller in (old, new):
        controller.disable_scheduler()
    if forgets:
        old.rank_by(Ranking())
    old.compression_rate = rate
    train(old.model, sgd(old.model))
    new.model.load_state_dict(state_of_version_0_1(old), assign=assign)
    new.load_state(old.get_state())
    assert mask_hash(new.model) == mask_hash(old.model)
    for next_rate in (rate, 0.7, 0.2):
        for controller in (old, new):
            controller.compression_rate = next_rate
            train(controller.model, sgd(controller.model))
        assert_same_bits(dict(new.model.named_parameters()), dict(old.model.named_parameters()))


def test_shadows_of_another_shape_are_an_error() -> None:
    controller = compressed(MagnitudeSparsity())
    state = dict(controller.model.state_dict())
    name = next(name for name in state if name.endswith("_shadow"))
    with pytest.raises(RuntimeError, match="size mismatch"):
        controller.model.load_state_dict(state | {name: torch.zeros(3)})


@pytest.mark.parametrize(
    ("algorithm", "rate", "known"),
    [
        ("sparsity", 0.0, "a95767b6747041813784fa86dee8f0eb"),
        ("sparsity", 0.5, "fde83e34d4d03d0da46e9e25402d0f88"),
        ("filters", 0.5, "a4f40b0c22b87193698cf66ece45adb4"),
        ("both", 0.5, "72d4f37c02ca06c78bce002d0ec694ec"),
    ],
)
def test_runs_keep_the_names_of_version_0_1(algorithm: str, rate: float, known: str) -> None:
    controller = compressed(ALGORITHMS[algorithm])
    controller.compression_rate = rate
    assert fingerprint(controller.model) == known
