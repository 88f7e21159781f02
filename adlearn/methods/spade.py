"""SPADE: find the normal images most like this one, and ask of each pixel whether any place in them looks the same.

Nothing is trained. A pretrained network describes every image twice, as a whole and at every position p of a pyramid
of its feature maps:

    whole       f = mean over positions of the last map              N_K: the K normal images nearest in f
    image       d(y) = 1/K Σ |f − f_y|²,                 f of N_K
    gallery     G = {F(x, q) : x in N_K, all positions q}
    pixel       d(y, p) = 1/κ Σ |g − F(y, p)|²,          g of the κ nearest of G

F(x, p) joins the maps of three stages, the coarser ones enlarged; d(y, ·) is smoothed by a Gaussian.

Cohen and Hoshen, "Sub-Image Anomaly Detection with Deep Pyramid Correspondences", 2020 (versions 1 and 3). Theirs is a
Wide ResNet-50-2 and a square cut from the middle of the image; here any backbone, and the whole image, so that there is
a score at the border too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from adlearn import backbones, checks, runtime
from adlearn.data.folder import as_images
from adlearn.detector import Detector
from adlearn.neighbors import knn

COMBINE = ("concatenate", "average")
POSITIONS = ("all", "same")


class Correspondence(Detector):
    """The two searches. What they compare, a class derived from it says, in `describe`.

    `anomaly_score` is d(y), the whole image's; `anomaly_map` is d(y, ·), which the image's score knows nothing of.
    """

    def __init__(self, *, levels: int, side: int, neighbors: int, kappa: int, combine: str, positions: str,
                 sigma: float):
        super().__init__()
        self.side = side                                # of a map, in pixels, before it is resized to the image
        self.folder_size = max(side, self.folder_size)
        self.neighbors, self.kappa = checks.positive_int(neighbors, "neighbors"), checks.positive_int(kappa, "kappa")
        self.combine = checks.choice(combine, COMBINE, "combine")
        self.positions = checks.choice(positions, POSITIONS, "positions")
        self.sigma = checks.within(sigma, 0, 100, "sigma")
        if positions == "same" and kappa > neighbors:
            raise ValueError(f"kappa must be at most the {neighbors} neighbours where each has one place to offer, got "
                             f"{kappa}")
        self._levels = [f"level_{i}_" for i in range(levels)]
        for name in ("pooled_", *self._levels):
            self.register_buffer(name, torch.empty(0))

    def describe(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """f, (B, D), and the maps of all levels, (B, C_l, h_l, w_l) each, in half precision."""
        raise NotImplementedError(f"{type(self).__name__} must define describe")

    def fit(self, images, *, batch_size: int = 16) -> Self:
        """Describe the normal images, (N, C, H, W) in [0, 1], a data set or a folder, and keep that; all, once.

        Raises:
            ValueError: fewer images than `neighbors`; features beyond half precision.
        """
        images = as_images(images, self.folder_size)
        if len(images) < self.neighbors:
            raise ValueError(f"images must be at least neighbors = {self.neighbors}, got {len(images)}: lower "
                             "neighbors, or bring more images")
        checks.positive_int(batch_size, "batch_size")
        where = self.pooled_.device
        with torch.inference_mode():
            starts = runtime.progress(range(0, len(images), batch_size), "images")
            found = [self.describe(images[start:start + batch_size].to(where)) for start in starts]
        pooled, levels = zip(*found, strict=True)
        for name, parts in zip(("pooled_", *self._levels), (pooled, *zip(*levels, strict=True)), strict=True):
            setattr(self, name, torch.cat(parts))
        return self.fitted()

    def embed(self, images: Tensor) -> Tensor:
        """f, (B, D)."""
        return self.describe(images)[0]

    def retrieve(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Distances of f, (B, D), to the nearest normal images, ascending, and which these are: (B, K) each."""
        return knn(pooled, self.pooled_, self.neighbors)

    def anomaly_score(self, images: Tensor) -> Tensor:
        return self.retrieve(self.embed(images))[0].square().mean(1)

    def anomaly_map(self, images: Tensor) -> Tensor:
        pooled, levels = self.describe(images)
        kept = [getattr(self, name) for name in self._levels]
        maps = [self.compare([level[i:i + 1] for level in levels], [level[which] for level in kept])
                for i, which in enumerate(self.retrieve(pooled)[1])]                        # (1, 1, side, side) each
        maps = smoothed(torch.cat(maps), self.sigma)
        return F.interpolate(maps, images.shape[2:], mode="bilinear", antialias=True, align_corners=False)[:, 0]

    def compare(self, query: list[Tensor], gallery: list[Tensor]) -> Tensor:
        """d(y, ·), (1, 1, side, side), of an image's levels (1, C_l, h_l, w_l) and its K neighbours', (K, …)."""
        if self.combine == "concatenate":
            query, gallery = [joined(query)], [joined(gallery)]
        found = [self.distances(*pair)[None, None] for pair in zip(query, gallery, strict=True)]
        return torch.stack([enlarged(level, (self.side, self.side)) for level in found]).mean(0)

    def distances(self, query: Tensor, gallery: Tensor) -> Tensor:
        """Mean squared distance of each position of (1, C, h, w) to the κ nearest in (K, C, h, w): (h, w)."""
        if self.positions == "same":
            squared = (gallery.float() - query.float()).square().sum(1)                     # (K, h, w)
            return squared.topk(self.kappa, dim=0, largest=False).values.mean(0)
        rows, bank = (maps.float().movedim(1, 3).flatten(0, 2) for maps in (query, gallery))
        return knn(rows, bank, self.kappa)[0].square().mean(1).view(query.shape[2:])        # (h·w, κ) -> (h, w)


class SPADE(Correspondence):
    """Retrieval of the nearest normal images, and of the nearest place in them for every position.

    Args:
        backbone: a name for `backbones.load`.
        layers: stages that make the pyramid, ascending; their features are kept in half precision.
        pooled: the stage whose mean describes the whole image.
        normalize: give the features of each stage length 1 at every position, so that stages with large numbers do not
            decide alone; the paper takes them as they are.
        size: side to which images are resized; None for that of the backbone's pretraining.
        neighbors: K, normal images that the gallery is made of. The paper's 50 is for maps; whole images are told
            apart best by few, and its own figure for them is what few give.
        kappa: κ, places in the gallery that a position is compared with.
        combine: "concatenate" stages before the search, or "average" a map of distances for each, as an unofficial
            implementation does.
        positions: "all" places are in the gallery, as in the paper, or the "same" place only, as is often drawn.
        sigma: deviation of the smoothing, in pixels of the resized image; 0 for none.

    Raises:
        ValueError: an unknown name, stage or size; a number or word out of range.
    """

    def __init__(self, *, backbone: str = "efficientnet_lite0", layers: Sequence[int] = (1, 2, 3), pooled: int = 4,
                 normalize: bool = False, size: int | None = None, neighbors: int = 5, kappa: int = 1,
                 combine: str = "concatenate", positions: str = "all", sigma: float = 4.0):
        if not backbones.ascending(layers):
            raise ValueError(f"layers must be ascending indices of stages, as (1, 2, 3), got {layers!r}")
        checks.positive_int(pooled, "pooled", minimum=0)
        checks.choice(normalize, (True, False), "normalize")
        asked = sorted({*layers, pooled})
        network = backbones.load(backbone, asked, size=size)
        super().__init__(levels=len(layers), side=network.size, neighbors=neighbors, kappa=kappa, combine=combine,
                         positions=positions, sigma=sigma)
        self.backbone, self.layers, self.pooled, self.normalize = backbone, tuple(layers), pooled, normalize
        self.size, self.network = size, network
        self._pyramid, self._last = [asked.index(layer) for layer in self.layers], asked.index(pooled)

    def describe(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        maps = self.network(images)
        levels = [F.normalize(maps[i], dim=1) if self.normalize else maps[i] for i in self._pyramid]
        return maps[self._last].mean((2, 3)), [to_half(level) for level in levels]


def to_half(maps: Tensor) -> Tensor:
    """In half precision; what that cannot hold is refused."""
    low, high = checks.finite(maps, "features")
    if max(-low, high) > 65504:
        raise ValueError(f"features must lie within ±65504 to be kept in half precision, got {maps.abs().max():.3g}: "
                         "take other layers")
    return maps.half()


def joined(levels: list[Tensor]) -> Tensor:
    """Maps (B, C_l, h_l, w_l), all enlarged to the grid of the first, in one: (B, Σ C_l, h, w)."""
    return torch.cat([enlarged(level.float(), levels[0].shape[2:]) for level in levels], dim=1)


def enlarged(maps: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(maps, tuple(size), mode="bilinear", align_corners=False)


def smoothed(maps: Tensor, sigma: float) -> Tensor:
    """Maps (B, 1, H, W) under a Gaussian of `sigma` pixels, cut off at four of them; borders are reflected."""
    if sigma == 0:
        return maps
    reach = min(round(4 * sigma), *(side - 1 for side in maps.shape[2:]))
    weights = torch.exp(-torch.arange(-reach, reach + 1, device=maps.device).square() / (2 * sigma ** 2))
    weights = (weights / weights.sum()).to(maps)
    maps = F.conv2d(F.pad(maps, (0, 0, reach, reach), mode="reflect"), weights.view(1, 1, -1, 1))
    return F.conv2d(F.pad(maps, (reach, reach, 0, 0), mode="reflect"), weights.view(1, 1, 1, -1))
