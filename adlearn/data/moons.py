"""Two interleaved half-moons with a handful of labels: the smallest semi-supervised problem."""

from __future__ import annotations

import torch

from adlearn import checks
from adlearn.data.base import Labelled


def moons(*, n: int = 2000, labelled: int = 6, noise: float = 0.1, seed: int = 0) -> Labelled:
    """Points of the plane in two half-moons.

    Returns:
        `train` (n, 2) with `train_labels` (n,) of 0 and 1, but −1 for all points whose label is hidden: only
        `labelled` of them, as many in each moon, are known. `test` (n, 2) is a fresh draw, fully labelled.

    Raises:
        ValueError: `labelled` is odd or more than n // 2, `noise` is negative, or `seed` no whole number from 0.
    """
    from sklearn.datasets import make_moons

    checks.positive_int(n, "n", minimum=4)
    checks.positive_int(labelled, "labelled", minimum=2)
    if labelled % 2 or labelled > n // 2:
        raise ValueError(f"labelled must be even and at most n // 2 = {n // 2}, got {labelled}")
    if not (checks.is_number(noise) and noise >= 0):
        raise ValueError(f"noise must be a number of at least 0, got {noise!r}")
    seed = checks.seed(seed)
    (train, truth), (test, test_labels) = (
        map(torch.from_numpy, make_moons(n, noise=noise, random_state=2 * seed + part)) for part in (0, 1))
    hidden = torch.full_like(truth, -1)
    for label in (0, 1):                     # make_moons shuffles, so the first of each moon are random ones
        known = torch.where(truth == label)[0][:labelled // 2]
        hidden[known] = label
    return Labelled(train=train.float(), train_labels=hidden.long(), test=test.float(),
                    test_labels=test_labels.long(), classes=["upper", "lower"], name="two moons",
                    licence="generated", source="scikit-learn, make_moons")
