"""Frozen features and a simple rule: the baselines that every other method has to beat.

A pretrained network describes the image; a rule that was known long before deep learning says how unusual the
description is. Nothing is trained by gradients:

    z = (pool(phi(x)) − mean) / std        phi frozen, mean and std from the normal images
    score(x) = rule(z)                     distance to neighbours, to a centre, negative log-density, ...

The rules are Schölkopf et al. 2001 (one-class SVM) and textbook density estimation (`adlearn.density`,
`adlearn.neighbors`); nearest neighbours on ImageNet features as a detector are DN2, Bergman, Cohen and Hoshen 2020.
`FeatureDictionary` follows Napoletano, Piccoli and Schettini 2018.
"""

from __future__ import annotations

import copy
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adlearn import backbones, cache, checks, density, training
from adlearn.data.folder import as_images
from adlearn.detector import Detector
from adlearn.neighbors import NeighborDistance, knn

STAGES = (1, 2, 3, 4)          # strides 4, 8, 16 and 32 of EfficientNet-Lite0


class OnFeatures(Detector):
    """One frozen description z of the whole image, and a rule on it.

    Args:
        backbone: a name for `backbones.load`; None takes the raw pixels as the description.
        keep_features: keep the backbone's features in the cache, by the content of each image, so that another
            split of the same images is scored without another pass through the network.
    """

    def __init__(self, *, backbone: str | None, keep_features: bool):
        super().__init__()
        self.backbone, self.keep_features = backbone, keep_features
        self.network = backbones.load(backbone, layers=STAGES) if backbone else None
        self.rule: nn.Module = nn.Identity()
        self.register_buffer("mean_", torch.zeros(1))
        self.register_buffer("std_", torch.ones(1))

    def describe(self, images: Tensor) -> Tensor:
        """The description before it is standardised: mean and maximum of each feature map, or the pixels."""
        if self.network is None:
            return images.flatten(1)                                                       # (B, C·H·W)
        maps = self.network(images)                                                        # each (B, C_l, H_l, W_l)
        return torch.cat([m.mean((2, 3)) for m in maps] + [m.amax((2, 3)) for m in maps], dim=1)   # (B, 2·ΣC_l)

    def embed(self, images: Tensor) -> Tensor:
        """z, (B, D)."""
        return self.standardise(self.describe(images))

    def anomaly_score(self, images: Tensor) -> Tensor:
        return self.rule.score(self.embed(images))

    def fit(self, images, *, batch_size: int = 64) -> Self:
        rows = self.descriptions(images, batch_size).to(self.mean_.device)                 # (N, D)
        if len(rows) < 2:
            raise ValueError(f"images must be at least 2 to learn from, got {len(rows)}")
        mean, std = self.mean_.new_zeros(1), self.std_.new_ones(1)
        if self.network is not None:                 # a backbone's channels differ in scale; pixels share theirs
            mean, std = rows.mean(0), rows.std(0).clamp_min(1e-6)
        self.rule = copy.deepcopy(self.rule).fit((rows - mean) / std)
        self.mean_, self.std_ = mean, std
        return self.fitted()

    def score(self, images, *, batch_size: int = 64) -> Tensor:
        self._ready()
        rows = self.descriptions(images, batch_size).to(self.mean_.device)
        return self.rule.score(self.standardise(rows)).float().cpu()

    def standardise(self, rows: Tensor) -> Tensor:
        return (rows - self.mean_) / self.std_

    @torch.inference_mode()
    def descriptions(self, images, batch_size: int) -> Tensor:
        """`describe` over all images, (N, D) on the CPU, from the cache where it may be used."""
        images = as_images(images)
        if self.network is None or not self.keep_features:
            return training.collect(self.describe, images, batch_size=batch_size, device=self.mean_.device)
        key = {"weights": self.network.sha256, "size": self.network.size, "stages": STAGES, "pooling": "mean, max",
               "precision": "bfloat16" if self.mean_.is_cuda else "float32"}
        return cache.rows(f"features-{self.backbone}", key, images,
                          lambda batch: self.describe(batch.to(self.mean_.device)).cpu(), batch_size=batch_size)


class NearestNeighbors(OnFeatures):
    """Mean Euclidean distance to the `k` nearest normal images (DN2; Bergman, Cohen and Hoshen 2020)."""

    def __init__(self, *, k: int = 5, backbone: str | None = "efficientnet_lite0", keep_features: bool = False):
        super().__init__(backbone=backbone, keep_features=keep_features)
        self.k = checks.positive_int(k, "k")
        self.rule = NeighborDistance(k)


class KMeans(OnFeatures):
    """Distance to the nearest of `k` centres."""

    def __init__(self, *, k: int = 10, backbone: str | None = "efficientnet_lite0", keep_features: bool = False):
        super().__init__(backbone=backbone, keep_features=keep_features)
        self.k = k
        self.rule = density.KMeans(k=k)


class OneClassSVM(OnFeatures):
    """One-class support vector machine with a Gaussian kernel (Schölkopf et al. 2001).

    `nu` bounds the share of training images outside the boundary from above; `gamma` None is 10 / (D · variance),
    the rule of Sohn et al. 2021, who normalise their features to unit length where we standardise them.
    """

    def __init__(self, *, nu: float = 0.5, gamma: float | None = None,
                 backbone: str | None = "efficientnet_lite0", keep_features: bool = False):
        super().__init__(backbone=backbone, keep_features=keep_features)
        self.nu, self.gamma = nu, gamma
        self.rule = density.OneClassSVM(nu=nu, gamma=gamma)


class KDE(OnFeatures):
    """Negative log of a kernel density estimate; for `gamma` see `OneClassSVM`."""

    def __init__(self, *, gamma: float | None = None,
                 backbone: str | None = "efficientnet_lite0", keep_features: bool = False):
        super().__init__(backbone=backbone, keep_features=keep_features)
        self.gamma = gamma
        self.rule = density.KDE(gamma=gamma)


class Gaussian(OnFeatures):
    """Mahalanobis distance to the normal images' mean, with a shrunk covariance."""

    def __init__(self, *, backbone: str | None = "efficientnet_lite0", keep_features: bool = False):
        super().__init__(backbone=backbone, keep_features=keep_features)
        self.rule = density.Gaussian()


class FeatureDictionary(Detector):
    """A dictionary of normal patches; a patch that is far from every entry is anomalous.

    Napoletano, Piccoli and Schettini 2018: describe each sub-region of the normal images by pooled CNN features,
    reduce them by PCA to a share of their variance, and let K-means choose `k` entries. A sub-region's score is its
    mean distance to the `m` nearest entries.

    Departures: the sub-regions are pooled from one pass over the whole image instead of one pass each, which gives
    every sub-region some context; and each stage is L2-normalised before they are joined, because coarse stages
    with large values would otherwise decide alone.

    Args:
        k: entries of the dictionary.
        m: entries that a patch is compared with.
        variance: share of the variance that PCA keeps, in (0, 1].
        patch: side of a sub-region, in cells of `stride` pixels of the backbone's input.
        backbone: a name for `backbones.load`.
    """

    stages = (1, 2, 3)                      # strides 4, 8 and 16
    sample = 50_000                         # patches for PCA and K-means

    def __init__(self, *, k: int = 100, m: int = 3, variance: float = 0.95, patch: int = 3,
                 backbone: str = "efficientnet_lite0"):
        super().__init__()
        self.k, self.m = checks.positive_int(k, "k"), checks.positive_int(m, "m")
        if m > k:
            raise ValueError(f"m must be at most k = {k}, got {m}")
        self.variance = checks.between(variance, 0, 1, "variance")
        if checks.positive_int(patch, "patch") % 2 == 0:
            raise ValueError(f"patch must be odd, so that a sub-region has a centre, got {patch}")
        self.patch, self.backbone = patch, backbone
        self.network = backbones.load(backbone, layers=self.stages)
        for name in ("mean_", "axes_", "entries_"):
            self.register_buffer(name, torch.empty(0))

    def patches(self, images: Tensor) -> Tensor:
        """Descriptions of all sub-regions, (B, D, h, w), on the grid of the second stage."""
        levels = [F.avg_pool2d(level, self.patch, stride=1, padding=self.patch // 2, count_include_pad=False)
                  for level in self.network(images)]
        grid = levels[1].shape[-2:]
        return torch.cat([F.interpolate(F.normalize(level, dim=1), grid, mode="bilinear", align_corners=False)
                          for level in levels], dim=1)

    def fit(self, images, *, batch_size: int = 16) -> Self:
        images = as_images(images)
        share = max(1, self.sample // len(images))           # patches of each image that are looked at

        def some(batch: Tensor) -> Tensor:
            rows = self.patches(batch).flatten(2).transpose(1, 2)                           # (B, h·w, D)
            return rows[:, torch.randperm(rows.shape[1])[:share]]                           # (B, share, D)

        where = self.mean_.device
        rows = training.collect(some, images, batch_size=batch_size, device=where).flatten(0, 1)[:self.sample]
        if len(rows) < self.k:
            raise ValueError(f"images give only {len(rows)} patches, fewer than k = {self.k}: lower k")
        mean, axes = density.principal_axes(rows, self.variance)                            # (D,), (D, d)
        entries = density.KMeans(k=self.k).fit((rows - mean) @ axes).centres_               # (k, d)
        self.mean_, self.axes_, self.entries_ = mean.to(where), axes.to(where), entries.to(where)
        return self.fitted()

    def embed(self, images: Tensor) -> Tensor:
        """The mean description of an image's sub-regions, (B, D)."""
        return self.patches(images).mean((2, 3))

    def anomaly_map(self, images: Tensor) -> Tensor:
        maps = self.patches(images)                                                         # (B, D, h, w)
        rows = (maps.permute(0, 2, 3, 1).flatten(0, 2) - self.mean_) @ self.axes_           # (B·h·w, d)
        distance = knn(rows, self.entries_, self.m)[0].mean(1)                              # (B·h·w,)
        grid = distance.view(len(images), 1, *maps.shape[-2:])
        return F.interpolate(grid, images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
