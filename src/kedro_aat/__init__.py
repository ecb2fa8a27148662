"""Accuracy-aware training for PyTorch: as small and fast as a stated accuracy budget allows.

The public names are loaded when they are first used, so that importing the package imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0.dev0"

# Public name -> the module that defines it.
_PUBLIC = {
    "AdaptiveCompressionTrainingLoop": "kedro_aat.nncf.loops",
    "BaseEarlyExitCompressionTrainingLoop": "kedro_aat.nncf.loops",
    "CompressionStage": "kedro_aat.compression.controller",
    "EarlyExitCompressionTrainingLoop": "kedro_aat.nncf.loops",
    "Evaluation": "kedro_aat.training.runner",
    "NNCFConfig": "kedro_aat.nncf.config",
    "Outcome": "kedro_aat.budget",
    "TrainingLoopStatistics": "kedro_aat.nncf.statistics",
    "TrainingRunner": "kedro_aat.training.runner",
    "create_accuracy_aware_training_loop": "kedro_aat.nncf.loops",
    "create_compressed_model": "kedro_aat.nncf.model",
    "register_default_init_args": "kedro_aat.nncf.model",
}

if TYPE_CHECKING:
    from kedro_aat.budget import Outcome as Outcome
    from kedro_aat.compression.controller import CompressionStage as CompressionStage
    from kedro_aat.nncf.config import NNCFConfig as NNCFConfig
    from kedro_aat.nncf.loops import (
        AdaptiveCompressionTrainingLoop as AdaptiveCompressionTrainingLoop,
    )
    from kedro_aat.nncf.loops import (
        BaseEarlyExitCompressionTrainingLoop as BaseEarlyExitCompressionTrainingLoop,
    )
    from kedro_aat.nncf.loops import (
        EarlyExitCompressionTrainingLoop as EarlyExitCompressionTrainingLoop,
    )
    from kedro_aat.nncf.loops import (
        create_accuracy_aware_training_loop as create_accuracy_aware_training_loop,
    )
    from kedro_aat.nncf.model import create_compressed_model as create_compressed_model
    from kedro_aat.nncf.model import register_default_init_args as register_default_init_args
    from kedro_aat.nncf.statistics import TrainingLoopStatistics as TrainingLoopStatistics
    from kedro_aat.training.runner import Evaluation as Evaluation
    from kedro_aat.training.runner import TrainingRunner as TrainingRunner


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*_PUBLIC, "__version__"]
