"""What the sections of all algorithms in an NNCF 2.x file share: scopes, initializers, a base class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator

from kedro_aat.search.policy import Count
from kedro_aat.validated import Settings


def wrap_in_list(value: Any) -> Any:
    """Puts a value that a file may write without its list into one; leaves lists and None as they are."""
    return value if isinstance(value, list | tuple) or value is None else [value]


def renamed(data: Any, names: Mapping[str, str]) -> Any:
    """Gives keys that NNCF renamed their later names; a file that has both keeps its mistake.

    Args:
        data: A section, or what a file has in its place.
        names: Name of a key in the first versions of NNCF 2 -> its name since.
    """
    if not isinstance(data, Mapping):
        return data
    return {names[key] if key in names and names[key] not in data else key: value for key, value in data.items()}


Scopes = Annotated[tuple[str, ...], BeforeValidator(wrap_in_list)]


class BatchnormAdaptation(Settings):
    """`initializer.batchnorm_adaptation`."""

    num_bn_adaptation_samples: Count = 2000
    num_bn_forget_samples: int | None = None


class RangeInitializer(Settings):
    """`initializer.range`; in a list, each item is for some of the layers."""

    num_init_samples: Count = 256
    type: str | None = None
    params: Any = None
    ignored_scopes: Scopes = ()
    target_scopes: Scopes | None = None
    validate_scopes: bool = True
    target_quantizer_group: str | None = None


class Initializer(Settings):
    """`initializer`; only quantization uses `range` and `precision`."""

    batchnorm_adaptation: BatchnormAdaptation | None = None
    range: Annotated[tuple[RangeInitializer, ...], BeforeValidator(wrap_in_list)] | None = None
    precision: Any = None


class AlgorithmSection(Settings):
    """The keys that every algorithm has."""

    algorithm: str
    ignored_scopes: Scopes = ()
    target_scopes: Scopes | None = None
    validate_scopes: bool = True
    initializer: Initializer | None = None
    compression_lr_multiplier: float | None = None

    def explain_differences(self) -> Iterator[str]:
        """Explains each key in use that has no effect here, or a different one than in NNCF."""
        if self.compression_lr_multiplier is not None:
            yield f"{self.algorithm}.compression_lr_multiplier has no effect: no algorithm adds parameters"

    def merge_scopes(self, ignored: Sequence[str], targets: Sequence[str] | None) -> dict[str, Any]:
        """The section's own scopes with those at the root of the file, whose targets come first.

        NNCF wraps only the layers that the targets at the root name, so those of the section then name no other.
        """
        all_targets = self.target_scopes if targets is None else tuple(targets)
        return {"ignored_scopes": (*self.ignored_scopes, *ignored), "target_scopes": all_targets}

    def _explain_unused_initializers(self) -> Iterator[str]:
        """For algorithms whose only initialization is the adaptation of BatchNorms."""
        if self.initializer is not None:
            for key in sorted(self.initializer.model_fields_set - {"batchnorm_adaptation"}):
                yield f"{self.algorithm}.initializer.{key} has no effect: this algorithm does not quantize"
