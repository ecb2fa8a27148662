"""Folders of images as training data, with one subfolder per class. Needs the extra `kedro-aat[images]`, Pillow."""

from __future__ import annotations

import base64
import io
import math
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from kedro.io import DatasetError, Version
from torch import Tensor
from torch.utils.data import Dataset

from kedro_aat.datasets.files import ReadOnlyDataset
from kedro_aat.datasets.remote import Place
from kedro_aat.errors import DataError

if TYPE_CHECKING:
    from kedro_datasets._typing import ImagePreview
    from PIL.Image import Image

_SUFFIXES = (".png", ".jpg", ".jpeg")
# Pillow ignores suffixes, and would run Ghostscript for PostScript in a file called x.png.
_FORMATS = ("PNG", "JPEG")
_MAX_PREVIEW_CLASSES = 16
_MAX_SIDE = 16_384  # pixels; a larger image would take gigabytes
_PREVIEW_SIDE = 96  # pixels; height and width of each image in a preview
_MODES: dict[int, Literal["L", "RGB"]] = {1: "L", 3: "RGB"}  # number of channels -> name in Pillow


class ImageFolder(Dataset[tuple[Tensor, int]]):
    """Pairs of an image and the number of its class; each file is read when its pair is requested.

    Args:
        files: Path and class of each image.
        size: Height and width in pixels to which each image is scaled.
        channels: 1 for grayscale, 3 for color.
        classes: Names of the classes by number; empty if they are not known.
    """

    def __init__(
        self, files: list[tuple[Path, int]], size: tuple[int, int], channels: int, classes: Sequence[str] = ()
    ) -> None:
        self.files = files
        self.size = size
        self.mode = _MODES[channels]
        self._class_names = tuple(classes)  # private: names do not change what identifies the data

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes by number, as torchvision's datasets have them."""
        return self._class_names

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        pillow = _pillow()
        path, label = self.files[index]
        height, width = self.size
        try:
            with pillow.open(path, formats=_FORMATS) as image:
                scaled = _in_mode(image, self.mode).resize((width, height), pillow.Resampling.BILINEAR)
        # The file cannot be opened, or its contents are no such image, or one of more than 179 million pixels.
        except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError) as error:
            raise DataError(f"{path} cannot be read as an image: {error}. Replace the file, or remove it.") from None
        pixels = torch.from_numpy(np.array(scaled, dtype=np.float32) / 255)
        return pixels.reshape(height, width, -1).permute(2, 0, 1).contiguous(), label  # (C, H, W) in [0, 1]


class ImageFolderDataset(ReadOnlyDataset[ImageFolder]):
    """A folder with one subfolder per class, as a torch dataset of (image, class) pairs; read-only.

    Classes and files are ordered by name, so that every machine sees the same examples in the same order.

    Args:
        filepath: The folder, here or at an address such as `s3://bucket/train`; of the latter, the images are copied to
            a temporary folder, which stays until `release` or the end of the process. Images are .png, .jpg or .jpeg
            files in the subfolders, at any depth.
        size: Height and width in pixels to which each image is scaled, or one number for both.
        channels: 1 for grayscale, 3 for color.
        classes: Names of the subfolders in the order of the classes; None sorts them by name. Set it if a split
            lacks a class.
        version: Set by Kedro for a versioned entry.
        credentials: Arguments of the file system, such as keys.
        fs_args: More arguments of the file system.
        metadata: For Kedro-Viz and other plugins.

    Raises:
        DatasetError: An argument is out of range, or Pillow is not installed.
    """

    REFUSAL: ClassVar[str] = "An ImageFolderDataset is read-only: copy the files to one folder per class."

    def __init__(
        self,
        *,
        filepath: str,
        size: int | list[int] | tuple[int, int],
        channels: int = 3,
        classes: list[str] | None = None,
        version: Version | None = None,
        credentials: dict[str, Any] | None = None,
        fs_args: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            filepath=filepath, version=version, credentials=credentials, fs_args=fs_args, metadata=metadata
        )
        _pillow()  # if it is missing, the error comes before the run
        sizes = [size, size] if isinstance(size, int) else list(size)
        if len(sizes) != 2 or min(sizes) < 1 or max(sizes) > _MAX_SIDE:
            raise DatasetError(
                f"size must be one number of pixels, or height and width, each from 1 to {_MAX_SIDE}, but got {size}."
            )
        if channels not in _MODES:
            raise DatasetError(f"channels must be 1 (grayscale) or 3 (color), but got {channels}.")
        self._size = (sizes[0], sizes[1])
        self._channels = channels
        self._classes = classes
        self._fetched: Path | None = None

    def load(self) -> ImageFolder:
        """Lists the files; each is read when its example is requested.

        Raises:
            DataError: The folder has no subfolder with images, or has a subfolder that is not among `classes`.
        """
        folder = self._folder_here()
        subfolders = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
        classes = subfolders if self._classes is None else self._classes
        if unknown := sorted(set(subfolders) - set(classes)):
            raise DataError(f"{self.where} has folders that are not among `classes`: {', '.join(unknown)}.")
        files = [(path, label) for label, name in enumerate(classes) for path in sorted(_image_files(folder / name))]
        if not files:
            raise DataError(
                f"{self.where} contains no images: create one folder per class in it, with "
                f"{', '.join(_SUFFIXES)} files."
            )
        return ImageFolder(files, self._size, self._channels, classes)

    def preview(self) -> ImagePreview:
        """One image from each of the first classes, side by side in squares; for Kedro-Viz."""
        if (shown := self._fetched or self.local_path) is None:  # a folder elsewhere is not copied only to be shown
            return None
        folders = sorted(path for path in shown.glob("[!.]*") if path.is_dir())[:_MAX_PREVIEW_CLASSES]
        # Any file of the class: to find the first by name, all files would have to be listed.
        files = [file for folder in folders if (file := next(_image_files(folder), None)) is not None]
        if not files:
            return None
        columns = math.ceil(math.sqrt(len(files)))
        rows = math.ceil(len(files) / columns)
        pillow = _pillow()
        sheet = pillow.new(_MODES[self._channels], (columns * _PREVIEW_SIDE, rows * _PREVIEW_SIDE))
        for index, file in enumerate(files):
            row, column = divmod(index, columns)
            with pillow.open(file, formats=_FORMATS) as image:
                tile = _in_mode(image, sheet.mode).resize((_PREVIEW_SIDE, _PREVIEW_SIDE))
            sheet.paste(tile, (column * _PREVIEW_SIDE, row * _PREVIEW_SIDE))
        png = io.BytesIO()
        sheet.save(png, "PNG")
        return base64.b64encode(png.getvalue()).decode()

    def _folder_here(self) -> Path:
        """The folder on this machine, or the copy of one that is elsewhere."""
        path = self._get_load_path()
        if self._place.is_here:
            return Path(path)
        if self._fetched is None:
            copy = Path(tempfile.mkdtemp(prefix="kedro-aat-"))
            weakref.finalize(self, shutil.rmtree, copy, ignore_errors=True)
            with self._place.reading(path):
                _copy_images(self._place, path, copy)
            self._fetched = copy
        return self._fetched

    def _exists_at(self, path: str) -> bool:
        return Path(path).is_dir() if self._place.is_here else super()._exists_at(path)

    def _release(self) -> None:
        super()._release()
        if self._fetched is not None:
            shutil.rmtree(self._fetched, ignore_errors=True)
            self._fetched = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_fetched": None}  # a process of its own makes its own copy

    def _describe(self) -> dict[str, Any]:
        return {**super()._describe(), "size": self._size, "channels": self._channels}


def _pillow() -> ModuleType:
    """Returns the module `PIL.Image`."""
    try:
        from PIL import Image
    except ImportError as error:
        raise DatasetError(f"Pillow cannot be imported ({error}); install it with `pip install pillow`.") from None
    return Image


def _copy_images(place: Place, folder: PurePosixPath, target: Path) -> None:
    """Copies the images below a folder of another storage, with their subfolders.

    Raises:
        DataError: A name leads out of the folder, which a bucket allows.
    """
    found = [PurePosixPath(each) for each in place.system.find(place.text(folder))]
    sources = [each for each in found if each.suffix.lower() in _SUFFIXES]
    targets = []
    for each in sources:
        parts = each.parts[len(folder.parts) :]
        if ".." in parts:
            raise DataError(f"{place.url(each)} leads out of its folder. Rename or remove it.")
        targets.append(target.joinpath(*parts))
    for parent in {path.parent for path in targets}:
        parent.mkdir(parents=True, exist_ok=True)
    if sources:
        place.system.get([str(each) for each in sources], [str(each) for each in targets])


def _image_files(folder: Path) -> Iterator[Path]:
    """Iterates over all images except hidden files: notebooks and file managers leave copies under such names."""
    return (
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in _SUFFIXES and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def _in_mode(image: Image, mode: str) -> Image:
    """Converts an image like `Image.convert`, which would clip 16-bit grayscale at 255."""
    if image.mode.startswith("I"):
        image = _pillow().fromarray((np.asarray(image) // 256).astype(np.uint8))
    return image.convert(mode)
