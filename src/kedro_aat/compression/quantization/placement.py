"""Finds the tensors of a forward pass to quantize so that a runtime can fuse its layers into integer operations.

onnxruntime computes a layer in integers if its inputs are dequantized and its output is quantized, with at most a ReLU
in between. So two kinds of tensors are quantized: the inputs of quantized layers, and the outputs of quantized
convolutions after the BatchNorm and the ReLU that follow them. An addition or a concatenation between quantized layers
then has quantized tensors on both sides.

A tensor is quantized where it is made, so all its readers see the same numbers. Pooling, reshaping and the like only
rearrange numbers, so their results are not quantized again.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from kedro_aat.compression.quantization.calls import Operation, Recording
from kedro_aat.validated import Settings

CONVOLUTIONS = {"conv1d", "conv2d", "conv3d"}
LAYERS = CONVOLUTIONS | {"linear"}
# Functions that add no new numbers to those of a quantized tensor, so their results need no rounding of their own.
_REARRANGING = {
    *("max_pool1d", "max_pool2d", "max_pool3d", "boolean_dispatch", "dropout", "dropout1d", "dropout2d", "dropout3d"),
    *("flatten", "reshape", "view", "unflatten", "squeeze", "unsqueeze", "transpose", "permute", "contiguous"),
    *("getitem", "select", "narrow", "expand", "clone", "channel_shuffle", "pixel_shuffle"),
}
_RELUS = {"relu", "relu6", "clamp", "hardtanh"}


class Site(Settings):
    """A tensor that can be quantized.

    Attributes:
        step: Step that makes the tensor; -1 is the model's first input, -2 its second, and so on.
        slot: Row of the table of ranges that holds its range.
        owners: Numbers of the layers that need it quantized; it is quantized while any of them is.
    """

    step: int
    slot: int
    owners: tuple[int, ...]


class LayerCall(Settings):
    """A step in which a layer is called.

    Attributes:
        step: Step of the layer.
        layer: Number of the layer.
        slot: Slot of the layer's input; None if the input cannot be quantized.
        norm: Name of the BatchNorm that is the only reader of the layer's output; None if there is none.
        norm_step: Step of that BatchNorm.
    """

    step: int
    layer: int
    slot: int | None
    norm: str | None = None
    norm_step: int | None = None


class Placement(Settings):
    """Where a forward pass can be quantized.

    Attributes:
        names: Name of each step, to check that a later pass takes the same steps.
        sites: In the order of their slots' first use.
        calls: Calls of layers, in the order of their steps.
    """

    names: tuple[str, ...]
    sites: tuple[Site, ...]
    calls: tuple[LayerCall, ...]


def num_slots(num_layers: int) -> int:
    """Number of rows of the table of ranges: one for the input and one for the output of each layer."""
    return 2 * num_layers


def describe_slot(slot: int, layers: Sequence[str]) -> str:
    """Says in words which tensor a slot belongs to."""
    return f"the {'output' if slot % 2 else 'input'} of {layers[slot // 2]}"


def find_placement(recording: Recording, layers: Mapping[str, int], *, quantize_inputs: bool) -> Placement:
    """Finds the sites and layer calls in a recorded forward pass.

    Args:
        recording: The owners of its operations are layers and BatchNorms.
        layers: Name -> number of each layer that can be quantized.
        quantize_inputs: Whether the model's own inputs can be quantized.
    """
    return _PlacementFinder(recording, layers, quantize_inputs).find()


class _PlacementFinder:
    def __init__(self, recording: Recording, layers: Mapping[str, int], quantize_inputs: bool) -> None:
        self._recording, self._layers, self._quantize_inputs = recording, layers, quantize_inputs
        self._maker = {operation.output: operation for operation in recording.operations}
        self._readers: dict[int, list[Operation]] = defaultdict(list)
        for operation in recording.operations:
            for value in set(operation.inputs):
                self._readers[value].append(operation)
        self._slots: dict[int, int] = {}  # value -> slot
        self._owners: dict[int, set[int]] = defaultdict(set)  # value -> layers

    def find(self) -> Placement:
        operations = self._recording.operations
        calls = [operation for operation in operations if self._is_layer_call(operation)]
        for call in calls:
            self._request(self._source(call.inputs[0]), self._layer(call), is_output=False)
        num_calls = Counter(call.owner for call in calls)
        num_operations = Counter(operation.owner for operation in operations)
        folded_norms = {}
        for call in calls:
            norm = self._norm_after(call)
            if norm is not None and num_calls[call.owner] == num_operations[norm.owner] == 1:
                folded_norms[call.output] = norm
            if call.name in CONVOLUTIONS:
                self._request(self._fused_output(call, norm), self._layer(call), is_output=True)
        return Placement(
            names=tuple(operation.name for operation in operations if operation.step is not None),
            sites=tuple(
                Site(step=self._step(value), slot=slot, owners=tuple(sorted(self._owners[value])))
                for value, slot in self._slots.items()
            ),
            calls=tuple(self._layer_call(call, folded_norms.get(call.output)) for call in calls),
        )

    def _is_layer_call(self, operation: Operation) -> bool:
        return operation.name in LAYERS and operation.owner in self._layers and len(operation.inputs) == 1

    def _layer(self, call: Operation) -> int:
        assert call.owner is not None  # `_is_layer_call` checked it
        return self._layers[call.owner]

    def _layer_call(self, call: Operation, norm: Operation | None) -> LayerCall:
        assert call.step is not None  # a layer returns one tensor
        return LayerCall(
            step=call.step,
            layer=self._layer(call),
            slot=self._slots.get(self._source(call.inputs[0])),
            norm=norm.owner if norm else None,
            norm_step=norm.step if norm else None,
        )

    def _request(self, value: int, layer: int, *, is_output: bool) -> None:
        """Makes a value a site, if it can be one; the first layer that requests a value provides its slot."""
        if value < self._recording.num_inputs:
            if not self._quantize_inputs:
                return
        elif value not in self._maker:
            return  # one of several results of a function
        if is_output and value in self._recording.outputs:
            return  # the model's own outputs stay in full precision
        self._slots.setdefault(value, 2 * layer + is_output)
        self._owners[value].add(layer)

    def _source(self, value: int) -> int:
        """The value of which this one is a rearrangement."""
        while (maker := self._maker.get(value)) is not None and maker.name in _REARRANGING and maker.inputs:
            value = maker.inputs[0]
        return value

    def _norm_after(self, call: Operation) -> Operation | None:
        reader = self._only_reader(call.output)
        is_norm = reader is not None and reader.name == "batch_norm" and reader.owner is not None
        return reader if is_norm else None

    def _fused_output(self, call: Operation, norm: Operation | None) -> int:
        """The value after a convolution, its BatchNorm and its ReLU, which a runtime computes as one operation."""
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
        assert step is not None  # `_request` accepts results of steps only
        return step
