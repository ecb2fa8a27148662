"""Folders of images as training data: one subfolder a class."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Never

import numpy as np
import torch
from kedro.io import AbstractDataset, DatasetError
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from kedro_aat.errors import DataError

if TYPE_CHECKING:
    from kedro_datasets._typing import ImagePreview

_SUFFIXES = (".png", ".jpg", ".jpeg")
_SHOWN_CLASSES = 16
_SHOWN_PIXELS = 96  # of a preview's image, on each side
_MODES: dict[int, Literal["L", "RGB"]] = {1: "L", 3: "RGB"}


class ImageFolder(Dataset[tuple[Tensor, int]]):
    """Images by their files, each read when it is asked for, with the number of its class.

    Args:
        files: Each image's path and class.
        size: Height and width to which each is scaled.
        channels: 1 for grey, 3 for colour.
    """

    def __init__(self, files: list[tuple[Path, int]], size: tuple[int, int], channels: int) -> None:
        self.files = files
        self._size = size
        self._mode = _MODES[channels]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.files[index]
        height, width = self._size
        try:
            with Image.open(path) as image:
                scaled = _in_mode(image, self._mode).resize((width, height), Image.Resampling.BILINEAR)
        except OSError as error:  # of the file, or of what stands in it
            raise DataError(f"{path} cannot be read as an image: {error}. Replace the file, or remove it.") from None
        pixels = torch.from_numpy(np.array(scaled, dtype=np.float32) / 255)
        return pixels.reshape(height, width, -1).permute(2, 0, 1).contiguous(), label  # (C, H, W) in [0, 1]


class ImageFolderDataset(AbstractDataset[Never, ImageFolder]):
    """A folder with a subfolder for each class, as a torch dataset of (image, class) pairs; for reading alone.

    Classes and files are ordered by name, so that every machine sees the same examples in the same order.

    Args:
        filepath: The folder. Files are .png, .jpg or .jpeg, in subfolders at any depth.
        size: Height and width, or one number for both, to which each image is scaled.
        channels: 1 for grey, 3 for colour.
        classes: The classes in their order; None for the subfolders by name. Give it where a split lacks a class.
        metadata: For Kedro-Viz.
    """

    def __init__(
        self,
        *,
        filepath: str,
        size: int | list[int] | tuple[int, int],
        channels: int = 3,
        classes: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        sizes = [size, size] if isinstance(size, int) else list(size)
        if len(sizes) != 2 or min(sizes) < 1:
            raise DatasetError(f"size must be one number of pixels, or height and width, each above 0; but got {size}.")
        if channels not in _MODES:
            raise DatasetError(f"channels must be 1 (grey) or 3 (colour), but got {channels}.")
        self._folder = Path(filepath)
        self._size = (sizes[0], sizes[1])
        self._channels = channels
        self._classes = classes
        self.metadata = metadata

    def load(self) -> ImageFolder:
        """Lists the files; each is read when it is asked for.

        Raises:
            DataError: For a folder without subfolders of images, or a subfolder that is none of `classes`.
        """
        found = sorted(path.name for path in self._folder.iterdir() if path.is_dir() and path.name[0] != ".")
        classes = found if self._classes is None else self._classes
        if strange := sorted(set(found) - set(classes)):
            raise DataError(f"{self._folder} has folders that are not among `classes`: {', '.join(strange)}.")
        files = [(path, label) for label, name in enumerate(classes) for path in _images(self._folder / name)]
        if not files:
            raise DataError(
                f"{self._folder} holds no images: make a folder in it for each class, with "
                f"{', '.join(_SUFFIXES)} files."
            )
        return ImageFolder(files, self._size, self._channels)

    def save(self, data: Never) -> None:
        """Refuses: images are put there by hand."""
        raise DatasetError("An ImageFolderDataset only reads; put the files into a folder for each class.")

    def preview(self) -> ImagePreview:
        """An image of each of the first classes, in squares side by side; for Kedro-Viz."""
        folders = sorted(path for path in self._folder.glob("[!.]*") if path.is_dir())[:_SHOWN_CLASSES]
        # Not the first by name: to find that one, all would have to be listed.
        files = [file for folder in folders if (file := next(_image_files(folder), None)) is not None]
        if not files:
            return None
        columns = math.ceil(math.sqrt(len(files)))
        rows = math.ceil(len(files) / columns)
        sheet = Image.new(_MODES[self._channels], (columns * _SHOWN_PIXELS, rows * _SHOWN_PIXELS))
        for index, file in enumerate(files):
            row, column = divmod(index, columns)
            with Image.open(file) as image:
                tile = _in_mode(image, sheet.mode).resize((_SHOWN_PIXELS, _SHOWN_PIXELS))
            sheet.paste(tile, (column * _SHOWN_PIXELS, row * _SHOWN_PIXELS))
        written = io.BytesIO()
        sheet.save(written, "PNG")
        return base64.b64encode(written.getvalue()).decode()

    def _exists(self) -> bool:
        return self._folder.is_dir()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._folder), "size": self._size, "channels": self._channels}


def _images(folder: Path) -> list[Path]:
    return sorted(_image_files(folder))


def _image_files(folder: Path) -> Iterator[Path]:
    """Without hidden ones: notebooks and file managers leave copies under such names."""
    return (
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in _SUFFIXES and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    """`Image.convert`, which would cut grey of 16 bits off at 255."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
    return image.convert(mode)
