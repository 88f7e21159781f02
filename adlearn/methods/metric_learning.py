"""Metric learning: an encoder whose distances mean "same class", alone or beside a classifier's cross entropy.

An encoder f maps an image to a vector; a loss compares the vectors of a batch by their labels (`adlearn.losses`). What
turns a loss into a method is the batch, which must hold several images of each of several classes:

    draw P classes, K images of each   →   z = f(x), (P·K, D)   →   loss(z, labels)

Schroff, Kalenichenko and Philbin, "FaceNet", 2015 (triplets); Sohn, "Improved Deep Metric Learning with Multi-class
N-pair Loss Objective", 2016 (N-pair); Khosla et al., "Supervised Contrastive Learning", 2020 (SupCon).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adlearn import checks, losses, training
from adlearn.nets import ProjectionHead, width
from adlearn.training import ClassBatches


def learn_metric(
    encoder: nn.Module,
    images: Tensor,
    labels: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    epochs: int,
    classes: int | None = None,
    per_class: int = 8,
    lr: float = 1e-3,
    augment: Callable[[Tensor], Tensor] | None = None,
    callback: Callable[[int, nn.Module], None] | None = None,
) -> list[float]:
    """Train `encoder` so that `loss(z, labels)` falls; returns the mean loss of each epoch.

    Args:
        encoder: images (B, C, H, W) to embeddings z (B, D); ends in evaluation mode.
        images: (N, C, H, W) in [0, 1].
        labels: (N,) whole numbers from 0.
        loss: of `losses`: `supcon`, `batch_all_triplet`, `semi_hard_triplet`, `random_triplet`, `n_pair_of_classes`
            (with `per_class=2`); or your own.
        classes, per_class: P and K of each batch; `classes=None` takes all.
        augment: applied to each batch, e.g. `adlearn.augment.simclr()`.
        callback: see `training.train`.

    Raises:
        ValueError: labels that do not hold P classes of K images; what the loss refuses.
    """
    images = checks.images(images)
    labels = checks.classes(labels, len(images))

    def value(batch: Tensor, truth: Tensor) -> Tensor:
        return loss(encoder(batch if augment is None else augment(batch)), truth)

    batches = ClassBatches(labels, classes=classes, per_class=per_class)
    return training.train(encoder, value, images, labels, epochs=epochs, batches=batches, lr=lr, callback=callback)


class Classifier(nn.Module):
    """An encoder with a linear layer: images (B, C, H, W) to logits (B, classes); `embed` gives h (B, dim).

    Args:
        encoder: images to features (B, encoder.dim).
        classes: how many.
    """

    def __init__(self, encoder: nn.Module, classes: int):
        super().__init__()
        self.encoder = encoder
        self.linear = nn.Linear(width(encoder), checks.positive_int(classes, "classes", 2))

    def embed(self, images: Tensor) -> Tensor:
        return self.encoder(images)                                                     # (B, dim)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(self.embed(images))                                          # (B, classes)


CONTRASTS = ("triplet", "simclr")


def learn_classes(
    encoder: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    contrast: str | None = None,
    weight: float = 1.0,
    augment: Callable[[Tensor], Tensor],
    epochs: int,
    batch_size: int = 128,
    lr: float = 1e-3,
    callback: Callable[[int, nn.Module], None] | None = None,
) -> tuple[Classifier, list[float]]:
    """Train a classifier by cross entropy, alone or with a contrastive loss beside it: CE + weight · contrast.

    Each image is seen in two views whatever the loss, so that the arms of a comparison have the same work and data.

    Args:
        encoder: images to features (B, encoder.dim).
        images, labels: (N, C, H, W) in [0, 1] and (N,) whole numbers from 0.
        contrast: None; "triplet", the semi-hard loss on the features of both views, which trusts the labels; or
            "simclr", InfoNCE between the two views through a projection head, which does not look at them.
        weight: of the contrastive loss.
        augment: draws a view of each image of a batch.
        epochs, batch_size, lr, callback: see `training.train`.

    Returns:
        The classifier, in evaluation mode, and the mean loss of each epoch.

    Raises:
        ValueError: images outside [0, 1]; labels that do not fit; an unknown `contrast`; an encoder without `dim`.
    """
    images = checks.images(images)
    labels = checks.classes(labels, len(images))
    if contrast is not None:
        checks.choice(contrast, CONTRASTS, "contrast")
    checks.between(weight, 0, 1e6, "weight")
    where = training.device_of(encoder)
    classifier = Classifier(encoder, int(labels.max()) + 1).to(where)
    head = ProjectionHead(width(encoder)).to(where) if contrast == "simclr" else nn.Identity()

    def loss(batch: Tensor, truth: Tensor) -> Tensor:
        h = classifier.embed(torch.cat([augment(batch), augment(batch)]))               # (2B, dim)
        value = F.cross_entropy(classifier.linear(h), truth.repeat(2))
        if contrast == "triplet" and (truth != truth[0]).any():        # a small last batch may hold one class only
            value = value + weight * losses.semi_hard_triplet(h, truth.repeat(2))
        elif contrast == "simclr":
            value = value + weight * losses.info_nce(*head(h).chunk(2))
        return value

    both = nn.ModuleList([classifier, head])
    watch = None if callback is None else lambda epoch, _: callback(epoch, classifier)
    return classifier, training.train(both, loss, images, labels, epochs=epochs, batch_size=batch_size, lr=lr,
                                      callback=watch)
