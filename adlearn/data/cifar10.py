"""CIFAR-10 as a one-class problem: the benchmark of the papers."""

from __future__ import annotations

import io
import os
import zipfile
from contextlib import redirect_stderr, redirect_stdout
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from adlearn import cache, checks
from adlearn.data.base import OneClass

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def cifar10(normal: str = "ship", *, root=None, seed: int = 0) -> OneClass:
    """One class is normal, the other nine are anomalies; 3 channels, 32×32.

    A tenth of the 5,000 normal training images calibrates; the test set is the whole official one.

    Args:
        root: an `.npz` of JPEG files (keys `train_bytes`, `train_offsets`, `train_labels`, the same with `test_`,
            and `classes`); a folder that torchvision's CIFAR10 can read or download into; None for the cache's.

    Raises:
        ValueError: the class is unknown, or the `.npz` is not what it should be.
        FileNotFoundError: `root` is not there; or nothing is there and the download failed.
    """
    checks.choice(normal, CLASSES, "normal")
    root = Path(root) if root is not None else cache.folder() / "cifar10"
    read = _from_jpegs if root.suffix == ".npz" else _from_torchvision
    train, train_labels = read(root, "train")
    test, test_labels = read(root, "test")
    index = CLASSES.index(normal)
    inliers = train[train_labels == index]
    inliers = inliers[torch.randperm(len(inliers), generator=torch.Generator().manual_seed(seed))]
    held = len(inliers) // 10
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
    if not path.is_file():
        raise FileNotFoundError(f"root must be an existing .npz, got {path}")
    try:
        with open(path, "rb") as opened, np.load(opened) as file:
            data, offsets, labels = (file[f"{part}_{key}"] for key in ("bytes", "offsets", "labels"))
            order = [CLASSES.index(str(name)) for name in file["classes"]]
        raw = data.tobytes()
        images = [np.array(Image.open(io.BytesIO(raw[a:b])).convert("RGB"))
                  for a, b in pairwise(offsets)]
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile, UnidentifiedImageError) as error:
        raise ValueError(f"{path} is not an .npz of CIFAR-10's JPEG files ({error}): fetch it again") from error
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), torch.tensor(order)[torch.from_numpy(labels).long()]


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
