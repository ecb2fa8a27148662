"""ExecuTorch as a target: PyTorch's runtime for phones, embedded Linux and microcontrollers."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal
from weakref import WeakSet

import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from kedro_aat.compression.quantization.layers import quantized_spec
from kedro_aat.errors import ExportError
from kedro_aat.export.axes import resized
from kedro_aat.export.session import FileModel
from kedro_aat.export.settings import ExportSettings
from kedro_aat.export.subject import Operators, Subject, require_cpu
from kedro_aat.export.targets.details import TargetDetails
from kedro_aat.export.targets.executorch_graph import for_xnnpack
from kedro_aat.export.targets.executorch_quiet import quiet_runtime
from kedro_aat.export.targets.quiet_import import quiet_import
from kedro_aat.export.targets.target import Target, TargetFile
from kedro_aat.model_inputs import ModelInputs
from kedro_aat.modes import first_cause, quiet
from kedro_aat.wrapped import unwrapped

_SUFFIX = ".pte"
_METHOD = "forward"
_OPERATOR = re.compile(r"\b(?:aten|dim_order_ops|quantized_decomposed)(?:::|\.)\w+(?:\.\w+)*")


class ExecutorchTarget(Target):
    """A program for ExecuTorch, with XNNPACK or with portable operators alone."""

    def write(
        self, model: nn.Module, inputs: ModelInputs, settings: ExportSettings, onnx_model: onnx.ModelProto
    ) -> TargetFile:
        """Traces the model, lowers it and plans its memory; axes beside the batch keep the size of the example.

        Args:
            model: On the CPU; it may be quantized by this package.
            inputs: Example inputs.
            settings: Which outputs are exported, the batch sizes, and `executorch`.
            onnx_model: Unused, since the program is traced from the model.
        """
        model = unwrapped(model)
        require_cpu(model)
        subject = Subject(model, inputs, settings)
        options = settings.executorch
        has_xnnpack = options.backend == "xnnpack"
        is_integer = has_xnnpack and quantized_spec(model) is not None
        # Portable kernels have no operators of PT2E, so integers are converted by plain arithmetic there.
        operators: Operators = "decomposed" if is_integer else "plain"
        if options.dynamic_batch and subject.batched:
            most = options.batch_size or max(settings.batch_sizes)
            if most > 1:
                program = subject.trace(free={}, kind=Dim.DYNAMIC, operators=operators, most=most)
                file = _file(subject, program, options.backend, None)
                if _takes_any_size(file, subject, most):
                    return file
        batch_size = (options.batch_size or settings.batch_sizes[0]) if not options.dynamic_batch else 1
        program = subject.trace_batch(batch_size, operators)
        return _file(subject, program, options.backend, batch_size if subject.batched else None)

    def read_back(self, file: TargetFile) -> FileModel:
        """The file in ExecuTorch's own runtime; batches larger than the file takes are run in pieces."""
        return _ExecutorchModel(file)

    def bind(self, file: TargetFile, batch: Sequence[NDArray[Any]], num_threads: int) -> Callable[[], object]:
        """Runs the program on the arrays, whose copies into its memory and out of it count.

        The threads are those of the whole process: ExecuTorch has one pool, which XNNPACK and its kernels share.

        Args:
            file: The file.
            batch: An array per input; a batch that is larger than the file takes is run in pieces.
            num_threads: Number of threads of the pool.
        """
        _use_threads(num_threads)
        model = _ExecutorchModel(file)
        pieces = [list(piece) for piece in model.pieces([torch.from_numpy(array) for array in batch])]
        return partial(_run_all, model.execute, pieces)


class _ExecutorchModel(FileModel):
    """A program in ExecuTorch's runtime.

    Raises:
        ExportError: If it cannot load the program.
    """

    def __init__(self, file: TargetFile) -> None:
        super().__init__(file.inputs, file.outputs)
        self._loaded: list[Any] = []
        self._file = file  # after what reads its bytes, since attributes are deleted in this order
        meta = self._method().metadata
        self._shapes = [tuple(meta.input_tensor_meta(number).sizes()) for number in range(meta.num_inputs())]
        self._most = self._shapes[0][0] if self._shapes and self._shapes[0] else None

    def execute(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Runs the program once."""
        outputs: Sequence[Tensor] = self._method().execute(tensors)
        return outputs

    def release(self) -> None:
        """Removes the program from memory; it is loaded again when it is run."""
        self._loaded.clear()

    def _method(self) -> Any:
        if not self._loaded:
            runtime = quiet_import("executorch.runtime").Runtime.get()
            with quiet_runtime("ExecuTorch cannot load the file"):
                program = runtime.load_program(self._file.parts[_SUFFIX])
                self._loaded[:] = [program.load_method(_METHOD), program]
            _LOADED.add(self)
        return self._loaded[0]

    def pieces(self, tensors: Sequence[Tensor]) -> list[Sequence[Tensor]]:
        """The batch in pieces that the program takes; the last is filled up if it takes one size only."""
        tensors = [tensor.contiguous() for tensor in tensors]
        for name, tensor, shape in zip(self.names[0], tensors, self._shapes, strict=True):
            # ExecuTorch takes any shape that fits into the memory of the largest.
            if tuple(tensor.shape[1:]) != shape[1:]:
                raise ExportError(
                    f"{name} must be of shape (batch, {', '.join(map(str, shape[1:]))}), but got {tuple(tensor.shape)}."
                )
        sizes = {len(tensor) for tensor in tensors if tensor.dim()}
        if self._most is None or len(sizes) != 1 or any(not tensor.dim() for tensor in tensors):
            return [tensors]  # something has no batch
        (size,) = sizes
        if size <= self._most and self._file.batch_size in (None, size):
            return [tensors]
        parts = [torch.arange(start, min(start + self._most, size)) for start in range(0, size, self._most)]
        if self._file.batch_size is not None:
            parts[-1] = torch.cat([parts[-1], parts[-1][:1].expand(self._most - len(parts[-1]))])
        return [[tensor[part] for tensor in tensors] for part in parts]

    def compute(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Runs ExecuTorch."""
        pieces = self.pieces(tensors)
        with quiet_runtime("ExecuTorch cannot run the file"):
            results = [self.execute(piece) for piece in pieces]
        if len(results) == 1 and len(pieces[0][0]) == len(tensors[0]):
            return results[0]
        size = len(tensors[0])
        return self._file.joined(results, len(pieces[0][0]), size)


_LOADED: WeakSet[_ExecutorchModel] = WeakSet()  # the programs that may be in memory


def _file(
    subject: Subject, program: ExportedProgram, backend: Literal["xnnpack", "portable"], batch_size: int | None
) -> TargetFile:
    """The lowered program with its names; `batch_size` is the only one that it takes, or None."""
    if is_integer := any(_is_of_pt2e(node) for node in program.graph.nodes):
        with quiet():
            program = for_xnnpack(program)
    assert backend == "xnnpack" or not is_integer  # portable operators cannot compute them
    lowered = _lower(program, subject.name, has_xnnpack=backend == "xnnpack")
    parts = {_SUFFIX: bytes(lowered.buffer)}
    names = tuple(subject.inputs), tuple(subject.outputs)
    axes = subject.output_axes()
    return TargetFile("executorch", parts, *names, batch_size=batch_size, batch_axes=axes, details=_details(lowered))


def _takes_any_size(file: TargetFile, subject: Subject, most: int) -> bool:
    """Whether a program takes other batch sizes than the one that was traced: a GRU's is lowered for that one alone."""
    model = _ExecutorchModel(file)
    for size in (1, most):
        inputs = resized(subject.inputs, {name: [0] for name in subject.batched}, size)
        try:
            model.run(list(inputs.values()))
        except ExportError:
            return False
    return True


def _run_all(execute: Callable[[Sequence[Tensor]], object], pieces: Sequence[Sequence[Tensor]]) -> None:
    for piece in pieces:
        execute(piece)


def _use_threads(number: int) -> None:
    """Sets the number of threads of ExecuTorch in this process.

    XNNPACK keeps a pointer to the old threads for each program that is loaded, so none may be.
    """
    library = quiet_import("executorch.extension.pybindings.portable_lib")
    with quiet_runtime("ExecuTorch cannot set its threads"):
        if library._threadpool_get_thread_count() != number:
            for model in list(_LOADED):
                model.release()
            library._unsafe_reset_threadpool(number)


def _lower(program: ExportedProgram, name: str, *, has_xnnpack: bool) -> Any:
    """The program in ExecuTorch's format, with a plan of its memory: an `ExecutorchProgramManager`."""
    exir = quiet_import("executorch.exir")
    partitioners = []
    if has_xnnpack:
        xnnpack = quiet_import("executorch.backends.xnnpack.partition.xnnpack_partitioner")
        partitioners = [xnnpack.XnnpackPartitioner(_kinds(program))]
    try:
        # With oneDNN, torch asks whether a batch is smaller than 16, and so bounds it by 15.
        with quiet(), torch.no_grad(), torch.backends.mkldnn.flags(enabled=False):
            edge = exir.to_edge_transform_and_lower(program, partitioner=partitioners)
            left = sorted({str(node.target) for node in edge.exported_program().graph.nodes if _is_of_pt2e(node)})
            if left:
                raise ExportError(f"XNNPACK does not take {left[0]}, and there are no portable kernels for it.")
            return edge.to_executorch()
    except Exception as error:  # ExecuTorch raises many kinds of error
        reason = first_cause(error)
        found = _OPERATOR.findall(str(error))
        operator = f" because of the operator {found[0]}" if found else ""
        raise ExportError(f"{name} cannot be written for ExecuTorch{operator}. ExecuTorch says: {reason}") from error


def _kinds(program: ExportedProgram) -> list[Any] | None:
    """What XNNPACK is given: None for all that it takes.

    A model that returns a tensor twice, or an input, returns a copy of it. XNNPACK must change something, so it gets no
    copies then. Means in int8 sum up in memory that all delegates share; with ExecuTorch 1.5 they write to where it was
    before a larger batch made it grow, and the process crashes. So a program for any batch size computes them with
    portable operators.
    """
    (outputs,) = program.graph.output_node().args
    assert isinstance(outputs, list | tuple)
    copies = {torch.ops.aten.clone.default, torch.ops.aten.alias.default}
    returns_copy = any(isinstance(output, torch.fx.Node) and output.target in copies for output in outputs)
    may_grow = bool(program.range_constraints) and any(_is_of_pt2e(node) for node in program.graph.nodes)
    if not returns_copy and not may_grow:
        return None
    kinds = quiet_import("executorch.backends.xnnpack.partition.config")
    left_out = {kinds.CloneConfig, kinds.CloneDimOrderConfig} if returns_copy else set()
    if may_grow:
        left_out.add(next(kind for kind in kinds.ALL_PARTITIONER_CONFIGS if kind.target_name == "mean.dim"))
    return [kind for kind in kinds.ALL_PARTITIONER_CONFIGS if kind not in left_out]


def _is_of_pt2e(node: torch.fx.Node) -> bool:
    return node.op == "call_function" and "quantized_decomposed" in str(node.target)


def _details(lowered: Any) -> TargetDetails:
    """Which operators and delegates a device needs, and how much memory the plan takes.

    XNNPACK asks the device for memory of its own when the program is loaded; that is in no plan.
    """
    (plan,) = lowered.executorch_program.execution_plan
    operators = {f"{each.name}.{each.overload}" if each.overload else each.name for each in plan.operators}
    delegates = {delegate.id for delegate in plan.delegates}
    return TargetDetails(
        operators=(*sorted(delegates), *sorted(operators)), arena_bytes=sum(plan.non_const_buffer_sizes)
    )
