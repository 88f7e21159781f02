"""Autoencoders: squeeze a normal image through a narrow code and draw it again; what the code has no room for is lost.

The encoder f and the decoder g are trained on normal images only, so that their narrow code z = f(x) of d numbers is
spent on what normal images have in common. The map is the difference between x and its reconstruction g(f(x)),

    ℓ2      |x − g(f(x))|²            each pixel by itself
    SSIM    1 − SSIM(x, g(f(x)))      the structure of a window around each pixel

Bergmann, Löwe, Fauser, Sattlegger and Steger, "Improving Unsupervised Defect Segmentation by Applying Structural
Similarity to Autoencoders", 2019; SSIM is Wang, Bovik, Sheikh and Simoncelli, "Image Quality Assessment: From Error
Visibility to Structural Similarity", 2004. `MeanImage` has no code at all: it always draws the mean normal image.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from adlearn import checks
from adlearn.data.folder import as_images
from adlearn.losses import full_precision
from adlearn.nets import LatentDecoder, LatentEncoder
from adlearn.reconstruction import Reconstructor

C1, C2 = 0.01 ** 2, 0.03 ** 2                   # Wang et al. 2004, for values from 0 to 1
LOSSES = ("l2", "ssim")


@full_precision()
def ssim(one: Tensor, two: Tensor, *, window: int = 11, sigma: float = 1.5) -> Tensor:
    """Structural similarity around each pixel, (B, H, W), the mean over channels: from −1 to 1, where images agree.

    With the mean μ, variance σ² and covariance of both images in a Gaussian window, Wang et al. 2004, eq. 13:

        SSIM = (2 μ₁μ₂ + c₁) (2 σ₁₂ + c₂) / ((μ₁² + μ₂² + c₁) (σ₁² + σ₂² + c₂))

    Differentiable, on the images' device. Near the border the window holds what lies inside the image, with weights
    that still sum to one; elsewhere it is scikit-image's `structural_similarity` with ``gaussian_weights=True,
    use_sample_covariance=False, data_range=1``.

    Args:
        one, two: (B, C, H, W), values from 0 to 1.
        window: odd side of the window in pixels.
        sigma: deviation of the Gaussian in pixels.

    Raises:
        ValueError: shapes differ; an even window; a deviation that is not positive.
    """
    if one.ndim != 4 or one.shape != two.shape:
        raise ValueError(f"one and two must be images (B, C, H, W) of one shape, got {tuple(one.shape)} and "
                         f"{tuple(two.shape)}")
    if checks.positive_int(window, "window") % 2 == 0:
        raise ValueError(f"window must be odd, so that it has a centre, got {window}")
    one, two = one.float() if one.itemsize < 4 else one, two.float() if two.itemsize < 4 else two
    down, across = (_windows(length, window, checks.between(sigma, 0, 1e4, "sigma"), one) for length in one.shape[2:])

    def mean(values: Tensor) -> Tensor:
        return down @ values @ across.T                                                 # (B, C, H, W)

    level = (one + two).mean((2, 3), keepdim=True) / 2  # E x² − (E x)² cancels less if x lies around 0
    one, two = one - level, two - level
    mean1, mean2 = mean(one), mean(two)
    covariance = mean(one * two) - mean1 * mean2
    variances = mean(one.square() + two.square()) - (mean1.square() + mean2.square())   # σ₁² + σ₂²
    mean1, mean2 = mean1 + level, mean2 + level
    brightness = (2 * mean1 * mean2 + C1) / (mean1.square() + mean2.square() + C1)
    return (brightness * (2 * covariance + C2) / (variances + C2)).mean(1)


def _windows(length: int, window: int, sigma: float, like: Tensor) -> Tensor:
    """(length, length): row i holds the weights with which a line of pixels is averaged around pixel i.

    A product with this band of a matrix is a convolution, and on images of a few hundred pixels the faster one.
    """
    place = torch.arange(length, dtype=like.dtype, device=like.device)
    offset = place[:, None] - place
    weights = torch.exp(-0.5 * (offset / sigma).square()) * (offset.abs() <= window // 2)
    return weights / weights.sum(1, keepdim=True)


class AutoEncoder(Reconstructor):
    """A convolutional autoencoder with a code of `latent` numbers.

    Args:
        loss: "l2", the squared error; or "ssim", one minus the structural similarity.
        measure: what the map is made of, "l2" or "ssim"; None takes the loss.
        latent: length of the code. Too long, and the code has room for the defect too.
        width: channels of the first convolution.
        patch: see `Reconstructor`; the paper learns textures from squares of 128 pixels.
    """

    def __init__(self, *, loss: str = "l2", measure: str | None = None, latent: int = 64, width: int = 32,
                 patch: int | None = None):
        super().__init__(patch=patch)
        self.loss = checks.choice(loss, LOSSES, "loss")
        self.measure = measure if measure is None else checks.choice(measure, LOSSES, "measure")
        self.latent, self.width = checks.positive_int(latent, "latent"), checks.positive_int(width, "width")

    def build(self, channels: int, side: int) -> None:
        shared = {"channels": channels, "side": side, "latent": self.latent, "width": self.width}
        self.encoder, self.decoder = LatentEncoder(**shared), LatentDecoder(**shared)

    def code(self, images: Tensor) -> Tensor:
        return self.encoder(images)                                                     # (B, latent)

    def drawn(self, images: Tensor) -> Tensor:
        return self.decoder(self.code(images)).sigmoid()                             # (B, C, side, side)

    def objective(self, images: Tensor) -> Tensor:
        return self.difference(images, self.loss).mean()

    def residual(self, images: Tensor) -> Tensor:
        return self.difference(images, self.measure or self.loss)

    def difference(self, images: Tensor, measure: str) -> Tensor:
        """Between images and their reconstructions by one of `LOSSES`, (B, side, side); 1 − SSIM is from 0 to 2."""
        drawn = self.drawn(images)
        return (images - drawn).square().mean(1) if measure == "l2" else 1 - ssim(images, drawn)


class MeanImage(Reconstructor):
    """Always the same reconstruction, the mean of all normal images: what every other one has to beat.

    It knows where a pixel is and nothing else. On images that are taken alike, as of products in a holder, that is a
    good deal.
    """

    def __init__(self):
        super().__init__()
        self.register_buffer("mean_", torch.empty(0))

    def build(self, channels: int, side: int) -> None:
        self.mean_ = torch.zeros(channels, side, side)

    def fit(self, images) -> Self:
        images = as_images(images)[:]
        new = self.afresh(images)
        new.mean_ = images.mean(0).to(new.mean_.device)                                 # (C, H, W)
        return self.take(new)

    def code(self, images: Tensor) -> Tensor:
        return images.flatten(1)                                                        # (B, C·H·W)

    def drawn(self, images: Tensor) -> Tensor:
        return self.mean_.expand_as(images)
