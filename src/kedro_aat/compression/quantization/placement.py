"""Which tensors of a forward pass are to be quantized so that a runtime finds integer operations to fuse.

onnxruntime takes a layer for an integer one if its inputs are dequantized and its output is quantized, with at
most a ReLU between. So these are quantized: what a quantized layer reads, and what a quantized convolution gives
after the BatchNorm and the ReLU behind it. An addition or a concatenation between quantized layers is then
between quantized tensors by itself. A tensor is quantized where it is made, so that all who read it read the
same numbers; it is made again only where pooling or another rearrangement leaves the numbers as they are.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from kedro_aat.compression.quantization.calls import Operation, Recording
from kedro_aat.validated import Settings

CONVOLUTIONS = {"conv1d", "conv2d", "conv3d"}
LAYERS = CONVOLUTIONS | {"linear"}
# Of numbers that fit a range of 256 steps these make no new ones.
_REARRANGING = {
    *("max_pool1d", "max_pool2d", "max_pool3d", "boolean_dispatch", "dropout", "dropout1d", "dropout2d", "dropout3d"),
    *("flatten", "reshape", "view", "unflatten", "squeeze", "unsqueeze", "transpose", "permute", "contiguous"),
    *("getitem", "select", "narrow", "expand", "clone", "channel_shuffle", "pixel_shuffle"),
}
_RELUS = {"relu", "relu6", "clamp", "hardtanh"}


class Site(Settings):
    """A tensor that may be quantized.

    Attributes:
        step: The step that makes it; -1 for the model's first input, -2 for its second ...
        slot: Row of the table of ranges that is kept for it.
        owners: Numbers of the layers that ask for it; it is quantized while one of them is.
    """

    step: int
    slot: int
    owners: tuple[int, ...]


class LayerCall(Settings):
    """A step in which a layer is called.

    Attributes:
        step: Of the layer.
        layer: Its number.
        slot: Of the site that it reads, None for one that cannot be quantized.
        norm: Name of the BatchNorm that alone reads its output; None if there is none.
        norm_step: Of that BatchNorm.
    """

    step: int
    layer: int
    slot: int | None
    norm: str | None = None
    norm_step: int | None = None


class Plan(Settings):
    """What can be quantized in a forward pass.

    Attributes:
        names: Of the steps, for a check that a later pass is the same.
        sites: In the order of their slots' first use.
        calls: Of the layers.
    """

    names: tuple[str, ...]
    sites: tuple[Site, ...]
    calls: tuple[LayerCall, ...]


def num_slots(num_layers: int) -> int:
    """Rows of the table of ranges: what each layer reads, and what it gives."""
    return 2 * num_layers


def describe_slot(slot: int, layers: Sequence[str]) -> str:
    """Where a slot's tensor is, in words."""
    return f"the {'output' if slot % 2 else 'input'} of {layers[slot // 2]}"


def plan_sites(recording: Recording, layers: Mapping[str, int], *, quantize_inputs: bool) -> Plan:
    """Finds the sites in a recording.

    Args:
        recording: Its operations' owners are layers, and BatchNorms.
        layers: Name -> number, of those that can be quantized.
        quantize_inputs: Whether the model's own input is among the sites.
    """
    return _Planner(recording, layers, quantize_inputs).plan()


class _Planner:
    def __init__(self, recording: Recording, layers: Mapping[str, int], quantize_inputs: bool) -> None:
        self._recording, self._layers, self._quantize_inputs = recording, layers, quantize_inputs
        self._maker = {operation.output: operation for operation in recording.operations}
        self._readers: dict[int, list[Operation]] = defaultdict(list)
        for operation in recording.operations:
            for value in set(operation.inputs):
                self._readers[value].append(operation)
        self._slots: dict[int, int] = {}  # value -> slot
        self._owners: dict[int, set[int]] = defaultdict(set)  # value -> layers

    def plan(self) -> Plan:
        calls = [operation for operation in self._recording.operations if self._is_call(operation)]
        for call in calls:
            assert call.owner is not None  # _is_call saw to it
            self._want(self._source(call.inputs[0]), self._layers[call.owner], 0)
        num_calls = Counter(call.owner for call in calls)
        folded = {}
        for call in calls:
            norm = self._norm_behind(call)
            if norm is not None and num_calls[call.owner] == 1 and num_calls_of(self._recording, norm.owner) == 1:
                folded[call.output] = norm
            if call.name in CONVOLUTIONS:
                assert call.owner is not None
                self._want(self._end(call, norm), self._layers[call.owner], 1)
        return Plan(
            names=tuple(operation.name for operation in self._recording.operations if operation.step is not None),
            sites=tuple(
                Site(step=self._step(value), slot=slot, owners=tuple(sorted(self._owners[value])))
                for value, slot in self._slots.items()
            ),
            calls=tuple(self._layer_call(call, folded.get(call.output)) for call in calls),
        )

    def _is_call(self, operation: Operation) -> bool:
        return operation.name in LAYERS and operation.owner in self._layers and len(operation.inputs) == 1

    def _layer_call(self, call: Operation, norm: Operation | None) -> LayerCall:
        assert call.owner is not None
        assert call.step is not None
        return LayerCall(
            step=call.step,
            layer=self._layers[call.owner],
            slot=self._slots.get(self._source(call.inputs[0])),
            norm=norm.owner if norm else None,
            norm_step=norm.step if norm else None,
        )

    def _want(self, value: int, layer: int, side: int) -> None:
        """Asks for a value to be quantized for a layer; the first to ask lends its slot."""
        is_given = value < self._recording.num_inputs
        maker = self._maker.get(value)
        if is_given and not self._quantize_inputs:
            return
        if side == 1 and value in self._recording.outputs:
            return  # the model's own output is left in full precision
        if not is_given and maker is None:
            return  # one of several results of a function
        self._slots.setdefault(value, 2 * layer + side)
        self._owners[value].add(layer)

    def _source(self, value: int) -> int:
        """The value of which this one is a rearrangement."""
        while (maker := self._maker.get(value)) is not None and maker.name in _REARRANGING and maker.inputs:
            value = maker.inputs[0]
        return value

    def _norm_behind(self, call: Operation) -> Operation | None:
        reader = self._only_reader(call.output)
        is_norm = reader is not None and reader.name == "batch_norm" and reader.owner is not None
        return reader if is_norm else None

    def _end(self, call: Operation, norm: Operation | None) -> int:
        """The value behind a convolution, its BatchNorm and its ReLU, which a runtime makes in one go."""
        last = norm or call
        reader = self._only_reader(last.output)
        last = reader if reader is not None and reader.name in _RELUS else last
        assert last.output is not None  # each of them returns one tensor
        return last.output

    def _only_reader(self, value: int | None) -> Operation | None:
        if value is None or value in self._recording.outputs:
            return None
        readers = self._readers[value]
        return readers[0] if len(readers) == 1 and readers[0].output is not None else None

    def _step(self, value: int) -> int:
        if value < self._recording.num_inputs:
            return -1 - value
        step = self._maker[value].step
        assert step is not None  # only steps are wanted
        return step


def num_calls_of(recording: Recording, owner: str | None) -> int:
    """How often a function was given this module's tensor."""
    return sum(operation.owner == owner for operation in recording.operations)
