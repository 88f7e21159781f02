"""A film of the feature space: the same samples, embedded again after every epoch, in one fixed projection."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from adlearn import checks, projection, training

BATCH = 256


class Film:
    """A callback for `training.train`, and for the `fit` of detectors that train, that keeps snapshots of an embedding.

    Args:
        samples: images (N, C, H, W) or rows (N, F), the same for every frame.
        embed: maps (module, batch) to features (B, D).
        every: keep each `every`-th epoch; epoch 0, before training, is always kept.

    Attributes:
        epochs: the epochs of the frames.
        frames: one (N, D) tensor an epoch, on the CPU.
    """

    def __init__(self, samples: Tensor, embed: Callable[[nn.Module, Tensor], Tensor], *, every: int = 1):
        if not isinstance(samples, Tensor) or samples.ndim < 2 or len(samples) < 3:
            raise ValueError("samples must be a tensor (N, ...) of at least 3 images or rows")
        checks.finite(samples, "samples")
        self.samples, self.embed, self.every = samples, embed, checks.positive_int(every, "every")
        self.epochs: list[int] = []
        self.frames: list[Tensor] = []

    @torch.inference_mode()
    def __call__(self, epoch: int, module: nn.Module) -> None:
        if epoch % self.every:
            return
        where = training.device_of(module)
        rows = [self.embed(module, batch.to(where)).float().cpu() for batch in self.samples.split(BATCH)]
        self.epochs.append(epoch)
        self.frames.append(torch.cat(rows))

    def project(self) -> list[Tensor]:
        """One (N, 2) tensor an epoch, all in the plane in which the last frame spreads most."""
        if not self.frames:
            raise ValueError("the film is empty: pass it as callback= to fit or train first")
        plane = projection.Projection().fit(self.frames[-1])
        return [plane.transform(frame) for frame in self.frames]
