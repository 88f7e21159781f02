"""Two stages: teach a network on a pretext task with normal images, then fit a simple one-class rule to its features.

Stage one is self-supervised. `learn_rotations` predicts by how many quarter turns an image was rotated.
`learn_contrast` tells an image's two random views from those of the other images in the batch; with distribution
augmentation, rotated copies are images of their own, with their own two views:

    rotation        cross entropy of g(f(rot_k x)) against k
    contrast        −log exp(u_i·v_i / τ) / Σ_j exp(u_i·v_j / τ)        u, v unit rows of g(f(view)), B × B logits

Contrast spreads features over the whole sphere, which leaves no room for anomalies; the copies take up a part of it, so
that the images as they are concentrate. Small batches and a deep head g spread less, too.

Stage two throws the head away and fits a density, or a one-class SVM, to the unit features f(x) / |f(x)| of the normal
images.

Departures: outside of the paper profile Adam instead of SGD, and in the quick one a less deep head; the Gaussian is
shrunk as `density.Gaussian` does it.

Sohn, Li, Yoon, Jin and Pfister, "Learning and Evaluating Representations for Deep One-class Classification", 2021.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adlearn import augment, checks, density, losses, runtime, training
from adlearn.data.folder import as_images
from adlearn.detector import Trained
from adlearn.methods.simclr import SimCLR
from adlearn.nets import ProjectionHead, encoder_of, width

PRETEXTS = ("rotation", "contrastive", "augmented", "none")
VIEWS = augment.Compose(augment.RandomResizedCrop(), augment.ColorJitter(0.4, 0.4, 0.4, 0.4, p=0.8),
                        augment.RandomGrey(), augment.RandomGaussianBlur())         # mirrored before the shift
CLASSIFIERS = {"kde": density.KDE, "ocsvm": density.OneClassSVM, "gaussian": density.Gaussian}
SGD = partial(torch.optim.SGD, momentum=0.9, weight_decay=3e-4)             # the paper's, at a rate of 0.01


def learn_rotations(
    encoder: nn.Module,
    images: Tensor,
    *,
    views: Callable[[Tensor], Tensor] | None = None,
    layers: int = 9,
    epochs: int,
    batch_size: int = 64,
    lr: float = 1e-3,
    optimizer: Callable[..., torch.optim.Optimizer] = training.Adam,
    callback: Callable[[int, nn.Module], None] | None = None,
    history: list[float] | None = None,
) -> tuple[SimCLR, list[float]]:
    """Train `encoder` to tell by how many quarter turns an image was rotated; returns it with its head, and the losses.

    All four copies of an image travel in one batch.

    Args:
        encoder: images to features (B, encoder.dim).
        images: (N, C, S, S) in [0, 1].
        views: draws a view of each rotated image; None is the paper's recipe, `VIEWS` of images mirrored or not.
        layers: of the head; the paper's has eight hidden ones.
        optimizer: called with parameters and ``lr=``; `SGD` is the paper's.
        epochs, batch_size, lr, callback, history: see `training.train`.
    """
    images = checks.images(images)
    model, view = _with_head(encoder, out=4, layers=layers), augment.views_of_shifts("rotations", views, recipe=VIEWS)

    def loss(batch: Tensor) -> Tensor:
        turns = torch.arange(4, device=batch.device).repeat_interleave(len(batch))      # (4B,)
        return F.cross_entropy(model(view(batch)), turns)

    return model, training.train(model, loss, images, epochs=epochs, batch_size=batch_size, callback=callback,
                                 optimizer=optimizer(model.parameters(), lr=lr), history=history)


def learn_contrast(
    encoder: nn.Module,
    images: Tensor,
    *,
    shift: str | Callable[[Tensor], Tensor] | None = None,
    views: Callable[[Tensor], Tensor] | None = None,
    layers: int = 9,
    temperature: float = 0.2,
    epochs: int,
    batch_size: int = 32,
    lr: float = 1e-3,
    optimizer: Callable[..., torch.optim.Optimizer] = training.Adam,
    callback: Callable[[int, nn.Module], None] | None = None,
    history: list[float] | None = None,
) -> tuple[SimCLR, list[float]]:
    """Train `encoder` to recognise images in a second view; returns it with its head, and the losses.

    Args:
        shift: the distribution's augmentation: "rotations" or another one of `augment.shift_of`, whose copies become
            images of their own, K·B in a batch; None leaves the images as they are.
        views: draws a view of each copy; None is the paper's recipe, see `learn_rotations`. A view must not
            undo the shift.
        temperature: τ; `losses.info_nce_one_way` is the official loss, one direction and without negatives from the
            same view.
        encoder, images, layers, optimizer, …: see `learn_rotations`.
    """
    images = checks.images(images)
    model, view = _with_head(encoder, out=128, layers=layers), augment.views_of_shifts(shift, views, recipe=VIEWS)

    def loss(batch: Tensor) -> Tensor:
        u, v = model(view(torch.cat([batch, batch]))).unflatten(0, (-1, 2, len(batch))).unbind(1)      # (K, B, 128)
        return losses.info_nce_one_way(u.flatten(0, 1), v.flatten(0, 1), temperature=temperature)

    return model, training.train(model, loss, images, epochs=epochs, batch_size=batch_size, callback=callback,
                                 optimizer=optimizer(model.parameters(), lr=lr), history=history)


def _with_head(encoder: nn.Module, *, out: int, layers: int) -> SimCLR:
    """With batch norm in a head of several hidden layers, which would hardly train without it."""
    head = ProjectionHead(width(encoder), out=out, layers=layers, norm=layers > 2)
    return SimCLR(encoder, head=head).to(training.device_of(encoder))


class TwoStage(Trained):
    """A self-supervised encoder and a shallow one-class rule on its unit features.

    Args:
        pretext: "rotation", "contrastive", "augmented" (contrastive with shifted copies as images of their own), or
            "none" for an encoder of one's own that has already learnt.
        classifier: "kde", "ocsvm" or "gaussian"; see `adlearn.density`.
        encoder: "small", "resnet18" (the paper's), or a network of one's own with `dim`, which is copied and trained
            from the weights it has; None leaves it to the profile.
        shift: of "augmented"; see `learn_contrast`.
        views: of the pretext tasks; see `learn_contrast`.

    Attributes:
        rule: the fitted classifier.
    """

    training_steps: ClassVar = {"quick": 600, "gpu": 10_000, "paper": 320_000}  # of 32 images: 2,048 epochs of 5,000
    batch_sizes: ClassVar = {"rotation": 64, "contrastive": 32, "augmented": 32}
    layers: ClassVar = {"quick": 3, "gpu": 9, "paper": 9}                               # of the head

    def __init__(self, *, pretext: str = "augmented", classifier: str = "kde", encoder: str | nn.Module | None = None,
                 shift: str | Callable[[Tensor], Tensor] = "rotations",
                 views: Callable[[Tensor], Tensor] | None = None):
        super().__init__()
        self.pretext = checks.choice(pretext, PRETEXTS, "pretext")
        self.classifier = checks.choice(classifier, CLASSIFIERS, "classifier")
        if pretext == "none" and not isinstance(encoder, nn.Module):
            raise ValueError(f"encoder must be a trained network where pretext is 'none', got {encoder!r}")
        self.keep_encoder(runtime.pick(quick="small", gpu="resnet18") if encoder is None else encoder)
        if shift is None:
            raise ValueError("shift must be a shift, got None: pretext='contrastive' learns without one")
        augment.shift_of(shift)
        self.shift, self.views = shift, views
        self.rule = CLASSIFIERS[classifier]()

    def build(self, channels: int, side: int) -> None:
        if self.pretext == "augmented":
            augment.count_of(self.shift, channels, side, minimum=2)
        self.net = encoder_of(self.encoder, channels, side)

    def fit(self, images, *, epochs: int | None = None, batch_size: int | None = None, lr: float | None = None,
            callback: Callable[[int, Self], None] | None = None) -> Self:
        """Learn from normal images, square, two of them or more; both stages.

        Args:
            epochs, lr: None leaves them to the profile. Nothing is trained where `pretext` is "none".
            batch_size: None is the paper's, 32 for contrast and 64 for rotation.
            callback: called with (epoch, detector) after each epoch of the first stage and, with 0, before it; the
                second stage is then fitted to the features of that moment.

        Raises:
            ValueError: images that are too few or not square; an encoder or a shift that does not suit them; features
                that are all equal.
        """
        images = as_images(images)[:]
        new = self.afresh(images)
        if self.pretext != "none":
            batch_size = self.batch_sizes[self.pretext] if batch_size is None else batch_size
            settings = {
                "views": self.views, "layers": runtime.pick(**self.layers), "batch_size": batch_size,
                "epochs": self.epochs(epochs, len(images), 32, self.training_steps),
                "lr": runtime.pick(quick=1e-3, gpu=1e-3, paper=1e-2) if lr is None else lr,
                "optimizer": runtime.pick(quick=training.Adam, gpu=training.Adam, paper=SGD),
                "history": new.losses_,
                "callback": callback and (lambda epoch, _: callback(epoch, new.remember(images)))}
            if self.pretext == "rotation":
                learn_rotations(new.net, images, **settings)
            else:
                learn_contrast(new.net, images, shift=self.shift if self.pretext == "augmented" else None, **settings)
        return self.take(new.remember(images))

    def remember(self, images, *, batch_size: int = 256) -> Self:
        """The second stage alone: fit the rule to the features of normal images; a threshold is forgotten."""
        self.trained().rule.fit(training.collect(self.embed, images, batch_size=batch_size, device=self.shape_.device))
        return self.fitted()

    def embed(self, images: Tensor) -> Tensor:
        """Unit features of the encoder, below the head, (B, dim)."""
        return F.normalize(self.net(self.fitting(images)).float(), dim=1)

    def anomaly_score(self, images: Tensor) -> Tensor:
        return self.rule.score(self.embed(images))
