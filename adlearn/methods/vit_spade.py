"""SPADE on what a Vision Transformer says of patches: every token has seen the whole image before it speaks.

Retrieval and search are SPADE's. What is compared changes:

    token       t = [x¹ / |x¹|, …, xᴸ / |xᴸ|],      xˡ the token of a patch after the l-th of some chosen blocks
    whole       f = mean over patches of the last chosen block's tokens
    pixel       the mean over input sizes s of d_s(y, p)

A smaller input makes each patch cover more of the object, a larger one gives finer maps.

Cohen and Hoshen, "Transformer-Based Anomaly Segmentation", version 2 of the preprint of SPADE, 2021. Which patches,
blocks, sizes and weights theirs has could not be verified: the choices here are ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from adlearn import backbones
from adlearn.methods.spade import Correspondence, to_half


class ViTSPADE(Correspondence):
    """SPADE on the patch tokens of a pretrained ViT, at one input size or several.

    Args:
        backbone: a name of a ViT for `backbones.load`.
        layers: blocks whose tokens are joined, counted from 0, ascending. Late ones know more of the whole image, and a
            defect anywhere moves all their tokens; those in the middle keep to their place.
        sizes: sides to which images are resized, each a multiple of the patch; maps are averaged over them. The last
            chosen block at the first size describes the whole image.
        neighbors, kappa, positions, sigma: see `SPADE`; sigma in pixels of the largest size.

    Raises:
        ValueError: an unknown name or one that is no ViT, blocks or sizes that it does not have; a number or word out
            of range.
    """

    def __init__(self, *, backbone: str = "vit_tiny_distilled", layers: Sequence[int] = (5, 8),
                 sizes: Sequence[int] = (224, 336), neighbors: int = 5, kappa: int = 1, positions: str = "all",
                 sigma: float = 4.0):
        if not isinstance(sizes, tuple | list) or not sizes or len(set(sizes)) < len(sizes):
            raise ValueError(f"sizes must name at least one side and none twice, as (224, 336), got {sizes!r}")
        network = backbones.load(backbone, layers, size=sizes[0])
        if len(set(network.strides)) > 1 or not hasattr(network.net, "model"):
            raise ValueError(f"backbone must be a ViT, whose blocks all have one grid of patches, got {backbone!r}: "
                             "SPADE takes the others")
        super().__init__(levels=len(sizes), side=max(map(network.fits, sizes)), neighbors=neighbors, kappa=kappa,
                         combine="average", positions=positions, sigma=sigma)
        self.backbone, self.layers, self.sizes, self.network = backbone, network.layers, tuple(sizes), network

    def embed(self, images: Tensor) -> Tensor:
        """f, (B, D), without a look at the other sizes."""
        return self.network(images)[-1].mean((2, 3))

    def describe(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        tokens = [self.network(images, size) for size in self.sizes]                        # (B, D, h, w) each
        return tokens[0][-1].mean((2, 3)), [to_half(torch.cat([F.normalize(x, dim=1) for x in of_one_size], dim=1))
                                            for of_one_size in tokens]
