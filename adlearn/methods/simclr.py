"""SimCLR: features that recognise an image in two random views of it. No labels.

Chen, Kornblith, Norouzi and Hinton, "A Simple Framework for Contrastive Learning of Visual Representations", 2020.
Two augmentations t and t' of each of N images pass through the encoder f and the projection head g:

    h = f(t(x))        z = g(h)        loss = InfoNCE(z, z'): find your other view among the 2N − 1 others

The head is thrown away: h is the representation. What the augmentations change, the head learns to ignore, so that
h need not forget it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from adlearn import augment, checks, losses, training
from adlearn.nets import ProjectionHead, width


class SimCLR(nn.Module):
    """Encoder f and projection head g: images (B, C, H, W) to z (B, D); `embed` gives h (B, dim).

    Args:
        encoder: images to features (B, encoder.dim).
        head: features to what the loss compares; by default two layers with 128 outputs.
    """

    def __init__(self, encoder: nn.Module, *, head: nn.Module | None = None):
        super().__init__()
        self.encoder, self.head = encoder, ProjectionHead(width(encoder)) if head is None else head

    def embed(self, images: Tensor) -> Tensor:
        return self.encoder(images)                                                     # (B, dim)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.embed(images))                                            # (B, D)


def pretrain(
    encoder: nn.Module,
    images: Tensor,
    *,
    head: nn.Module | None = None,
    views: Callable[[Tensor], Tensor] | None = None,
    temperature: float = 0.5,
    epochs: int,
    batch_size: int = 256,
    lr: float = 1e-3,
    optimizer: Callable[..., torch.optim.Optimizer] = training.Adam,
    warmup: int = 0,
    callback: Callable[[int, nn.Module], None] | None = None,
    checkpoint=None,
) -> tuple[SimCLR, list[float]]:
    """Train `encoder` on images without labels; returns the model in evaluation mode and each epoch's mean loss.

    Both views pass through the network together, so that batch norm sees one batch: with statistics of its own, a
    view could be recognised by them.

    Args:
        encoder: images to features (B, encoder.dim).
        images: (N, C, H, W) in [0, 1].
        head: see `SimCLR`.
        views: draws a view of each image of a batch; called twice. By default the paper's recipe for small images,
            `augment.simclr()`.
        temperature: 0.5 as in the paper for CIFAR-10.
        epochs, batch_size, lr, warmup, callback, checkpoint: see `training.train`.
        optimizer: Adam suits small batches; the paper's is `training.LARS`, at 4,096 images with a rate of
            0.3 · batch_size / 256 and 10 epochs of warm-up.

    Raises:
        ValueError: images outside [0, 1]; an encoder without `dim` and no head; a temperature that is not positive.
    """
    images = checks.images(images)
    views = augment.simclr() if views is None else views
    model = SimCLR(encoder, head=head).to(training.device_of(encoder))

    def loss(batch: Tensor) -> Tensor:
        z = model(torch.cat([views(batch), views(batch)]))                              # (2B, D)
        return losses.info_nce(*z.chunk(2), temperature=temperature)

    found = training.train(model, loss, images, epochs=epochs, batch_size=batch_size, warmup=warmup,
                           optimizer=optimizer(model.parameters(), lr=lr), callback=callback, checkpoint=checkpoint)
    return model, found
