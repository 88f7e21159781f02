"""Two-dimensional views of features: principal components by default, UMAP, and films of moving features."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from adlearn import checks


class Projection:
    """A view that is fitted once and then shows other features in the same axes.

    method "pca": the two directions of largest variance, each turned so that its largest coefficient is positive,
    so that the same features always give the same picture. After fitting, `mean_` (D,), `axes_` (D, 2) and
    `explained_` (2,), the share of the variance that each axis shows.

    method "umap": needs the package umap-learn; slow at first use, for at most a few thousand rows; neither its axes
    nor its distances have units. Its seed comes from torch's global generator. McInnes et al., "UMAP", 2018.
    """

    def __init__(self, method: str = "pca"):
        self.method = checks.choice(method, ("pca", "umap"), "method")

    def fit(self, features: Tensor) -> Projection:
        """Fit to features (N, D), N at least 3, D at least 2."""
        self.fit_transform(features)
        return self

    def fit_transform(self, features: Tensor) -> Tensor:
        """Fit to features (N, D) and return them in the view: (N, 2) float32 on the CPU."""
        features = _features(features)
        if len(features) < 3 or features.shape[1] < 2:
            raise ValueError(f"features must have at least 3 rows and 2 columns, got {tuple(features.shape)}")
        self.width_ = features.shape[1]
        if self.method == "umap":
            self.reducer_ = _umap(len(features))
            return _quietly(self.reducer_.fit_transform, features)
        self.mean_ = features.mean(dim=0)
        _, sizes, axes = torch.linalg.svd(features - self.mean_, full_matrices=False)
        axes = axes[:2].T                                                           # (D, 2)
        self.axes_ = axes * axes.gather(0, axes.abs().argmax(dim=0)[None]).sign()
        variances = sizes.square()
        self.explained_ = variances[:2] / variances.sum().clamp(min=torch.finfo(variances.dtype).tiny)
        return self.transform(features)

    def transform(self, features: Tensor) -> Tensor:
        """Other features (M, D) in the same view: (M, 2) float32 on the CPU."""
        if not hasattr(self, "width_"):
            raise ValueError("this Projection has no view yet: call fit with features first")
        features = _features(features, self.width_)
        if self.method == "umap":
            return _quietly(self.reducer_.transform, features)
        return ((features - self.mean_) @ self.axes_).float()


def project(features: Tensor, method: str = "pca") -> Tensor:
    """Features (N, D) in a view of their own: (N, 2) float32 on the CPU. See `Projection` for the methods."""
    return Projection(method).fit_transform(features)


def aligned(snapshots: list[Tensor], method: str = "pca") -> list[Tensor]:
    """A film: each snapshot (N, D_t) of the same N items in a view of its own, (N, 2), turned to fit the one before.

    A view's axes may turn or flip between two epochs while the features hardly move. Each frame is therefore centred
    and turned or mirrored, never stretched, to lie as close as it can to the frame before (orthogonal Procrustes,
    Schönemann 1966). For one fixed view over all epochs use ``Projection().fit(last)`` and its ``transform``.
    """
    if not isinstance(snapshots, list | tuple):
        raise ValueError(f"snapshots must be a list of tensors (N, D), got {type(snapshots).__name__}")
    snapshots = [_features(snapshot) for snapshot in snapshots]
    if len({len(snapshot) for snapshot in snapshots}) != 1:
        lengths = [len(snapshot) for snapshot in snapshots]
        raise ValueError(f"snapshots must show the same items, at least one snapshot, got rows {lengths}")
    frames: list[Tensor] = []
    for snapshot in snapshots:
        frame = project(snapshot, method)
        frame = frame - frame.mean(dim=0)
        if frames:
            left, _, right = torch.linalg.svd(frame.T @ frames[-1])                 # (2, 2)
            frame = frame @ left @ right
        frames.append(frame)
    return frames


def _features(features: Tensor, width: int | None = None) -> Tensor:
    return checks.rows(features, "features", width=width).detach().cpu().double()


def _umap(count: int):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")                 # its imports warn about packages that it does not need
            from umap import UMAP
    except ImportError as error:
        raise ImportError("method='umap' needs a package: pip install umap-learn, or use method='pca'") from error
    seed = int(torch.randint(2**31, (1,)))
    return UMAP(n_neighbors=min(15, count - 1), random_state=seed, n_jobs=1)


def _quietly(transform, features: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                     # numba's and UMAP's own, about threads and small data
        return torch.as_tensor(transform(features.float().numpy()))
