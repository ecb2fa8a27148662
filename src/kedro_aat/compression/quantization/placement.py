"""Finds the tensors of a forward pass to quantize so that a runtime can fuse its layers into integer operations.

onnxruntime computes a layer in integers if its inputs are dequantized and its output is quantized, with at most a ReLU
in between. So two kinds of tensors are quantized: the inputs of quantized layers, and the outputs of quantized
convolutions after the BatchNorm and the ReLU that follow them. An addition or a concatenation between quantized layers
then has quantized tensors on both sides.

A tensor is quantized where it is made, so all its readers see the same numbers. Pooling, reshaping and the like only
rearrange numbers, so their results are not quantized again. A layer that reads a part of a tensor, such as some columns
of a table, needs that part alone: the rest, in which there may be the numbers of categories, stays as it is.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence

from kedro_aat.compression.quantization.places import Frame, Place
from kedro_aat.compression.quantization.recording import CONVOLUTIONS, LAYERS, PARTS, REARRANGING, Operation, Recording
from kedro_aat.validated import Settings

_RELUS = {"relu", "relu6", "clamp", "hardtanh"}
# Largest `Operation.damage` at which a model's input is rounded. Columns of a table whose scales are far apart would be
# lost in 8 bits (0.5 for one of 20,000 times the others), images and normalized columns lose 1e-4 and less.
_MOST_DAMAGE = 0.01


class Site(Settings):
    """A tensor that can be quantized.

    Attributes:
        place: Step that makes the tensor; None if it is an input of the model.
        value: Number of the tensor in the recording.
        slot: Row of the table of ranges that holds its range.
        owners: Numbers of the layers that need it quantized; it is quantized while any of them is.
    """

    place: Place | None
    value: int
    slot: int
    owners: tuple[int, ...]


class LayerCall(Settings):
    """A step in which a layer is called.

    Attributes:
        place: Place of the layer's step.
        layer: Number of the layer.
        slot: Slot of the layer's input; None if the input cannot be quantized.
        norm: Name of the BatchNorm that is the only reader of the layer's output; None if there is none.
        norm_place: Place of that BatchNorm.
    """

    place: Place
    layer: int
    slot: int | None
    norm: str | None = None
    norm_place: Place | None = None


class Placement(Settings):
    """Where a forward pass can be quantized.

    Attributes:
        frames: Calls of modules; their inputs are numbers of sites.
        sites: In the order of their slots' first use.
        calls: Calls of layers, in the order of their steps.
        with_float_inputs: Numbers of the layers that read an input of the model that 8 bits would damage.
    """

    frames: tuple[Frame, ...]
    sites: tuple[Site, ...]
    calls: tuple[LayerCall, ...]
    with_float_inputs: tuple[int, ...] = ()


def num_slots(num_layers: int) -> int:
    """Number of rows of the table of ranges: one for the input and one for the output of each layer."""
    return 2 * num_layers


def describe_slot(slot: int, layers: Sequence[str]) -> str:
    """Says in words which tensor a slot belongs to."""
    return f"the {'output' if slot % 2 else 'input'} of {layers[slot // 2]}"


def find_placement(
    recording: Recording,
    layers: Mapping[str, int],
    *,
    quantize_inputs: bool,
    with_float_inputs: Collection[int] | None = None,
) -> Placement:
    """Finds the sites and layer calls in a recorded forward pass.

    Args:
        recording: The owners of its operations are layers and BatchNorms.
        layers: Name -> number of each layer that can be computed in integers.
        quantize_inputs: Whether the model's own inputs can be quantized.
        with_float_inputs: Layers for which they cannot be; found from the recording if None.
    """
    return _PlacementFinder(recording, layers, quantize_inputs, with_float_inputs).find()


class _PlacementFinder:
    def __init__(
        self,
        recording: Recording,
        layers: Mapping[str, int],
        quantize_inputs: bool,
        with_float_inputs: Collection[int] | None,
    ) -> None:
        self._recording, self._layers, self._quantize_inputs = recording, layers, quantize_inputs
        self._maker = {output: operation for operation in recording.operations for output in operation.outputs}
        self._readers: dict[int, list[Operation]] = defaultdict(list)
        for operation in recording.operations:
            for value in set(operation.inputs):
                self._readers[value].append(operation)
        self._slots: dict[int, int] = {}  # value -> slot
        self._owners: dict[int, set[int]] = defaultdict(set)  # value -> layers
        self._calls = [operation for operation in recording.operations if self._is_layer_call(operation)]
        if with_float_inputs is None:
            with_float_inputs = {self._layer(call) for call in self._calls if (call.damage or 0) > _MOST_DAMAGE}
        self._with_float_inputs = with_float_inputs

    def find(self) -> Placement:
        calls = self._calls
        num_calls = Counter(call.owner for call in calls)
        num_operations = Counter(operation.owner for operation in self._recording.operations)
        norms: dict[int | None, Operation] = {}
        wanted: list[tuple[Operation, int, bool]] = []  # call, value, whether it is the call's output
        for call in calls:
            wanted.append((call, self._whole(call.inputs[0]), False))
            norm = self._norm_after(call)
            is_alone = norm is not None and num_calls[call.owner] == num_operations[norm.owner] == 1
            if norm is not None and is_alone and self._recording.reads.get(call.owner or "", 1) == 1:
                norms[call.output] = norm
            if call.name in CONVOLUTIONS:
                wanted.append((call, self._fused_output(call, norm), True))
        # A part of a tensor is only quantized by itself if nobody needs the whole. The order of the rest decides whose
        # slot a tensor has, and slots are saved with controllers.
        wanted.sort(key=lambda request: (not request[2] and self._is_part(request[1]), request[2]))
        for call, value, is_output in wanted:
            self._request(value if is_output else self._source(value), call, is_output=is_output)
        numbers = {value: number for number, value in enumerate(self._slots)}
        return Placement(
            frames=tuple(self._with_sites(frame, numbers) for frame in self._recording.frames),
            sites=tuple(
                Site(place=self._place(value), value=value, slot=slot, owners=tuple(sorted(self._owners[value])))
                for value, slot in self._slots.items()
            ),
            calls=tuple(self._layer_call(call, norms.get(call.output)) for call in calls),
            with_float_inputs=tuple(sorted(self._with_float_inputs)),
        )

    def _is_layer_call(self, operation: Operation) -> bool:
        is_layer = operation.name in LAYERS and operation.owner in self._layers and operation.place is not None
        return is_layer and len(operation.inputs) == 1

    def _layer(self, call: Operation) -> int:
        assert call.owner is not None  # `_is_layer_call` checked it
        return self._layers[call.owner]

    def _layer_call(self, call: Operation, norm: Operation | None) -> LayerCall:
        assert call.place is not None  # `_is_layer_call` checked it
        return LayerCall(
            place=call.place,
            layer=self._layer(call),
            slot=self._slots.get(self._source(call.inputs[0])),
            norm=norm.owner if norm else None,
            norm_place=norm.place if norm else None,
        )

    def _request(self, value: int, call: Operation, *, is_output: bool) -> None:
        """Makes a value a site, if it can be one; the first layer that requests a value provides its slot."""
        layer = self._layer(call)
        if value < self._recording.num_inputs:
            if not self._quantize_inputs:
                return
        elif self._place(value) is None:
            return  # one of several results of a function
        if not is_output and layer in self._with_float_inputs and call.damage is not None:
            return
        if is_output and value in self._recording.outputs:
            return  # the model's own outputs stay in full precision
        self._slots.setdefault(value, 2 * layer + is_output)
        self._owners[value].add(layer)

    def _whole(self, value: int) -> int:
        """The value of which this one is a rearrangement, but not a part."""
        while (maker := self._maker.get(value)) is not None and maker.name in REARRANGING - PARTS and maker.inputs:
            value = maker.inputs[0]
        return value

    def _is_part(self, value: int) -> bool:
        maker = self._maker.get(value)
        return maker is not None and maker.name in PARTS and bool(maker.inputs)

    def _source(self, value: int) -> int:
        """The value that is or would be quantized for the readers of this one, which is a rearrangement of it."""
        nearest = whole = self._whole(value)
        while whole not in self._slots and self._is_part(whole):
            whole = self._whole(self._maker[whole].inputs[0])
        if whole in self._slots:
            return whole
        return whole if self._place(nearest) is None and self._is_part(nearest) and self._only_parts(whole) else nearest

    def _only_parts(self, value: int) -> bool:
        """Whether a value is only read in parts, by layers alone."""
        return all(
            reader.owner in self._layers or (reader.name in REARRANGING and all(map(self._only_parts, reader.outputs)))
            for reader in self._readers[value]
        )

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

    def _place(self, value: int) -> Place | None:
        maker = self._maker.get(value)
        return None if maker is None else maker.place

    def _with_sites(self, frame: Frame, numbers: Mapping[int, int]) -> Frame:
        """The frame with the numbers of sites in place of those of values."""
        sources = [(name, numbers.get(self._source(value))) for name, value in frame.inputs]
        inputs = tuple((name, number) for name, number in sources if number is not None)
        return Frame(module=frame.module, caller=frame.caller, call=frame.call, inputs=inputs)
