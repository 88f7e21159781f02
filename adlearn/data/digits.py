"""Handwritten digits of 8×8 pixels: one digit is normal, the other nine are anomalies."""

from __future__ import annotations

import torch

from adlearn import checks
from adlearn.data.base import OneClass


def digits(normal: int = 3, *, seed: int = 0) -> OneClass:
    """scikit-learn's 1,797 digits, 1 channel, 8×8, as a one-class problem.

    60 % of the normal digit trains, 15 % calibrates, 25 % is tested beside all images of the other digits.

    Raises:
        ValueError: `normal` is no digit, or `seed` no whole number from 0.
    """
    from sklearn.datasets import load_digits

    normal = checks.choice(checks.positive_int(normal, "normal", 0), range(10), "normal")
    seed = checks.seed(seed)
    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float()[:, None] / 16                     # (N, 1, 8, 8)
    target = torch.from_numpy(bunch.target).long()
    inliers, outliers = torch.where(target == normal)[0], torch.where(target != normal)[0]
    inliers = inliers[torch.randperm(len(inliers), generator=torch.Generator().manual_seed(seed))]
    first, second = int(0.6 * len(inliers)), int(0.75 * len(inliers))
    test = torch.cat([inliers[second:], outliers])
    return OneClass(
        train=images[inliers[:first]], calibration=images[inliers[first:second]], test=images[test],
        labels=(target[test] != normal).long(), masks=None,
        kinds=["good" if t == normal else str(int(t)) for t in target[test]],
        name=f"digits, {normal} normal", licence="CC BY 4.0",
        source="Optical Recognition of Handwritten Digits, UCI repository (Alpaydin and Kaynak 1998), by scikit-learn",
    )
