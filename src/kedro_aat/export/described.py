"""What a user says of the exported file: what its tensors mean, and how its inputs are prepared."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from kedro_aat.validated import Settings

Name = Annotated[str, Field(min_length=1)]
# Types of raw numbers, as numpy calls them.
RawType = Literal["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint32", "uint16", "uint8"]
PerChannel = float | Annotated[tuple[float, ...], Field(min_length=1)]


class CardSettings(Settings):
    """What the model card says beside what the run knows.

    Attributes:
        meanings: Name of an input or output of the file -> what it means, in words: what is in it, its unit, what its
            axes are.
        class_names: Names of the classes by number. By default those of the validation data, if its dataset has an
            attribute `classes`, as `ImageFolderDataset` gives it and torchvision's datasets have it.
        license: License of the model, best as an identifier of SPDX, such as `Apache-2.0`.
    """

    meanings: dict[str, Name] = Field(default_factory=dict)
    class_names: Annotated[tuple[Name, ...], Field(min_length=1)] | None = None
    license: Name | None = None


class Scaling(Settings):
    """How an input of the file follows from raw numbers: `(raw * scale - mean) / std`.

    Attributes:
        raw_type: Type of the raw numbers.
        scale: Factor of the raw numbers, such as 0.00392156862745098 for 1/255.
        mean: What is subtracted: one number, or one for each channel.
        std: What is divided by, above 0: one number, or one for each channel.
        axis: Axis of the channels; 1 for images as torch has them.
    """

    raw_type: RawType = "float32"
    scale: Annotated[float, Field(gt=0)] = 1.0
    mean: PerChannel = 0.0
    std: PerChannel = 1.0
    axis: int = 1

    @field_validator("std")
    @classmethod
    def _is_positive(cls, std: PerChannel) -> PerChannel:
        if wrong := [number for number in (std if isinstance(std, tuple) else (std,)) if number <= 0]:
            raise ValueError(f"must be above 0, but got {wrong[0]:g}")
        return std


class Preprocessing(Settings):
    """How the file's inputs are prepared, for the model card and, on request, for a second ONNX file.

    Attributes:
        text: The steps in words, such as how images are resized and in which order their channels are.
        inputs: Name of an input of the file -> how it follows from raw numbers.
        in_file: Whether an ONNX file is written that takes raw numbers: the delivered one, with nodes for `inputs` in
            front of it.
    """

    text: Name | None = None
    inputs: dict[str, Scaling] = Field(default_factory=dict)
    in_file: bool = False

    @field_validator("in_file")
    @classmethod
    def _has_inputs(cls, in_file: bool, info: ValidationInfo) -> bool:
        if in_file and not info.data.get("inputs", True):  # a mistake in them is reported on its own
            raise ValueError("needs `inputs`, which say what the nodes compute, but got none")
        return in_file
