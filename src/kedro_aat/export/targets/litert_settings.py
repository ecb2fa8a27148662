"""Settings of the LiteRT target."""

from __future__ import annotations

from kedro_aat.validated import Settings


class LitertSettings(Settings):
    """What LiteRT's file takes and returns.

    Attributes:
        integer_io: Whether the file of a quantized model takes and returns int8 where its first and last operators do,
            as microcontrollers like it, instead of float32.
    """

    integer_io: bool = False
