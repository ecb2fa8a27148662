"""Accuracy-aware training for PyTorch: as small and fast as a stated accuracy budget allows.

`__all__` lists the public names, which follow NNCF 2.x; start reading in `training/loop.py`. A name is loaded when it
is first used, so importing the package does not import torch. Names are added here, never removed or renamed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0.dev0"

__all__ = [
    "AdaptiveCompressionTrainingLoop",
    "BaseEarlyExitCompressionTrainingLoop",
    "CompressionResult",
    "CompressionStage",
    "EarlyExitCompressionTrainingLoop",
    "Evaluation",
    "NNCFConfig",
    "Outcome",
    "TrainingLoopStatistics",
    "TrainingRunner",
    "compress",
    "create_accuracy_aware_training_loop",
    "create_compressed_model",
    "load_state",
    "nncf_model_input",
    "nncf_model_output",
    "prepare_for_tensorboard",
    "register_default_init_args",
]

if TYPE_CHECKING:
    from kedro_aat.budget import Outcome
    from kedro_aat.compression.controller import CompressionStage
    from kedro_aat.from_python.call import compress
    from kedro_aat.from_python.result import CompressionResult
    from kedro_aat.nncf.config import NNCFConfig
    from kedro_aat.nncf.inputs import nncf_model_input, nncf_model_output
    from kedro_aat.nncf.loops import (
        AdaptiveCompressionTrainingLoop,
        BaseEarlyExitCompressionTrainingLoop,
        EarlyExitCompressionTrainingLoop,
        create_accuracy_aware_training_loop,
    )
    from kedro_aat.nncf.model import create_compressed_model, register_default_init_args
    from kedro_aat.nncf.states import load_state
    from kedro_aat.nncf.statistics import TrainingLoopStatistics, prepare_for_tensorboard
    from kedro_aat.training.runner import Evaluation, TrainingRunner

# Modules that define the public names. They are searched in this order: those that do not import torch come first.
_MODULES = (
    "budget",
    "nncf.config",
    "nncf.statistics",
    "compression.controller",
    "training.runner",
    "nncf.loops",
    "nncf.model",
    "nncf.inputs",
    "nncf.states",
    "from_python.result",
    "from_python.call",
)


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in _MODULES:
            names = vars(import_module(f"{__name__}.{module}"))
            if name in names:
                return names[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
