"""Normalization over the channels that are kept equals that of a module with fewer channels."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kedro_aat.compression.filters.cutting import apply_cut_plan, axes
from kedro_aat.compression.filters.normalization import (
    KEPT,
    Normalization,
    normalize_over_kept,
    recognize,
    restore,
    set_kept,
)

CHANNELS = 12


class T5Norm(nn.Module):
    """Without a mean, a bias, or the precision of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(CHANNELS))
        self.variance_epsilon = 1e-6

    def forward(self, hidden_states: Tensor) -> Tensor:
        variance = hidden_states.to(torch.float32).pow(2).mean(-1, keepdim=True)
        return self.weight * (hidden_states * torch.rsqrt(variance + self.variance_epsilon)).to(hidden_states.dtype)


class GemmaNorm(nn.Module):
    """Its scale is one more than its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.eps = 1e-6
        self.weight = nn.Parameter(torch.zeros(CHANNELS))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps) * (1 + self.weight.float())).type_as(
            x
        )


class ConvNeXtNorm(nn.Module):
    """Over the channels of an image, with a hand-written variance."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(CHANNELS)), nn.Parameter(torch.zeros(CHANNELS))
        self.eps = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        return self.gamma[:, None, None] * (x - mean) / torch.sqrt(variance + self.eps) + self.beta[:, None, None]


class PermutedNorm(nn.LayerNorm):
    """A LayerNorm of images: derived from torch's, over another dimension."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class AnnotatedNorm(nn.Module):
    """With the standard deviation of a sample, and epsilon outside of the root."""

    def __init__(self) -> None:
        super().__init__()
        self.a_2, self.b_2 = nn.Parameter(torch.ones(CHANNELS)), nn.Parameter(torch.zeros(CHANNELS))
        self.eps = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return self.a_2 * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + self.eps) + self.b_2


TOKENS, IMAGES, VECTORS = (5, 7, CHANNELS), (5, CHANNELS, 4, 3), (5, CHANNELS)
NORMALIZATIONS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "LayerNorm": (lambda: nn.LayerNorm(CHANNELS), TOKENS),
    "LayerNorm of vectors": (lambda: nn.LayerNorm(CHANNELS), VECTORS),
    "LayerNorm without bias": (lambda: nn.LayerNorm(CHANNELS, bias=False), TOKENS),
    "LayerNorm without parameters": (lambda: nn.LayerNorm(CHANNELS, elementwise_affine=False), TOKENS),
    "RMSNorm": (lambda: nn.RMSNorm(CHANNELS, eps=1e-6), TOKENS),
    "RMSNorm without epsilon": (lambda: nn.RMSNorm(CHANNELS), TOKENS),
    "GroupNorm": (lambda: nn.GroupNorm(3, CHANNELS), IMAGES),
    "GroupNorm of vectors": (lambda: nn.GroupNorm(3, CHANNELS), VECTORS),
    "GroupNorm without parameters": (lambda: nn.GroupNorm(3, CHANNELS, affine=False), IMAGES),
    "GroupNorm in one group": (lambda: nn.GroupNorm(1, CHANNELS), IMAGES),
    "T5": (T5Norm, TOKENS),
    "Gemma": (GemmaNorm, TOKENS),
    "ConvNeXt": (ConvNeXtNorm, IMAGES),
    "permuted": (lambda: PermutedNorm(CHANNELS), IMAGES),
    "annotated": (AnnotatedNorm, TOKENS),
}
KEPT_CHANNELS = {  # as many in each group of four, or none
    "all": list(range(CHANNELS)),
    "half": [0, 3, 4, 5, 9, 10],
    "few": [2, 7, 8],
    "two groups": [1, 2, 3, 8, 9, 10],
}


def made(name: str) -> tuple[nn.Module, Tensor, Normalization]:
    torch.manual_seed(0)
    make, shape = NORMALIZATIONS[name]
    module = make()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    batch = torch.randn(shape) + 0.5
    normalization = recognize(module, batch)
    assert normalization is not None
    return module, batch, normalization


def masked(name: str, kept: list[int]) -> tuple[Any, Tensor, Any]:
    """A module with masked channels, an input, and the module that is cut."""
    module, batch, normalization = made(name)
    cut = copy.deepcopy(module)
    cuts = [
        {"layer": "", "kind": kind, "size": CHANNELS, "kept": kept} for kind in axes(module) if kind[-1] in ("0", "s")
    ]
    apply_cut_plan(cut, cuts)
    normalize_over_kept(module, normalization)
    mask = torch.zeros(CHANNELS)
    mask[kept] = 1
    set_kept(module, mask)
    return module, batch, cut


def of_kept(x: Tensor, kept: list[int], name: str) -> Tensor:
    return x.index_select(1 if NORMALIZATIONS[name][1] is IMAGES else -1, torch.tensor(kept))


@pytest.mark.parametrize("kept", KEPT_CHANNELS.values(), ids=KEPT_CHANNELS)
@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_masked_equals_cut(name: str, kept: list[int]) -> None:
    module, batch, cut = masked(name, kept)
    module, batch, cut = module.double(), batch.double(), cut.double()
    ours, theirs = batch.clone().requires_grad_(), batch.clone().requires_grad_()
    tolerance = 1e-6 if name in ("T5", "Gemma") else 1e-9  # these compute in single precision
    for mode in (True, False):
        out, expected = module.train(mode)(ours), cut.train(mode)(of_kept(theirs, kept, name))
        torch.testing.assert_close(of_kept(out, kept, name), expected, rtol=tolerance, atol=tolerance)
    weight = torch.randn(expected.shape).double()
    (of_kept(out, kept, name) * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e3 * tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_what_stands_in_masked_channels_does_not_matter(name: str) -> None:
    kept = KEPT_CHANNELS["half"]
    module, batch, _ = masked(name, kept)
    other = batch.clone()
    index = torch.tensor([channel for channel in range(CHANNELS) if channel not in kept])
    other.index_fill_(1 if NORMALIZATIONS[name][1] is IMAGES else -1, index, 1e3)
    torch.testing.assert_close(module(batch), module(other), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_with_all_channels_and_after_restoring_it_is_the_original(name: str) -> None:
    module, batch, normalization = made(name)
    original, attributes = copy.deepcopy(module), set(vars(module))
    normalize_over_kept(module, normalization)
    assert torch.equal(module(batch), original(batch))
    set_kept(module, torch.arange(CHANNELS) % 2 == 0)
    assert not torch.equal(module(batch), original(batch))
    restore(module)
    restore(module)
    assert torch.equal(module(batch), original(batch))
    assert set(vars(module)) == attributes
    assert list(module.state_dict()) == list(original.state_dict())
    assert not module._forward_hooks
    assert not module._forward_pre_hooks


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "state_dict", "compile"])
@pytest.mark.parametrize("name", ["LayerNorm", "GroupNorm", "T5"])
def test_the_choice_survives(name: str, way: str) -> None:
    module, batch, _ = masked(name, KEPT_CHANNELS["half"])
    other: Any
    if way == "deepcopy":
        other = copy.deepcopy(module)
    elif way == "pickle":
        file = io.BytesIO()
        torch.save(module, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    elif way == "state_dict":
        other, _, normalization = made(name)
        normalize_over_kept(other, normalization)
        other.load_state_dict(module.state_dict())
        everything = made(name)[0].state_dict() | {KEPT: torch.ones(CHANNELS)}
        module.load_state_dict(everything)
        torch.testing.assert_close(module(batch), made(name)[0](batch))
        module.load_state_dict(other.state_dict())
    else:
        other = torch.compile(module, backend="eager", fullgraph=True)
    torch.testing.assert_close(other(batch), module(batch))


class Scaled(nn.Module):
    """Almost a normalization: its mean leaves out the last channel."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(CHANNELS)), 1e-5

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x - x[..., :-1].mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + self.eps).sqrt()


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.BatchNorm2d(CHANNELS), IMAGES),
        (nn.InstanceNorm2d(CHANNELS), IMAGES),
        (nn.GroupNorm(CHANNELS, CHANNELS), IMAGES),
        (nn.LayerNorm((CHANNELS, 4, 3)), IMAGES),
        (nn.Linear(CHANNELS, CHANNELS), TOKENS),
        (nn.Dropout(0.1), TOKENS),
        (nn.ReLU(), TOKENS),
        (nn.LocalResponseNorm(2), IMAGES),
        (nn.Sequential(nn.LayerNorm(CHANNELS)), TOKENS),
        (Scaled(), TOKENS),
    ],
    ids=lambda part: type(part).__name__,
)
def test_anything_else_is_not_recognized(module: nn.Module, shape: tuple[int, ...]) -> None:
    assert recognize(module, torch.randn(shape)) is None


def test_shape_of_the_normalization() -> None:
    assert recognize(nn.GroupNorm(3, CHANNELS), torch.randn(IMAGES)) == Normalization(
        CHANNELS, 1, 3, True, True, 0, "bias"
    )
    assert recognize(ConvNeXtNorm(), torch.randn(IMAGES)) == Normalization(CHANNELS, 1, 1, False, True, 0, "beta")
    assert recognize(T5Norm(), torch.randn(TOKENS)) == Normalization(CHANNELS, -1, 1, False, False, 0, None)


def test_half_precision() -> None:
    module, batch, cut = masked("T5", KEPT_CHANNELS["half"])
    kept = KEPT_CHANNELS["half"]
    out = module.bfloat16()(batch.bfloat16())
    torch.testing.assert_close(of_kept(out.float(), kept, "T5"), cut(of_kept(batch, kept, "T5")), rtol=0.02, atol=0.05)


def test_the_input_may_be_named() -> None:
    module, batch, _ = masked("T5", KEPT_CHANNELS["half"])
    assert torch.equal(module(hidden_states=batch), module(batch))
