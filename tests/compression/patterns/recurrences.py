"""Recurrent layers, cells in loops, and convolutions over time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.compression.patterns.registry import IMAGE, SERIES, Patterns, numbers, tokens

RECURRENCES = Patterns()
_SOUND = numbers(20, 10)  # steps, features


class AfterConvolution(nn.Module):
    """A convolution over time, a recurrent layer, a classifier of the mean or of the last state."""

    def __init__(self, kind: Callable[..., nn.RNNBase], *, last: bool = False, **options: Any) -> None:
        super().__init__()
        self.last, self.is_lstm = last, kind is nn.LSTM
        self.conv, self.norm = nn.Conv1d(10, 24, 5, padding=2), nn.BatchNorm1d(24)
        self.rnn = kind(24, 16, batch_first=True, **options)
        ways = 2 if options.get("bidirectional") else 1
        self.head = nn.Linear(ways * options.get("proj_size", 16), 4)

    def forward(self, x: Tensor) -> Any:
        y = F.relu(self.norm(self.conv(x.transpose(1, 2)))).transpose(1, 2)
        y, state = self.rnn(y)
        if not self.last:
            return self.head(y.mean(1))
        return self.head((state[0] if self.is_lstm else state)[-1])


_KINDS: tuple[type[nn.RNNBase], ...] = (nn.GRU, nn.LSTM, nn.RNN)
for _kind in _KINDS:
    _name = _kind.__name__
    RECURRENCES.add(f"{_name} after a convolution", partial(AfterConvolution, _kind), _SOUND, "conv rnn", "rnn head")
    RECURRENCES.add(f"{_name}, two ways", partial(AfterConvolution, _kind, bidirectional=True), _SOUND, "conv", "rnn")
    RECURRENCES.add(f"{_name}, two layers", partial(AfterConvolution, _kind, num_layers=2), _SOUND, "conv", "rnn")
    RECURRENCES.add(f"{_name}, last state", partial(AfterConvolution, _kind, last=True), _SOUND, "conv", "rnn")
RECURRENCES.add("LSTM, projected", lambda: AfterConvolution(nn.LSTM, proj_size=6), _SOUND, "conv", "rnn")
RECURRENCES.add("GRU without bias", lambda: AfterConvolution(nn.GRU, bias=False), _SOUND, "conv rnn", "rnn")


class AfterEmbedding(nn.Module):
    """Token numbers, a recurrent layer, and both of its results."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(30, 20), nn.LSTM(20, 16, batch_first=True)
        self.hidden, self.head = nn.Linear(48, 14), nn.Linear(14, 4)

    def forward(self, tokens: Tensor) -> Any:
        y, (h, c) = self.lstm(self.embedding(tokens))
        return self.head(self.hidden(torch.cat([y.amax(1), h[-1], c[-1]], -1)).relu())


RECURRENCES.add("LSTM after an embedding", AfterEmbedding, tokens(), "embedding hidden", "lstm")


class Stacked(nn.Module):
    """Two recurrent layers of their own with a linear layer between, steps first."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.between, self.second = nn.GRU(10, 16), nn.Linear(16, 12), nn.LSTM(12, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Any:
        y, _ = self.first(x.transpose(0, 1))
        y, _ = self.second(self.between(y).relu())
        return self.head(y[-1])


RECURRENCES.add("recurrent layers in turn", Stacked, _SOUND, "between", "second")


class FromContext(nn.Module):
    """A second input gives the first state, as in image captions; with attention over the results."""

    def __init__(self) -> None:
        super().__init__()
        self.context, self.gru = nn.Linear(6, 16), nn.GRU(10, 16, batch_first=True)
        self.score, self.hidden, self.head = nn.Linear(16, 1), nn.Linear(16, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor, context: Tensor) -> Any:
        y, _ = self.gru(x, self.context(context).tanh().unsqueeze(0))
        weights = self.score(y).softmax(1)
        return self.head(self.hidden((weights * y).sum(1)).relu())


RECURRENCES.add("first state from a layer", FromContext, lambda: (torch.randn(4, 20, 10), torch.randn(4, 6)), "hidden")


class Loop(nn.Module):
    """A cell in a Python loop, with a layer before and after."""

    def __init__(self, kind: type[nn.RNNCellBase]) -> None:
        super().__init__()
        self.enter, self.leave, self.head = nn.Linear(10, 14), nn.Linear(16, 12), nn.Linear(12, 4)
        self.cell = kind(14, 16)  # type: ignore[call-arg]  # the classes derived from it take two sizes

    def forward(self, x: Tensor) -> Any:
        state: Any = x.new_zeros(len(x), self.cell.hidden_size)
        state = (state, state) if isinstance(self.cell, nn.LSTMCell) else state
        for step in self.enter(x).relu().unbind(1):
            state = self.cell(step, state)
        return self.head(self.leave(state[0] if isinstance(state, tuple) else state).relu())


for _cell in (nn.GRUCell, nn.LSTMCell, nn.RNNCell):
    RECURRENCES.add(f"{_cell.__name__} in a loop", partial(Loop, _cell), numbers(6, 10), "leave")


class OwnCell(nn.Module):
    """A gated cell of linear layers, written out."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.gates, self.new = nn.Linear(10, 16), nn.Linear(32, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Any:
        steps = self.enter(x).unbind(1)
        state = torch.zeros_like(steps[0])
        for step in steps:
            update, reset = self.gates(torch.cat([step, state], -1)).sigmoid().chunk(2, -1)
            new = self.new(torch.cat([step, reset * state], -1)).tanh()
            state = update * state + (1 - update) * new
        return self.head(state)


RECURRENCES.add("own cell", OwnCell, numbers(5, 10), "enter new", "head")


class ConvolutionalCell(nn.Module):
    """ConvLSTM: the four gates of each place from one convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gates, self.head = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(20, 48, 3, padding=1),
            nn.Conv2d(12, 3, 1),
        )

    def forward(self, frames: Tensor) -> Any:  # (batch, steps, 3, height, width)
        batch, _, _, height, width = frames.shape
        h = c = frames.new_zeros(batch, 12, height, width)
        for frame in frames.unbind(1):
            i, f, o, g = self.gates(torch.cat([self.stem(frame), h], 1)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return self.head(h)


RECURRENCES.add("ConvLSTM", ConvolutionalCell, numbers(3, 3, 6, 6), "stem")


class Reading(nn.Module):
    """CRNN: convolutions of an image, its columns as steps, a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(3, 12, 3, padding=1),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.MaxPool2d((2, 1)),
            nn.Conv2d(12, 10, 3, padding=1),
        )
        self.rnn, self.head = nn.LSTM(40, 16, bidirectional=True), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Any:
        y = self.convs(x).relu()  # (batch, 10, 4, 8)
        y, _ = self.rnn(y.permute(3, 0, 1, 2).flatten(2))
        return self.head(y).transpose(0, 1)


RECURRENCES.add("columns of an image", Reading, IMAGE, "convs.0 convs.4", "rnn")


def _normed(inputs: int, outputs: int, dilation: int, *, norm: bool) -> nn.Module:
    layer = nn.Conv1d(inputs, outputs, 3, padding=2 * dilation, dilation=dilation)
    return nn.utils.parametrizations.weight_norm(layer) if norm else layer


class Temporal(nn.Module):
    """TCN: dilated convolutions that look back only, cut to length, with shortcuts; plain or with weight norm."""

    def __init__(self, *, norm: bool) -> None:
        super().__init__()
        self.first = nn.ModuleList([_normed(6, 16, 1, norm=norm), _normed(16, 16, 2, norm=norm)])
        self.second = nn.ModuleList([_normed(16, 16, 1, norm=norm), _normed(16, 16, 2, norm=norm)])
        self.shortcut, self.head = nn.Conv1d(6, 16, 1), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Any:
        steps = x.shape[-1]
        for number, (first, second) in enumerate(zip(self.first, self.second, strict=True)):
            y = F.relu(second(F.relu(first(x)[..., :steps]))[..., :steps])
            x = F.relu(y + (x if number else self.shortcut(x)))
        return self.head(x[:, :, -1])


RECURRENCES.add("TCN", lambda: Temporal(norm=False), SERIES, "first.0 first.1 second.0 second.1 shortcut", "head")
RECURRENCES.add("TCN with weight norm", lambda: Temporal(norm=True), SERIES, "")


class WaveNet(nn.Module):
    """Gated layers whose outputs are split into what goes on and what is summed for the end."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv1d(6, 12, 1)
        self.gates = nn.ModuleList(nn.Conv1d(12, 32, 3, padding=d, dilation=d) for d in (1, 2))
        self.onward = nn.ModuleList(nn.Conv1d(16, 12, 1) for _ in range(2))
        self.skips = nn.ModuleList(nn.Conv1d(16, 20, 1) for _ in range(2))
        self.end = nn.Sequential(nn.ReLU(), nn.Conv1d(20, 14, 1), nn.ReLU(), nn.Conv1d(14, 3, 1))

    def forward(self, x: Tensor) -> Any:
        x, total = self.enter(x), 0
        for gate, onward, skip in zip(self.gates, self.onward, self.skips, strict=True):
            filtered, opened = gate(x).chunk(2, 1)
            y = filtered.tanh() * opened.sigmoid()
            total = total + skip(y)
            x = x + onward(y)
        return self.end(total)


RECURRENCES.add("WaveNet", WaveNet, SERIES, "enter gates.0 gates.1 onward.0 skips.0 skips.1 end.1", "end.1")
