"""Write the target shapes of Reshape operators as constants, where several axes have any size."""

from __future__ import annotations

import onnx_ir as ir

COPIED, INFERRED = 0, -1  # in a target shape: the size of the same axis of the input, and what is left


def make_shapes_constant(graph: ir.Graph) -> None:
    """Replace computed target shapes by constants, in place; the nodes that computed them are left without use.

    A target shape may copy the size of the same axis of the input and leave one size to be inferred. That is enough to
    split and join the heads of an attention layer at any batch size and length. The library that simplifies the graph
    only knows the second, which is enough where the batch alone has any size.
    """
    for node in ir.traversal.RecursiveGraphIterator(graph):
        if node.op_type != "Reshape":
            continue
        data, target = node.inputs
        if data is None or target is None or ir.convenience.get_const_tensor(target) is not None:
            continue
        if (sizes := _target(data.shape, node.outputs[0].shape)) is not None:
            constant = ir.node("Constant", [], attributes={"value_ints": ir.AttrInt64s("value_ints", sizes)})
            constant.outputs[0].dtype = ir.DataType.INT64
            assert node.graph is not None  # the iterator found it in one
            node.graph.insert_before(node, constant)
            node.replace_input_with(1, constant.outputs[0])
            node.attributes.pop("allowzero", None)  # with it, a 0 would be an empty axis


def _target(before: ir.Shape | None, after: ir.Shape | None) -> list[int] | None:
    """The constant target shape; None if there is none."""
    if before is None or after is None:
        return None
    sizes: list[int] = []
    for axis, size in enumerate(after):
        is_copied = axis < len(before) and _is_known(size) and before[axis] == size
        if isinstance(size, int) and size:
            sizes.append(size)
        else:
            sizes.append(COPIED if is_copied else INFERRED)
    return sizes if sizes.count(INFERRED) <= 1 else None


def _is_known(size: int | ir.SymbolicDim) -> bool:
    return isinstance(size, int) or size.value is not None
