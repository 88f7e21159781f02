"""Any folder in MVTec AD's layout (Bergmann et al. 2019): train/good, test/<kind>, ground_truth/<kind>."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from adlearn.data.base import OneClass
from adlearn.data.folder import ENDINGS, folder, read_image


def mvtec(root, category: str, *, size: int = 256, seed: int = 0) -> OneClass:
    """One category, RGB, resized to `size` × `size`; masks are resized by the nearest pixel.

    A tenth of the training images (at least one) is held out for calibration, drawn with `seed`.

    Raises:
        FileNotFoundError: the category, or one of its folders, is missing.
        ValueError: an image cannot be read, a defective image has no mask, or a mask does not fit its image.
    """
    home = Path(root) / category
    for needed in ("train/good", "test/good"):
        if not (home / needed).is_dir():
            raise FileNotFoundError(f"root and category must lead to MVTec AD's layout, but {home / needed} is "
                                    "missing: expected train/good, test/<kind> and ground_truth/<kind>")
    normal = folder(home / "train/good", size=size)[:]                                   # (N, 3, size, size)
    if len(normal) < 2:
        raise ValueError(f"{home / 'train/good'} must hold at least 2 images, one of them for calibration")
    order = torch.randperm(len(normal), generator=torch.Generator().manual_seed(seed))
    held = max(1, len(normal) // 10)
    files = sorted(f for f in (home / "test").glob("*/*") if f.suffix.lower() in ENDINGS)
    kinds = [f.parent.name for f in files]
    if set(kinds) <= {"good"} or "good" not in kinds:
        raise ValueError(f"{home / 'test'} must hold good images and at least one kind of defect, found {set(kinds)}")
    test = torch.stack([read_image(f, size) for f in files])
    masks = torch.stack([_mask(f, home, size) for f in files])                           # (M, size, size)
    return OneClass(train=normal[order[held:]], calibration=normal[order[:held]], test=test,
                    labels=torch.tensor([int(kind != "good") for kind in kinds]), masks=masks, kinds=kinds,
                    name=f"{category} (MVTec AD layout)", licence="CC BY-NC-SA 4.0 for MVTec AD itself",
                    source=f"{home}, in the layout of MVTec AD (Bergmann et al. 2019)")


def _mask(image: Path, home: Path, size: int):
    """The mask of a test image: all False for a good one, else ground_truth/<kind>/<name>_mask.png."""
    kind = image.parent.name
    if kind == "good":
        return torch.zeros(size, size, dtype=torch.bool)
    stem = home / "ground_truth" / kind / image.stem
    found = [p for p in (stem.with_name(f"{stem.name}_mask.png"), stem.with_name(f"{stem.name}.png")) if p.is_file()]
    if not found:
        raise ValueError(f"{image} has no mask: expected {stem}_mask.png")
    try:
        with Image.open(image) as picture, Image.open(found[0]) as mask:
            if picture.size != mask.size:
                raise ValueError(f"{found[0]} is {mask.size} pixels, its image {image} is {picture.size}: "
                                 "a mask must fit its image")
            mask = np.array(mask.convert("L").resize((size, size), Image.Resampling.NEAREST))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{found[0]} cannot be read as a mask ({error}): replace it") from error
    return torch.from_numpy(mask > 127)
