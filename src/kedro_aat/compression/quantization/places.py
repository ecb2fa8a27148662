"""Where in a forward pass a step is, in plain data, and how it is found again in another pass.

A step is a call of a PyTorch function, see `calls.py`. Its `Place` are the calls of modules that lead to it, and its
name there, not its number in the whole pass. So the place is the same if a block is skipped, if a head is used in
training only, if a loop takes more turns, if a submodule is called from outside, or if gradient checkpointing calls it
once more in the backward pass.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from kedro_aat.validated import Settings


class Frame(Settings):
    """A call of a module within a forward pass.

    Attributes:
        module: Name of the module in the model; empty for the model itself.
        caller: Number of the frame from which it is called; -1 for the model itself.
        call: How many calls of the same module that frame has made before.
        inputs: Name of an argument of its `forward`, and number of the tensor that it is, as far as they are numbered.
    """

    module: str
    caller: int
    call: int
    inputs: tuple[tuple[str, int], ...] = ()


class Place(Settings):
    """Where in a forward pass a step is.

    Attributes:
        frame: Number of a frame.
        is_after: Whether the frame's caller takes the step, after this frame and before the next one; otherwise the
            module of the frame does, before it calls another one.
        name: Name of the function, without the underscores of operators and in-place functions.
        number: How many steps of this name were taken there before.
    """

    frame: int
    is_after: bool
    name: str
    number: int


class Node:
    """What is known of one frame.

    Attributes:
        inputs: Name of an argument -> number of its tensor.
        steps: (name, number) of a step before the first call of another module -> number of its tensor.
        after: The same for steps of the caller, after this frame.
        children: (module, call) -> node of a frame that is called from this one.
    """

    def __init__(self, inputs: Mapping[str, int]) -> None:
        self.inputs = inputs
        self.steps: dict[tuple[str, int], int] = {}
        self.after: dict[tuple[str, int], int] = {}
        self.children: dict[tuple[str, int], Node] = {}


class CallTree:
    """The frames of a recorded forward pass, and the tensors that are found in them.

    Args:
        frames: In the order of their calls, the model itself first.
        places: The place of each numbered tensor; None for one that is an input of the model.
    """

    def __init__(self, frames: Sequence[Frame], places: Sequence[Place | None]) -> None:
        nodes = [Node(dict(frame.inputs)) for frame in frames]
        self._by_module: dict[str, list[Node]] = defaultdict(list)
        for frame, node in zip(frames, nodes, strict=True):
            self._by_module[frame.module].append(node)
            if frame.caller >= 0:
                nodes[frame.caller].children[frame.module, frame.call] = node
        for number, place in enumerate(places):
            if place is not None:
                node = nodes[place.frame]
                (node.after if place.is_after else node.steps)[place.name, place.number] = number
        self._unknown = Node({})

    def find(self, caller: Node | None, module: str, call: int) -> tuple[Node, bool]:
        """Returns the node of a call, and whether exactly this call was recorded.

        If it was not, because a loop takes more turns or the module is called from elsewhere, the node is that of the
        nearest call of the same module.

        Args:
            caller: Node of the frame that calls; None for the outermost call.
            module: Name of the module.
            call: How many calls of the module the caller has made before.
        """
        if caller is not None:
            node = caller.children.get((module, call))
            if node is not None:
                return node, True
            while call and (module, call) not in caller.children:
                call -= 1
            if (module, call) in caller.children:
                return caller.children[module, call], False
        known = self._by_module.get(module)
        return (known[min(call, len(known) - 1)] if known else self._unknown), False
