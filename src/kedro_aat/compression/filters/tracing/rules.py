"""How operations carry labels of channels along: one rule per kind of ATen operation.

A rule runs the operation and labels its results. What no rule knows blocks the channels that enter it, and the reason
names the operation and the module, so that one unusual operation never spoils the rest of a model.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kedro_aat.compression.filters.tracing import contraction_rules as contraction
from kedro_aat.compression.filters.tracing import rearranging_rules as rearranging
from kedro_aat.compression.filters.tracing.labels import Coloring
from kedro_aat.model_inputs import tensors_in

if TYPE_CHECKING:
    from kedro_aat.compression.filters.tracing.trace import Tracer

# (tracer, func, args, kwargs) -> result: runs the operation `func` with its arguments, and gives the tracer the labels
# of what it returns. All rules have these arguments.
Rule = Callable[["Tracer", Any, tuple[Any, ...], dict[str, Any]], Any]

_POINTWISE = {
    *("_to_copy", "clone", "contiguous", "copy_", "fill_", "zero_", "_prelu_kernel", "native_dropout", "dropout"),
    *("lift_fresh_copy", "lift_fresh", "bernoulli_", "bernoulli", "nan_to_num", "where", "masked_fill", "masked_fill_"),
    *("normal_", "uniform_", "fused_dropout", "real", "imag", "view_as_real", "view_as_complex", "relu_", "pow"),
    *(
        "hardswish",
        "hardswish_",
        "hardsigmoid",
        "hardsigmoid_",
        "hardtanh",
        "hardtanh_",
        "mish",
        "mish_",
        "elu",
        "elu_",
    ),
    *("softplus", "softshrink", "hardshrink", "log_sigmoid_forward", "rrelu_with_noise", "threshold", "threshold_"),
    *("gelu", "silu", "silu_", "leaky_relu", "leaky_relu_", "celu", "selu", "relu6", "exponential_", "random_"),
}
_CREATING = {
    *("zeros", "ones", "full", "empty", "empty_strided", "rand", "randn", "randint", "arange", "linspace", "eye"),
    *("scalar_tensor", "new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided", "tril_indices"),
}
_LIKE = {"zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like"}
_REDUCING = {
    *("sum", "mean", "amax", "amin", "max", "min", "var", "std", "var_mean", "std_mean", "prod", "any", "all"),
    *("linalg_vector_norm", "norm", "logsumexp", "argmax", "argmin", "median", "nansum", "aminmax"),
}
_ALONG = {"_softmax", "_log_softmax", "_safe_softmax", "softmax", "cumsum", "cumprod", "sort", "topk", "logcumsumexp"}
_ADDING = {"sum", "linalg_vector_norm", "norm", "nansum"}  # zeros change nothing in their result
_SPATIAL = re.compile(r"(pool|upsample|pad|grid_sampler|interpolate).*?([123])d")
_NORMALIZING = {
    *("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm"),
    *("_batch_norm_with_update", "_batch_norm_no_update", "miopen_batch_norm", "_native_batch_norm_legit_functional"),
}
_IGNORED = {"_local_scalar_dense", "equal", "is_nonzero", "item"}


def find_rule(func: Any) -> Rule:
    """The rule for an operation."""
    name = func._schema.name.removeprefix("aten::")
    if name in _TABLE:
        return _TABLE[name]
    if name in rearranging.REARRANGING:
        return rearranging.rearrange
    if name in _POINTWISE or torch.Tag.pointwise in func.tags:
        return pointwise
    if name in _CREATING:
        return create
    if name in _LIKE:
        return create_like
    if name in _REDUCING or name in _ALONG:
        return reduce
    if name in _NORMALIZING:
        return normalize_batch
    if _SPATIAL.search(name):
        return pool
    return ignore if name in _IGNORED else unknown


def pointwise(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An operation on each entry: channels that meet in one entry are united."""
    inputs = [(tensor, tracer.labels(tensor)) for tensor in tensors_in((args, kwargs))]
    if not any(colorings for _, colorings in inputs):
        is_written_into = _is_in_place(func)
        result = func(*args, **kwargs)
        if is_written_into:
            tracer.put(args[0], ())
        tracer.follow(result, (args, kwargs), is_view=False)
        return result
    ndim = max(tensor.dim() for tensor, _ in inputs)
    found = [(tensor, each.padded(ndim)) for tensor, colorings in inputs for each in colorings]
    clusters = _clusters([coloring for _, coloring in found])
    labeled = []
    for dims, cluster in clusters:
        members = _without_constants(tracer, cluster)
        zero = {id(tensor) for tensor, each in found if each in members and each.is_zero}
        fixed = _fixed_dims(tracer, inputs, dims, ndim, found, members)
        is_zero = bool(zero) and _keeps_zeros(func, args, kwargs, zero)
        for coloring in members:
            left = tracer.without(coloring, fixed, f"{tracer.where} combines it with a tensor of fixed size")
            labeled += [Coloring(left.nodes, is_zero, is_buffer=left.is_buffer)] if left else []
    if _is_in_place(func) and tracer.is_part(args[0]) and not tracer.labels(args[0]):
        for coloring in labeled:
            tracer.found.block(coloring.nodes, f"{tracer.where} writes it into a part of another tensor")
    is_parameter = func._schema.name in ("aten::clone", "aten::_to_copy", "aten::contiguous")
    if is_parameter and len(inputs) == 1:
        labeled = [each for _, each in found]
    result = func(*args, **kwargs)
    for out in tensors_in(result):
        if out.dim() == ndim:
            tracer.put(out, labeled)
    return result


def _without_constants(tracer: Tracer, members: list[Coloring]) -> list[Coloring]:
    """Colorings without those of buffers that lie along fewer dimensions, as the positions that all heads share.

    The number of these entries is fixed then, so that whole heads can be cut.
    """
    most = max(len(coloring.dims) for coloring in members)
    kept = [each for each in members if not each.is_buffer or len(each.dims) == most]
    if all(each.is_buffer for each in kept):
        return members
    for each in members:
        if each not in kept:
            tracer.found.block(each.nodes, f"{tracer.where} combines it with all heads")
    return kept


def _clusters(colorings: list[Coloring]) -> list[tuple[set[int], list[Coloring]]]:
    """Colorings that vary along common dimensions, with these dimensions."""
    clusters: list[tuple[set[int], list[Coloring]]] = []
    for coloring in colorings:
        dims, members = set(coloring.dims), [coloring]
        for cluster in [each for each in clusters if each[0] & dims]:
            clusters.remove(cluster)
            dims, members = dims | cluster[0], cluster[1] + members
        clusters.append((dims, members))
    return clusters


def _fixed_dims(
    tracer: Tracer,
    inputs: list[Any],
    dims: set[int],
    ndim: int,
    found: list[tuple[Tensor, Coloring]],
    members: list[Coloring],
) -> set[int]:
    """Labeled dimensions along which a tensor without labels has its full size."""
    fixed: set[int] = set()
    for tensor, _ in inputs:
        own = {dim for other, each in found if other is tensor and each in members for dim in each.dims}
        sizes = [1] * (ndim - tensor.dim()) + list(tensor.shape)
        if not tracer.is_flexible(tensor):
            strides = [0] * (ndim - tensor.dim()) + list(tensor.stride())  # 0 where it was expanded to a size
            fixed |= {dim for dim in dims if sizes[dim] > 1 and strides[dim] and dim not in own}
    return fixed


def _keeps_zeros(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], zero: set[int]) -> bool:
    """Whether an operation on each entry returns zeros if some of its arguments are zeros."""

    def replaced(value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.zeros_like(value) if id(value) in zero else value.clone()
        if isinstance(value, list | tuple):
            return type(value)(replaced(part) for part in value)
        return value

    result = func(*map(replaced, args), **{key: replaced(value) for key, value in kwargs.items()})
    first = next(tensors_in(result))
    return not bool(first.ne(0).any())  # true for NaN, too, which is not equal to 0


def create(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A new tensor of any size."""
    result = func(*args, **kwargs)
    for out in tensors_in(result):
        tracer.mark_flexible(out)
    return result


def create_like(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A new tensor of the size of another."""
    result = func(*args, **kwargs)
    is_zero = func._schema.name == "aten::zeros_like"
    tracer.put(result, [Coloring(coloring.nodes, is_zero) for coloring in tracer.labels(args[0])])
    tracer.mark_flexible(result)
    return result


def reduce(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A sum, mean, maximum, softmax ... along some dimensions."""
    source: Tensor = args[0]
    name = func._schema.name.removeprefix("aten::")
    result = func(*args, **kwargs)
    dims = _reduced_dims(func, args, kwargs, source.dim())
    first = next(tensors_in(result))
    keeps_dims = first.dim() == source.dim()
    labeled: list[Coloring] = []
    spoiled: list[Tensor] = []
    for coloring in tracer.labels(source):
        nodes, common = coloring.nodes, [dim for dim in coloring.dims if dim in dims]
        if common and set(coloring.dims) - set(common):
            nodes = tracer.found.unite_along(nodes, common)
        elif common and name in _ADDING and coloring.is_zero:
            continue
        elif common:  # blocked only if something reads the result, unlike the mean weights of attention
            spoiled.append(nodes)
            continue
        is_zero = coloring.is_zero and not bool(_first_of(func, (torch.zeros_like(source), *args[1:]), kwargs).any())
        labeled.append(Coloring(nodes if keeps_dims else nodes.squeeze(tuple(dims)), is_zero))
    for out in tensors_in(result):
        if out.dim() == first.dim():
            tracer.put(out, labeled)
        for nodes in spoiled:
            tracer.spoil(out, nodes, f"{tracer.where} takes the {name.strip('_')} over it and other channels")
    return result


def _first_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    first: Tensor = next(tensors_in(func(*args, **kwargs)))
    return first.nan_to_num(nan=1.0).ne(0)


def _reduced_dims(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], ndim: int) -> list[int]:
    names = [argument.name for argument in func._schema.arguments]
    value = None
    for key in ("dim", "dims"):
        if key in names:
            index = names.index(key)
            value = kwargs.get(key, args[index] if index < len(args) else func._schema.arguments[index].default_value)
    if value is None or value == []:
        return list(range(ndim))
    return [dim % ndim for dim in ([value] if isinstance(value, int) else value)] if ndim else []


def pool(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An operation on the positions of each channel: pooling, interpolation, padding."""
    source: Tensor = args[0]
    name = func._schema.name.removeprefix("aten::")
    match = _SPATIAL.search(name)
    assert match is not None  # `find_rule` chose the rule by it
    num_spatial = int(match[2])
    labeled = []
    # Unpooling reads for each channel the positions that pooling found in the same one.
    alike = [part for part in tensors_in(args) if part.shape == source.shape]
    for coloring in itertools.chain.from_iterable(map(tracer.labels, alike)):
        spatial = range(source.dim() - num_spatial, source.dim())
        left = tracer.without(coloring, spatial, f"{tracer.where} applies {name} to it and other channels")
        labeled += [left] if left else []
    result = func(*args, **kwargs)
    is_zero = bool(labeled) and not bool(_first_of(func, (torch.zeros_like(source), *args[1:]), kwargs).any())
    for out in tensors_in(result):
        tracer.put(out, [Coloring(coloring.nodes, coloring.is_zero and is_zero) for coloring in labeled])
    return result


def normalize_batch(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """BatchNorm: scale, shift and statistics belong to the channels in dimension 1."""
    source: Tensor = args[0]
    own = [tensor for tensor in args[1:5] if isinstance(tensor, Tensor)]
    shape = [1, -1] + [1] * (source.dim() - 2)
    others = [dim for dim in range(source.dim()) if dim != 1]
    reason = f"{tracer.where} takes the mean over it and other channels"
    labeled = [left for each in tracer.labels(source) if (left := tracer.without(each, others, reason))]
    is_scaled = isinstance(args[1], Tensor)
    is_zero = is_scaled or (bool(args[5]) and all(each.is_zero for each in labeled))  # zeros have the mean zero
    for tensor in own:
        labeled += [Coloring(each.nodes.view(shape), False) for each in tracer.labels(tensor)]
    labeled += tracer.channels_of_layer(shape)
    labeled = [tracer.repeated(each, source.shape[1]) for each in labeled]
    result = func(*args, **kwargs)
    tracer.put(result[0], [Coloring(coloring.nodes, is_zero) for coloring in labeled])
    return result


def normalize_groups(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """GroupNorm with whole groups as units; `module_rules` handles those that are cut within their groups."""
    source, weight, bias = args[0], args[1], args[2]
    num_groups = args[6]
    shape = [1, -1] + [1] * (source.dim() - 2)
    labeled = [coloring for coloring in tracer.labels(source) if 1 in coloring.dims]
    for tensor in (weight, bias):
        if isinstance(tensor, Tensor):
            labeled += [Coloring(each.nodes.view(shape), True) for each in tracer.labels(tensor)]
    labeled += tracer.channels_of_layer(shape)
    for coloring in labeled:
        nodes = coloring.nodes.narrow(0, 0, 1).flatten()
        tracer.found.unite_along(nodes.view(num_groups, -1), [1])
    result = func(*args, **kwargs)
    tracer.put(result[0], [Coloring(coloring.nodes, True) for coloring in labeled])
    return result


def normalize_layer(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A layer normalization outside of modules that are known: what it normalizes cannot be cut."""
    source, normalized = args[0], args[1]
    labeled = []
    for coloring in tracer.labels(source):
        if any(dim >= source.dim() - len(normalized) for dim in coloring.dims):
            tracer.found.block(coloring.nodes, f"{tracer.where} normalizes it together with other channels")
        else:
            labeled.append(Coloring(coloring.nodes, False))
    for tensor in args[2:4]:
        if isinstance(tensor, Tensor):
            tracer.block(tensor, f"{tracer.where} normalizes it together with other channels")
    result = func(*args, **kwargs)
    for out in tensors_in(result):
        if out.dim() == source.dim():
            tracer.put(out, labeled)
    return result


def ignore(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An operation without a tensor as its result, such as a number of one."""
    for tensor in tensors_in((args, kwargs)):
        tracer.labels(tensor)  # it is read
    return func(*args, **kwargs)


def unknown(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An operation that consists of others, or one that cannot be followed."""
    with tracer:
        result = func.decompose(*args, **kwargs)
    if result is not NotImplemented:
        return result
    name = func._schema.name.removeprefix("aten::")
    for tensor in tensors_in((args, kwargs)):
        tracer.block(tensor, f"{tracer.where} applies {name} to it, which is not followed")
    result = func(*args, **kwargs)
    for out in tensors_in(result):
        tracer.put(out, ())
    return result


def _is_in_place(func: Any) -> bool:
    arguments = func._schema.arguments
    return bool(arguments) and arguments[0].alias_info is not None and arguments[0].alias_info.is_write


_TABLE: dict[str, Rule] = {
    "convolution": contraction.convolve,
    "mm": contraction.multiply,
    "bmm": contraction.multiply,
    "addmm": contraction.add_multiplied,
    "baddbmm": contraction.add_multiplied,
    "dot": contraction.multiply,
    "mv": contraction.multiply,
    "embedding": contraction.embed,
    "_embedding_bag": contraction.embed,
    "_weight_norm_interface": contraction.normalize_weight,
    "cat": rearranging.concatenate,
    "stack": rearranging.stack,
    "glu": rearranging.gate,
    "pixel_shuffle": rearranging.shuffle_pixels,
    "pixel_unshuffle": rearranging.unshuffle_pixels,
    "constant_pad_nd": rearranging.pad,
    "im2col": rearranging.unfold_pixels,
    "col2im": rearranging.fold_pixels,
    "as_strided_": rearranging.stride_again,
    "index_put_": rearranging.put,
    "index_put": rearranging.put,
    "native_group_norm": normalize_groups,
    "native_layer_norm": normalize_layer,
    "_fused_rms_norm": normalize_layer,
}
