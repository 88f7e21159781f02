"""The reader's own images: a folder, a `Dataset` or a tensor, all seen as one sequence of batches."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from adlearn import checks, runtime

ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}


class ImageSequence:
    """Images read when they are asked for, in [0, 1]: `s[i]` is (C, H, W), `s[a:b]` and `s[[i, j]]` are (n, C, H, W).

    `s[mask]` with `len(s)` bools takes the images where they are True. To ask for none at all is a ``ValueError``.
    """

    def __init__(self, count: int, read):
        self.count, self.read = count, read

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, which) -> Tensor:
        indices = np.arange(self.count)[which]
        if indices.ndim == 0:
            return self[[int(indices)]][0]
        if indices.ndim > 1 or len(indices) == 0:
            raise ValueError(f"ask for at least one of the {self.count} images, by a slice or a list, got {which!r}")
        found = [self.read(int(i)) for i in indices]
        if len({image.shape for image in found}) > 1:
            raise ValueError(f"images must share one shape, got {sorted({tuple(i.shape) for i in found})}: "
                             "resize them, for example with adlearn.data.folder(path, size=256)")
        return checks.images(torch.stack(found))


def as_images(images, size: int = 256) -> Tensor | ImageSequence:
    """What detectors accept, as something with a length whose slices are tensors (n, C, H, W) in [0, 1].

    Args:
        images: a tensor (N, C, H, W); a `torch.utils.data.Dataset` of image tensors, or of tuples that start
            with one; or the path of a folder of images, read in the order of their names. What cannot be read is
            left out, with a warning that names it; see `folder`.
        size: side in pixels to which the images of a folder are resized.

    Raises:
        ValueError: wrong shape, type or range, or an empty set; the message names the cure.
        FileNotFoundError: the folder is not there.
    """
    if isinstance(images, ImageSequence):
        return images
    if isinstance(images, str | os.PathLike):
        return folder(images, size=size, damaged="skip")
    if isinstance(images, torch.utils.data.Dataset) and not isinstance(images, Tensor):
        if len(images) == 0:
            raise ValueError("images must not be empty, got a Dataset of length 0")
        return ImageSequence(len(images), lambda i: _first(images[i]))
    return checks.images(images)


def folder(path, *, size: int = 256, damaged: str = "refuse") -> ImageSequence:
    """All images of a folder and its subfolders, sorted by name, RGB, each resized to `size` × `size`.

    Files are opened when their turn comes. The names stand in `.files`, in the same order.

    Args:
        damaged: what becomes of a file that is damaged or not in the range of its kind: "refuse" raises when its turn
            comes; "skip" opens all files once before the first is used, names those in a warning and leaves them out.

    Raises:
        FileNotFoundError: the folder is not there.
        ValueError: it holds no image, or none that can be read; a damaged file that is to be refused.
    """
    checks.positive_int(size, "size", minimum=8)
    checks.choice(damaged, ("refuse", "skip"), "damaged")
    path = checks.path(path, "path")
    if not path.is_dir():
        raise FileNotFoundError(f"path must be an existing folder, got {path}")
    files = image_files(path)
    if not files:
        raise ValueError(f"path must hold images ({', '.join(sorted(ENDINGS))}), found none in {path}")
    if damaged == "skip":
        files = _readable(files)
    sequence = ImageSequence(len(files), lambda i: unit_pixels(open_image(files[i]), size, files[i]))
    sequence.files = files
    return sequence


def _readable(files: list[Path]) -> list[Path]:
    """The files without those that cannot be read; a warning says which these are, and why."""
    complaints = {}
    for file in runtime.progress(files, "opening"):
        try:
            unit_pixels(open_image(file), 8, file)
        except ValueError as error:
            complaints[file] = str(error)
    if len(complaints) == len(files):
        raise ValueError(f"path must hold images that can be read, of {len(files)} none can: {complaints[files[0]]}")
    if complaints:
        warnings.warn(f"{len(complaints)} of {len(files)} images are left out: {'; '.join(complaints.values())}",
                      stacklevel=4)
    return [file for file in files if file not in complaints]


def image_files(path: Path) -> list[Path]:
    """All images of a folder and its subfolders, sorted by name, without hidden files or those of hidden folders."""
    return sorted(f for f in path.rglob("*") if f.suffix.lower() in ENDINGS and f.is_file()
                  and not any(part.startswith(".") for part in f.relative_to(path).parts))


def open_image(path: Path) -> Image.Image:
    """An image file, decoded and upright: turned as the camera's note in the file (EXIF) asks.

    Raises:
        ValueError: the file is cut off, far too large or no image; the message names it.
    """
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image)
    except Exception as error:                                  # whatever a decoder stumbles over
        raise ValueError(f"{path} cannot be read as an image ({error}): replace or remove it") from error


def unit_pixels(image: Image.Image, size: int, path: Path) -> Tensor:
    """An image as RGB, (3, size, size) float32 in [0, 1]; `path` is what a refusal names.

    The scale follows from the kind of file, never from its content: 8 bits are divided by 255, 16 bits (and whole
    numbers of 32 bits, which must fit into 16) by 65535, and floating point must lie in [0, 1].

    Raises:
        ValueError: numbers outside of these ranges, or colours that have no conversion to RGB.
    """
    if image.mode.startswith(("I", "F")):                       # PIL's own conversion would clip them
        values, top = np.asarray(image, dtype=np.float32), 1 if image.mode == "F" else 65535
        if not (values.min() >= 0 and values.max() <= top):     # NaN fails this too
            raise ValueError(f"{path} must hold numbers from 0 to {top}, got {values.min():.4g} to {values.max():.4g} "
                             f"(PIL mode {image.mode}): rescale it, or save it with 8 bits")
        image = Image.fromarray((255 * (values / top)).round().astype(np.uint8))
    try:
        image = image.convert("RGB")
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as RGB ({error}): save it as RGB or grey") from error
    image = image.resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image, dtype=np.float32) / 255).permute(2, 0, 1)       # (3, size, size)


def _first(item) -> Tensor:
    image = item[0] if isinstance(item, tuple | list) else item
    if not isinstance(image, Tensor) or image.ndim != 3:
        raise ValueError(f"a Dataset must give tensors (C, H, W), or tuples that start with one, got "
                         f"{type(image).__name__}: add torchvision.transforms.ToTensor()")
    return image
