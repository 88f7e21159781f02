"""Any folder in MVTec AD's layout (Bergmann et al. 2019): train/good, test/<kind>, ground_truth/<kind>."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from adlearn import checks
from adlearn.data.base import OneClass
from adlearn.data.folder import folder, image_files, open_image, unit_pixels


def mvtec(root, category: str, *, size: int = 256, seed: int = 0) -> OneClass:
    """One category, RGB, resized to `size` × `size`; masks, anomalous where not 0, are resized by the nearest pixel.

    A tenth of the training images (at least one) is held out for calibration, drawn with `seed`.

    Raises:
        FileNotFoundError: the category, or one of its folders, is missing.
        ValueError: an image cannot be read, a defective image has no mask, a mask marks nothing, does not fit its
            image or has none, or a folder holds no images.
    """
    home, seed = checks.path(root, "root") / checks.path(category, "category"), checks.seed(seed)
    for needed in ("train/good", "test/good"):
        if not (home / needed).is_dir():
            raise FileNotFoundError(f"root and category must lead to MVTec AD's layout, but {home / needed} is "
                                    "missing: expected train/good, test/<kind> and ground_truth/<kind>")
    normal = folder(home / "train/good", size=size)[:]                                   # (N, 3, size, size)
    if len(normal) < 2:
        raise ValueError(f"{home / 'train/good'} must hold at least 2 images, one of them for calibration")
    order = torch.randperm(len(normal), generator=torch.Generator().manual_seed(seed))
    held = max(1, len(normal) // 10)
    found = {f.name: folder(f, size=size).files for f in sorted((home / "test").iterdir())
             if f.is_dir() and not f.name.startswith(".")}
    if len(found) < 2:
        raise ValueError(f"{home / 'test'} must hold good images and at least one kind of defect, found {list(found)}")
    kinds = [kind for kind, files in found.items() for _ in files]
    files = [f for files in found.values() for f in files]
    named = {mask for f in files for mask in _mask_names(f, home)}
    orphans = [str(mask) for mask in image_files(home / "ground_truth") if mask not in named]
    if orphans:
        raise ValueError(f"{len(orphans)} masks have no image in {home / 'test'}: add the images, or remove "
                         f"{', '.join(orphans[:5])}{', ...' if len(orphans) > 5 else ''}")
    pairs = [_pair(f, home, size) for f in files]
    test, masks = (torch.stack(parts) for parts in zip(*pairs, strict=True))    # (M, 3, size, size), (M, size, size)
    return OneClass(train=normal[order[held:]], calibration=normal[order[:held]], test=test,
                    labels=torch.tensor([int(kind != "good") for kind in kinds]), masks=masks, kinds=kinds,
                    name=f"{category} (MVTec AD layout)", licence="CC BY-NC-SA 4.0 for MVTec AD itself",
                    source=f"{home}, in the layout of MVTec AD (Bergmann et al. 2019)")


def _mask_names(path: Path, home: Path) -> list[Path]:
    """Where the mask of a test image may stand: ground_truth/<kind>/<name>_mask.png, or <name>.png."""
    place = home / "ground_truth" / path.relative_to(home / "test")
    return [place.with_name(f"{path.stem}{end}") for end in ("_mask.png", ".png")]


def _pair(path: Path, home: Path, size: int) -> tuple[Tensor, Tensor]:
    """A test image (3, size, size) and its mask (size, size), of a good image all False."""
    image = open_image(path)
    pixels = unit_pixels(image, size, path)
    if path.is_relative_to(home / "test/good"):
        return pixels, torch.zeros(size, size, dtype=torch.bool)
    names = _mask_names(path, home)
    found = [name for name in names if name.is_file()]
    if not found:
        raise ValueError(f"{path} has no mask: expected {names[0]}")
    mask = open_image(found[0])
    if image.size != mask.size:
        raise ValueError(f"{found[0]} is {mask.size} pixels, its image {path} is {image.size}: "
                         "a mask must fit its image")
    mask = np.asarray(mask if mask.mode.startswith("I") else mask.convert("L")) > 0     # L would clip 16 bits
    small = torch.from_numpy(np.array(Image.fromarray(mask).resize((size, size), Image.Resampling.NEAREST)))
    if not small.any():
        cure = f"of the {size} × {size} that are left: raise size" if mask.any() else "at all: repair it"
        raise ValueError(f"{found[0]} is the mask of a defect but marks no pixel {cure}")
    return pixels, small
