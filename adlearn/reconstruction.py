"""Detectors by reconstruction: what they share, whatever draws the image again."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from adlearn import checks, training
from adlearn.data.folder import as_images
from adlearn.detector import Trained


class Reconstructor(Trained):
    """A detector that draws images again by what it learnt of normal ones; what it draws badly is anomalous.

    A method defines what it does with images of the size that it was fitted on: `build` (its networks), `objective`
    (of a batch), `code`, `drawn` and, if it is not the squared error, `residual`. Maps are resized to the images that
    were asked about. With `patch` images are not resized but cut into overlapping tiles, and what the tiles say of a
    pixel is averaged, see `joined_tiles`.

    Args:
        patch: side of the squares, at new random places in each step, that the method learns from, and of its tiles;
            None learns from whole images, which must be square.

    Attributes:
        shape_: (2,) int64, channels and side of the images that it was fitted on, or of the squares.
    """

    training_steps: ClassVar = {"quick": 400, "gpu": 4000, "paper": 16_000}     # by profile, without `epochs`

    def __init__(self, *, patch: int | None = None):
        super().__init__()
        self.patch = patch if patch is None else checks.positive_int(patch, "patch")

    # what a method defines ----------------------------------------------------------------------------------

    def objective(self, images: Tensor) -> Tensor:
        """What training minimises, one number for a batch of images (B, channels, side, side)."""
        raise NotImplementedError(f"{type(self).__name__} must define objective")

    def code(self, images: Tensor) -> Tensor:
        """What stands for images of the fitted size, (B, D)."""
        raise NotImplementedError(f"{type(self).__name__} must define code")

    def drawn(self, images: Tensor) -> Tensor:
        """The reconstruction of images of the fitted size, (B, C, side, side)."""
        raise NotImplementedError(f"{type(self).__name__} must define drawn")

    def residual(self, images: Tensor) -> Tensor:
        """One score a pixel of images of the fitted size, (B, side, side): the squared error."""
        return (images - self.drawn(images)).square().mean(1)

    # what every method has ----------------------------------------------------------------------------------

    def fit(self, images, *, epochs: int | None = None, batch_size: int = 32, lr: float = 1e-3,
            callback: Callable[[int, Self], None] | None = None) -> Self:
        """Learn from normal images with Adam.

        Args:
            images: see `Detector.score`; square, or with `patch` at least as large as it, two of them or more.
            epochs: None takes as many as give the profile's number of steps.
            callback: called with (epoch, detector) after each epoch and, with 0, before the first step. This detector
                is a new one, which can reconstruct and score; the one that is fitted becomes it at the end.

        Raises:
            ValueError: images that are too few, not square, or of a side that the networks cannot halve.
        """
        images = as_images(images)[:]
        new = self.afresh(images)
        training.train(new, lambda batch: new.objective(new.cut(batch)), images, lr=lr, callback=callback,
                       epochs=self.epochs(epochs, len(images), batch_size, self.training_steps), batch_size=batch_size,
                       history=new.losses_)
        return self.take(new)

    def embed(self, images: Tensor) -> Tensor:
        """The code (B, D), of tiles their mean."""
        return self.mean_of_tiles(self.code, images)

    def reconstruct(self, images: Tensor) -> Tensor:
        """Images drawn again, (B, C, H, W); H and W are the fitted side, with `patch` the images' own."""
        return self.joined_tiles(self.drawn, checks.images(images))

    def anomaly_map(self, images: Tensor) -> Tensor:
        maps = self.joined_tiles(lambda tile: self.residual(tile)[:, None], images)     # (B, 1, h, w)
        if maps.shape[2:] != images.shape[2:]:
            maps = F.interpolate(maps, images.shape[2:], mode="bilinear", align_corners=False)
        return maps[:, 0]                                                               # (B, H, W)

    def joined_tiles(self, function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """`function`, (B, C, side, side) to (B, K, side, side), over all tiles: (B, K, H, W).

        Where tiles overlap their values are averaged, each weighted by how far inside of its tile the pixel lies (a
        Hann window), so that no seam shows where a tile ends.
        """
        images = self.fitting(images)
        side, places = self.shape_[1].item(), self.places(images)
        if len(places) == 1:
            return function(images)
        hann = torch.hann_window(side + 2, periodic=False, device=images.device)[1:-1]              # above 0
        inside, total = hann[:, None] * hann, None                                                  # (side, side)
        for top, left in places:
            found = function(images[:, :, top:top + side, left:left + side])            # (B, K, side, side)
            if total is None:
                total = found.new_zeros(*found.shape[:2], *images.shape[2:])            # (B, K, H, W)
                weight = inside.new_zeros(images.shape[2:])
            total[:, :, top:top + side, left:left + side] += inside * found
            weight[top:top + side, left:left + side] += inside
        return total / weight

    def mean_of_tiles(self, function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """`function`, (B, C, side, side) to (B, ...): the mean over all tiles."""
        images, side = self.fitting(images), self.shape_[1].item()
        found = [function(images[:, :, top:top + side, left:left + side]) for top, left in self.places(images)]
        return torch.stack(found).mean(0)

    def places(self, images: Tensor) -> list[tuple[int, int]]:
        """Top and left of tiles that cover the images: they overlap by at least half, the last end at the border."""
        side = self.shape_[1].item()
        tops, lefts = ([round(i * (length - side) / steps) for i in range(steps + 1)] if steps else [0]
                       for length in images.shape[2:] for steps in [-(-2 * (length - side) // side)])
        return [(top, left) for top in tops for left in lefts]

    def fitting(self, images: Tensor) -> Tensor:
        """The images with the channels, and without `patch` in the size, of those that the detector was fitted on."""
        if self.patch is None:
            return super().fitting(images)
        images, side = self.recoloured(images), self.shape_[1].item()
        if min(images.shape[2:]) < side:
            raise ValueError(f"images must be at least {side} pixels wide and high, as the tiles of this "
                             f"{type(self).__name__}, got {images.shape[2]}×{images.shape[3]}: resize them")
        return images

    def cut(self, images: Tensor) -> Tensor:
        """Squares (B, C, patch, patch) at random places, one an image; without `patch` the images."""
        B, (H, W) = len(images), images.shape[2:]
        if self.patch is None or H == W == self.patch:
            return images
        top, left = (torch.randint(length - self.patch + 1, (B, 1)) for length in (H, W))
        rows, columns = ((start + torch.arange(self.patch)).to(images.device) for start in (top, left))    # (B, patch)
        image = torch.arange(B, device=images.device)[:, None, None]
        return images.movedim(1, 3)[image, rows[:, :, None], columns[:, None]].movedim(3, 1)

    def side_of(self, images: Tensor) -> int:
        if self.patch is None:
            return super().side_of(images)
        if self.patch > min(images.shape[2:]):
            raise ValueError(f"patch must be at most the images' {images.shape[2]}×{images.shape[3]}, got {self.patch}")
        return self.patch
