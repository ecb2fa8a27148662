"""What every algorithm's section in an NNCF 2.x file may say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from kedro_aat.validated import Settings


def as_list(value: Any) -> Any:
    """One value may stand in a file without its list."""
    return value if isinstance(value, list | tuple) or value is None else [value]


Scopes = Annotated[tuple[str, ...], BeforeValidator(as_list)]
Count = Annotated[int, Field(ge=0)]


class BatchnormAdaptation(Settings):
    """`initializer.batchnorm_adaptation`."""

    num_bn_adaptation_samples: Count = 2000
    num_bn_forget_samples: int | None = None


class RangeInitializer(Settings):
    """`initializer.range`; in a list, that of some layers."""

    num_init_samples: Count = 256
    type: str | None = None
    params: Any = None
    ignored_scopes: Scopes = ()
    target_scopes: Scopes | None = None
    target_quantizer_group: str | None = None


class Initializer(Settings):
    """`initializer`: range samples serve the quantizer alone."""

    batchnorm_adaptation: BatchnormAdaptation | None = None
    range: Annotated[tuple[RangeInitializer, ...], BeforeValidator(as_list)] | None = None
    precision: Any = None


class AlgorithmSection(Settings):
    """Keys that every algorithm has."""

    algorithm: str
    ignored_scopes: Scopes = ()
    target_scopes: Scopes | None = None
    initializer: Initializer | None = None
    compression_lr_multiplier: float | None = None

    def without_meaning(self) -> Iterator[str]:
        """Keys that NNCF knows and that do nothing here, or something else, each in words."""
        if self.compression_lr_multiplier is not None:
            yield f"{self.algorithm}.compression_lr_multiplier has no meaning here: no algorithm adds parameters"

    def _scopes(self, ignored: Sequence[str], targets: Sequence[str] | None) -> dict[str, Any]:
        """Its own scopes and those at the root of the file."""
        both = (*(self.target_scopes or ()), *(targets or ()))
        return {"ignored_scopes": (*self.ignored_scopes, *ignored), "target_scopes": both or None}

    def _unused_initializers(self) -> Iterator[str]:
        """For algorithms that only adapt BatchNorms."""
        if self.initializer is not None:
            for key in sorted(self.initializer.model_fields_set - {"batchnorm_adaptation"}):
                yield f"{self.algorithm}.initializer.{key} has no meaning: this algorithm quantizes nothing"
