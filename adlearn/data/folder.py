"""The reader's own images: a folder, a `Dataset` or a tensor, all seen as one sequence of batches."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from adlearn import checks

ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}


class ImageSequence:
    """Images read when they are asked for: `len(s)`, and `s[a:b]` or `s[[i, j]]` gives (n, C, H, W) in [0, 1]."""

    def __init__(self, count: int, read):
        self.count, self.read = count, read

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, which) -> Tensor:
        indices = range(self.count)[which] if isinstance(which, slice) else which
        found = [self.read(int(i)) for i in indices]
        if len({image.shape for image in found}) > 1:
            raise ValueError(f"images must share one shape, got {sorted({tuple(i.shape) for i in found})}: "
                             "resize them, for example with adlearn.data.folder(path, size=256)")
        return checks.images(torch.stack(found))


def as_images(images, size: int = 256) -> Tensor | ImageSequence:
    """What detectors accept, as something with a length whose slices are tensors (n, C, H, W) in [0, 1].

    Args:
        images: a tensor (N, C, H, W); a `torch.utils.data.Dataset` of image tensors, or of tuples that start
            with one; or the path of a folder of images, read in the order of their names.
        size: side in pixels to which the images of a folder are resized.

    Raises:
        ValueError: wrong shape, type or range, or an empty set; the message names the cure.
        FileNotFoundError: the folder is not there.
    """
    if isinstance(images, ImageSequence):
        return images
    if isinstance(images, str | os.PathLike):
        return folder(images, size=size)
    if isinstance(images, torch.utils.data.Dataset) and not isinstance(images, Tensor):
        if len(images) == 0:
            raise ValueError("images must not be empty, got a Dataset of length 0")
        return ImageSequence(len(images), lambda i: _first(images[i]))
    return checks.images(images)


def folder(path, *, size: int = 256) -> ImageSequence:
    """All images of a folder and its subfolders, sorted by name, RGB, each resized to `size` × `size`.

    Files are opened when their turn comes. The names stand in `.files`, in the same order.
    """
    checks.positive_int(size, "size", minimum=8)
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"path must be an existing folder, got {path}")
    files = sorted(f for f in path.rglob("*") if f.suffix.lower() in ENDINGS and not f.name.startswith("."))
    if not files:
        raise ValueError(f"path must hold images ({', '.join(sorted(ENDINGS))}), found none in {path}")
    sequence = ImageSequence(len(files), lambda i: read_image(files[i], size))
    sequence.files = files
    return sequence


def read_image(path: Path, size: int, *, grey: bool = False) -> Tensor:
    """One image file as (C, size, size) float32 in [0, 1]; 16-bit files are divided by 65535.

    Raises:
        ValueError: the file is cut off or no image; the message names it.
    """
    try:
        with Image.open(path) as image:
            image.load()
            if image.mode.startswith(("I", "F")):               # 16-bit greys: PIL's conversion would clip them
                values = np.asarray(image, dtype=np.float32)
                top = 65535 if values.max() > 1 else 1
                image = Image.fromarray((255 * (values / top).clip(0, 1)).round().astype(np.uint8))
            image = image.convert("L" if grey else "RGB").resize((size, size), Image.Resampling.BICUBIC)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{path} cannot be read as an image ({error}): replace or remove it") from error
    pixels = torch.from_numpy(np.array(image, dtype=np.float32) / 255)
    return pixels[None] if grey else pixels.permute(2, 0, 1)      # (C, size, size)


def _first(item) -> Tensor:
    image = item[0] if isinstance(item, tuple | list) else item
    if not isinstance(image, Tensor) or image.ndim != 3:
        raise ValueError(f"a Dataset must give tensors (C, H, W), or tuples that start with one, got "
                         f"{type(image).__name__}: add torchvision.transforms.ToTensor()")
    return image
