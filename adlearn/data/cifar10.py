"""CIFAR-10 as a one-class problem: the benchmark of the papers."""

from __future__ import annotations

import io
import os
from contextlib import redirect_stderr, redirect_stdout
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from adlearn import cache, checks
from adlearn.data.base import OneClass

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def cifar10(normal: str = "ship", *, root=None, seed: int = 0) -> OneClass:
    """One class is normal, the other nine are anomalies; 3 channels, 32×32.

    A tenth of the 5,000 normal training images (at least one) calibrates; the test set is the whole official one.

    Args:
        root: an `.npz` of JPEG files (keys `train_bytes`, `train_offsets`, `train_labels`, the same with `test_`,
            and `classes`); a folder that torchvision's CIFAR10 can read or download into; None for the cache's.

    Raises:
        ValueError: the class is unknown, the `.npz` is not what it should be, or it holds too few images of the class.
        FileNotFoundError: `root` is not there; or nothing is there and the download failed.
    """
    checks.choice(normal, CLASSES, "normal")
    seed = checks.seed(seed)
    root = checks.path(root, "root") if root is not None else cache.folder() / "cifar10"
    read = _from_jpegs if root.suffix == ".npz" else _from_torchvision
    train, train_labels = read(root, "train")
    test, test_labels = read(root, "test")
    index = CLASSES.index(normal)
    inliers = train[train_labels == index]
    if len(inliers) < 2 or not 0 < (test_labels == index).sum() < len(test):
        raise ValueError(f"{root} must hold at least 2 training images of normal={normal!r}, and to test images of it "
                         "and of other classes: choose another class, or fetch the file again")
    inliers = inliers[torch.randperm(len(inliers), generator=torch.Generator().manual_seed(seed))]
    held = max(1, len(inliers) // 10)
    return OneClass(
        train=_unit(inliers[held:]), calibration=_unit(inliers[:held]), test=_unit(test),
        labels=(test_labels != index).long(), masks=None,
        kinds=["good" if t == index else CLASSES[t] for t in test_labels.tolist()],
        name=f"CIFAR-10{', JPEG copy' if root.suffix == '.npz' else ''}, {normal} normal",
        licence="none stated", source="Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images",
    )


def _unit(images: Tensor) -> Tensor:
    return images.float() / 255


def _from_jpegs(path: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32) uint8 and labels (N,) in the order of `CLASSES`."""
    if not path.is_file():
        raise FileNotFoundError(f"root must be an existing .npz, got {path}")
    try:
        with open(path, "rb") as opened, np.load(opened) as file:
            data, offsets, labels = (file[f"{part}_{key}"] for key in ("bytes", "offsets", "labels"))
            order = torch.tensor([CLASSES.index(str(name)) for name in file["classes"]])
        labels = checks.classes(labels, len(offsets) - 1, len(order), f"{part}_labels")
        raw = data.tobytes()
        images = np.stack([np.array(Image.open(io.BytesIO(raw[a:b])).convert("RGB")) for a, b in pairwise(offsets)])
        if images.shape[1:] != (32, 32, 3):
            raise ValueError(f"images must have 32 × 32 pixels, got {images.shape[1:3]}")
    except Exception as error:                                  # whatever the zip and JPEG decoders stumble over
        raise ValueError(f"{path} is not an .npz of CIFAR-10's JPEG files ({error}): fetch it again") from error
    return torch.from_numpy(images).permute(0, 3, 1, 2), order[labels]


def _from_torchvision(root: Path, part: str) -> tuple[Tensor, Tensor]:
    from torchvision.datasets import CIFAR10

    try:
        data = CIFAR10(root, train=part == "train", download=False)
    except RuntimeError:
        try:
            with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
                data = CIFAR10(root, train=part == "train", download=True)
        except Exception as error:
            raise FileNotFoundError(
                f"CIFAR-10 is not in {root} and could not be downloaded ({error}): put cifar-10-batches-py there, or "
                "pass root= the path of an .npz of its JPEG files") from error
    return torch.from_numpy(data.data).permute(0, 3, 1, 2), torch.tensor(data.targets)
