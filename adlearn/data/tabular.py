"""Rows of numbers, for methods that work without images."""

from __future__ import annotations

import torch

from adlearn import checks
from adlearn.data.base import OneClass

_SETS = {   # name: (scikit-learn's loader, the class that is normal, licence, source)
    "breast_cancer": ("load_breast_cancer", 1, "CC BY 4.0",
                      "Breast Cancer Wisconsin (Diagnostic), UCI repository (Wolberg et al. 1995), by scikit-learn"),
    "wine": ("load_wine", 1, "CC BY 4.0", "Wine, UCI repository (Aeberhard and Forina 1991), by scikit-learn"),
}


def tabular(name: str = "breast_cancer", *, seed: int = 0) -> OneClass:
    """A one-class problem on rows: benign tumours (or one grape) are normal.

    Half of the normal rows train, a tenth calibrates, the rest is tested beside all anomalous rows. Columns are
    standardised by the training rows alone, so values are not confined to [0, 1].

    Returns:
        `train` (N, F) float32 and so on; `masks` is None.

    Raises:
        ValueError: the name is unknown, or `seed` no whole number from 0.
    """
    from sklearn import datasets

    checks.choice(name, _SETS, "name")
    seed = checks.seed(seed)
    loader, normal, licence, source = _SETS[name]
    bunch = getattr(datasets, loader)()
    rows, target = torch.from_numpy(bunch.data).float(), torch.from_numpy(bunch.target)
    inliers, outliers = torch.where(target == normal)[0], torch.where(target != normal)[0]
    inliers = inliers[torch.randperm(len(inliers), generator=torch.Generator().manual_seed(seed))]
    first, second = len(inliers) // 2, int(0.6 * len(inliers))
    rows = (rows - rows[inliers[:first]].mean(0)) / rows[inliers[:first]].std(0)
    test = torch.cat([inliers[second:], outliers])
    return OneClass(train=rows[inliers[:first]], calibration=rows[inliers[first:second]], test=rows[test],
                    labels=(target[test] != normal).long(), masks=None,
                    kinds=["good" if t == normal else str(bunch.target_names[t]) for t in target[test]],
                    name=name, licence=licence, source=source)
