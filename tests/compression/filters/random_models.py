"""Random models: any list of steps is one, so that a wrong one can be made smaller step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

SIZE = 4  # height and width of images, and number of tokens
CHANNELS = (4, 6, 8, 12)


class Step(NamedTuple):
    """What a model does next: an operation, which of the tensors so far it reads, and a number that varies it."""

    operation: str
    first: int
    second: int
    number: int


class RandomModel(nn.Module):
    """Does some steps, each with any of the tensors so far: (B, 3, SIZE, SIZE) or (B, SIZE, 3) -> (B, 5).

    Args:
        steps: What it does.
        are_images: Whether it computes with images, or with tokens, whose channels are their last dimension.
    """

    def __init__(self, steps: list[Step], *, are_images: bool) -> None:
        super().__init__()
        self.steps, self.are_images, self.dim = steps, are_images, 1 if are_images else -1
        self.layers = nn.ModuleDict()
        self.gains = nn.ParameterDict()
        self._decisions: dict[str, bool] = {}
        with torch.no_grad():
            self.eval()(self.example())

    def example(self, batch: int = 4) -> Tensor:
        """A batch of inputs."""
        return torch.randn(batch, 3, SIZE, SIZE) if self.are_images else torch.randn(batch, SIZE, 3)

    def forward(self, x: Tensor) -> Tensor:
        values, read = [self._linear("stem", x, 8)], set()
        for number, (operation, first, second, variant) in enumerate(self.steps):
            one, other = first % len(values), second % len(values)
            read |= {one, other} if operation in TWO else {one}
            name = f"{number}_{operation}"
            if operation in TWO:
                values.append(TWO[operation](self, name, values[one], values[other], variant))
            else:
                values.append(ONE[operation](self, name, values[one], variant))
        ends = [number for number in range(len(values)) if number not in read]
        pooled = {number: values[number].mean((2, 3) if self.are_images else 1) for number in ends}
        return torch.stack(
            [self._layer(f"head{n}", lambda y: nn.Linear(y.shape[1], 5), p) for n, p in pooled.items()]
        ).sum(0)

    def channels(self, x: Tensor) -> int:
        """Number of channels."""
        return x.shape[self.dim]

    def decide(self, name: str, is_so: bool) -> bool:
        """Decides at the first call, as an author does who knows the widths; a cut model must not decide otherwise."""
        return self._decisions.setdefault(name, is_so)

    def is_even(self, name: str, x: Tensor) -> bool:
        """Whether the number of channels was even at the first call."""
        return self.decide(name, self.channels(x) % 2 == 0)

    def _layer(self, name: str, make: Callable[[Tensor], nn.Module], x: Tensor) -> Tensor:
        """Calls a layer, which the first call makes."""
        if name not in self.layers:
            self.layers[name] = make(x)
        out: Tensor = self.layers[name](x)
        return out

    def _linear(self, name: str, x: Tensor, outputs: int, size: int = 1, groups: int = 1) -> Tensor:
        if not self.are_images:
            return self._layer(name, lambda y: nn.Linear(y.shape[-1], outputs), x)
        return self._layer(name, lambda y: nn.Conv2d(y.shape[1], outputs, size, padding=size // 2, groups=groups), x)

    def alike(self, name: str, x: Tensor, other: Tensor) -> Tensor:
        """A tensor with as many channels as another one, by a layer if need be."""
        is_alike = self.decide(f"{name}_alike", self.channels(x) == self.channels(other))
        return x if is_alike else self._linear(name, x, self.channels(other))

    def gain(self, name: str, x: Tensor) -> Tensor:
        """A parameter for each channel, which the first call makes."""
        if name not in self.gains:
            number = self.channels(x)
            self.gains[name] = nn.Parameter(torch.randn(number, 1, 1) if self.are_images else torch.randn(number))
        gain: Tensor = self.gains[name]
        return gain

    def layer(self, name: str, x: Tensor, variant: int) -> Tensor:
        return self._linear(name, x, CHANNELS[variant % 4], 3 if variant & 4 else 1)

    def grouped(self, name: str, x: Tensor, variant: int) -> Tensor:
        number = self.channels(x)
        groups = next(count for count in ((2, 4, number)[variant % 3], 2, 1) if number % count == 0)
        return self._linear(name, x, number * (2 if variant & 4 else 1), 3, groups)

    def norm(self, name: str, x: Tensor, variant: int) -> Tensor:
        def make(y: Tensor) -> nn.Module:
            number = self.channels(y)
            groups = 2 if variant & 4 and number % 2 == 0 else 1
            images = [
                nn.BatchNorm2d(number),
                nn.GroupNorm(groups, number),
                nn.InstanceNorm2d(number, affine=bool(variant & 4)),
            ]
            tokens = [
                nn.LayerNorm(number),
                nn.RMSNorm(number, eps=1e-6),
                nn.LayerNorm(number, elementwise_affine=False),
            ]
            return (images if self.are_images else tokens)[variant % 3]

        return self._layer(name, make, x)

    def activation(self, name: str, x: Tensor, variant: int) -> Tensor:
        return (F.relu, F.sigmoid, F.gelu, F.softplus, F.silu, torch.cos)[variant % 6](x)

    def scale(self, name: str, x: Tensor, variant: int) -> Tensor:
        gain = self.gain(name, x)
        return x + gain if variant & 1 else x * gain

    def piece(self, name: str, x: Tensor, variant: int) -> Tensor:
        """A half of the channels, by `chunk` or by a size that is known."""
        number = self.channels(x)
        if not self.is_even(name, x):
            return x
        pieces = x.chunk(2, self.dim) if variant & 2 else x.split(number // 2, self.dim)
        return pieces[variant % 2]

    def gate(self, name: str, x: Tensor, variant: int) -> Tensor:
        if not self.is_even(name, x):
            return x
        left, right = x.chunk(2, self.dim)
        return (F.glu(x, self.dim), torch.maximum(left, right), left * right.tanh(), right + left)[variant % 4]

    def shuffle(self, name: str, x: Tensor, variant: int) -> Tensor:
        number = self.channels(x)
        groups = 2 if self.is_even(name, x) else 1
        shape = (number // groups, groups) if variant & 1 else (groups, number // groups)
        x = x.unflatten(self.dim, shape)
        return x.transpose(1, 2).flatten(1, 2) if self.are_images else x.transpose(-1, -2).flatten(-2)

    def excite(self, name: str, x: Tensor, variant: int) -> Tensor:
        pooled = x.mean((2, 3), keepdim=True) if self.are_images else x.mean(1, keepdim=True)
        hidden = self._linear(f"{name}_down", pooled, 6).relu()
        return x * self._linear(f"{name}_up", hidden, self.channels(x)).sigmoid()

    def over_channels(self, name: str, x: Tensor, variant: int) -> Tensor:
        if variant % 3 == 0:
            return x.softmax(self.dim)
        return x * x.mean(self.dim, keepdim=True) if variant % 3 == 1 else x - x.amax(self.dim, keepdim=True)

    def reorder(self, name: str, x: Tensor, variant: int) -> Tensor:
        number = self.channels(x)
        order = torch.arange(number - 1, -1, -1)
        turned = (
            x.flip(self.dim),
            x.roll(1, self.dim),
            x.index_select(self.dim, order),
            x.repeat_interleave(2, self.dim),
        )
        return turned[variant % (4 if self.decide(name, number <= max(CHANNELS)) else 3)]

    def some(self, name: str, x: Tensor, variant: int) -> Tensor:
        """Some channels, by a number that is written in the code."""
        number = self.channels(x)
        if self.decide(f"{name}_few", number < 2):
            return x
        if variant & 1:
            padding = (0, 0, 0, 0, 1, 2) if self.are_images else (1, 2)
            return F.pad(x, padding)
        return x.narrow(self.dim, 1 if self.decide(name, number > 3) else 0, 2)

    def add(self, name: str, x: Tensor, other: Tensor, variant: int) -> Tensor:
        x = self.alike(name, x, other)
        return (x + other, x - other, x * other, torch.maximum(x, other))[variant % 4]

    def cat(self, name: str, x: Tensor, other: Tensor, variant: int) -> Tensor:
        out = torch.cat([x, other], self.dim)
        return out if self.decide(name, self.channels(out) <= 32) else self._linear(name, out, 8)

    def again(self, name: str, x: Tensor, other: Tensor, variant: int) -> Tensor:
        """One layer for two tensors."""
        return self._linear(name, self.alike(f"{name}_before", x, other), 8) + self._linear(name, other, 8)

    def attend(self, name: str, x: Tensor, other: Tensor, variant: int) -> Tensor:
        """Channels attend to channels, or places to places."""
        left, right = (self._linear(f"{name}_{part}", y, 8) for part, y in zip("qk", (x, other), strict=True))
        a, b = (y.flatten(2).transpose(1, 2) if self.are_images else y for y in (left, right))  # (B, T, C)
        mixed = (a @ b.transpose(1, 2)).softmax(-1) @ b if variant & 1 else a @ (a.transpose(1, 2) @ b).tanh()
        return mixed.transpose(1, 2).unflatten(2, (SIZE, SIZE)) if self.are_images else mixed


ONE: dict[str, Callable[[RandomModel, str, Tensor, int], Tensor]] = {
    "layer": RandomModel.layer,
    "grouped": RandomModel.grouped,
    "norm": RandomModel.norm,
    "activation": RandomModel.activation,
    "scale": RandomModel.scale,
    "piece": RandomModel.piece,
    "gate": RandomModel.gate,
    "shuffle": RandomModel.shuffle,
    "excite": RandomModel.excite,
    "over_channels": RandomModel.over_channels,
    "reorder": RandomModel.reorder,
    "some": RandomModel.some,
}
TWO: dict[str, Callable[[RandomModel, str, Tensor, Tensor, int], Tensor]] = {
    "add": RandomModel.add,
    "cat": RandomModel.cat,
    "again": RandomModel.again,
    "attend": RandomModel.attend,
}
# Those that most models have are drawn more often.
_OFTEN = [*["layer"] * 4, *["activation"] * 2, *["norm"] * 2, *["add"] * 2, "cat", *ONE, *TWO]

recent = st.sampled_from([-1, -1, -1, -2, 0, 1, 2, 3])
steps = st.lists(st.builds(Step, st.sampled_from(_OFTEN), recent, recent, st.integers(0, 7)), min_size=1, max_size=9)
