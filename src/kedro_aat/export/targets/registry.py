"""The targets by name: what each is called, what it needs, and what writes it. Settings read it without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from kedro_aat.export import NotExported
from kedro_aat.export.targets.quiet_import import quiet_import

if TYPE_CHECKING:
    from kedro_aat.export.targets.target import Target

TargetName = Literal["onnx", "pt2", "openvino", "executorch", "litert"]


@dataclass(frozen=True)
class TargetInfo:
    """What is known of a target before it is used.

    Attributes:
        title: As people write it.
        suffixes: Suffix of each file; the first one is that of the graph.
        class_path: Module and name of the class that writes it; None for what every run writes.
        extra: Extra of this package that installs it; None if every installation has it.
        modules: Modules that run the file, and must be importable.
        writers: Modules that write it, and must be importable.
        slow_writers: Modules that write it and take seconds to import, so that they are only looked for.
        packages: Packages whose versions decide what is written and how it runs; the first one runs it.
        round_to: Multiple of channels that the runtime's kernels are fast with; 1 if any number will do.
    """

    title: str
    suffixes: tuple[str, ...]
    class_path: str | None = None
    extra: str | None = None
    modules: tuple[str, ...] = ()
    writers: tuple[str, ...] = ()
    slow_writers: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    round_to: int = 1

    @property
    def runtime(self) -> str:
        """The package that runs the file."""
        return self.packages[0]


TARGETS: Mapping[TargetName, TargetInfo] = {
    "onnx": TargetInfo("ONNX", (".onnx",), packages=("onnxruntime",)),
    "pt2": TargetInfo(".pt2", (".pt2",), packages=("torch",)),
    "openvino": TargetInfo(
        "OpenVINO",
        (".xml", ".bin"),
        "kedro_aat.export.targets.openvino.OpenvinoTarget",
        extra="openvino",
        modules=("openvino",),
        packages=("openvino",),
    ),
    "executorch": TargetInfo(
        "ExecuTorch",
        (".pte",),
        "kedro_aat.export.targets.executorch.ExecutorchTarget",
        extra="executorch",
        modules=("executorch.runtime",),
        writers=("executorch.exir",),
        slow_writers=("torchao",),
        packages=("executorch", "torchao"),
        round_to=8,  # XNNPACK's tiles: 8 or 16 output channels on Arm, 16 where it was measured, on x86
    ),
    "litert": TargetInfo(
        "LiteRT",
        (".tflite",),
        "kedro_aat.export.targets.litert.LitertTarget",
        extra="litert",
        modules=("ai_edge_litert.interpreter",),
        writers=("litert_converter",),
        slow_writers=("litert_torch", "torchao"),
        packages=("ai-edge-litert", "litert-torch", "litert-converter"),
        round_to=4,  # CMSIS-NN's int8 kernels handle four channels at once
    ),
}


def missing(name: TargetName, *, only_to_run: bool = False) -> str | None:
    """What to do if a target is not installed, as a sentence without its period; None if it is.

    Args:
        name: Name of the target.
        only_to_run: Whether its files are run and none is written.
    """
    info = TARGETS[name]
    reasons: list[str] = []
    for module in (*info.modules, *(() if only_to_run else info.writers)):
        try:
            quiet_import(module)
        except Exception as error:  # a package that is installed beside wrong ones raises anything
            reasons.append(str(error))
    for module in () if only_to_run else info.slow_writers:
        try:
            is_there = find_spec(module) is not None
        except ValueError:  # as for a module whose import failed
            is_there = False
        if not is_there:
            reasons.append(f"No module named '{module}'")
    if not reasons:
        return None
    words = "; ".join(dict.fromkeys(reasons))
    return f"{info.title} cannot be imported ({words}); install it with `pip install 'kedro-aat[{info.extra}]'`"


def not_asked_for(name: TargetName) -> NotExported:
    """Stands for the file of a target that the settings do not name."""
    words = f"Name {name} in export.targets to get a file for {TARGETS[name].title}."
    return NotExported(words, is_asked=False)


def target_of(name: TargetName) -> Target:
    """The object that writes and runs files for a target beside ONNX and `.pt2`, which every run can write.

    Raises:
        ExportError: If it is not installed.
    """
    from kedro_aat.errors import ExportError

    if (reason := missing(name)) is not None:
        raise ExportError(f"{reason}.")
    path = TARGETS[name].class_path
    if path is None:
        raise ExportError(f"{TARGETS[name].title} is no target of its own: every run writes it.")
    module, _, class_name = path.rpartition(".")
    target: Target = getattr(import_module(module), class_name)()
    return target
