"""GOAD: transform an image in many ways, learn features in which each way has a cluster, and see who misses his own.

M transformations T_m are fixed. A network f learns from normal images that each T_m(x) lies near the centre c_m of all
images transformed alike, and farther, by a margin s, from the other centres:

    L_tc = mean of max(0, |f(T_m x) − c_m|² + s − min over m' ≠ m of |f(T_m x) − c_m'|²)      c_m means over the batch
    L    = cross entropy of m + λ L_tc + 10 · mean of f²

where the cross entropy is that of a linear layer on f. An image is anomalous if its transformed copies
do not find their own clusters:

    P(m'|T_m x) = (exp(−|f(T_m x) − c_m'|²) + ε) / Σ (… + ε)            A(x) = −Σ_m log P(m|T_m x)

Without ε that is a softmax of linear functions of f, arbitrarily sure of points far from all clusters; ε makes them
uncertain.
Centres of the score come from a fresh pass over the training images (the authors' code averages them while the weights
still change). For rows of numbers the transformations are random matrices, `TabularGOAD`.

Departures: outside of the paper profile four rotations instead of 72 transformations, larger batches, and a rate that
falls along a cosine.

Bergman and Hoshen, "Classification-Based Anomaly Detection for General Data", 2020.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adlearn import augment, checks, runtime, training
from adlearn.data.folder import as_images
from adlearn.detector import Trained
from adlearn.losses import full_precision
from adlearn.neighbors import StateSized
from adlearn.nets import encoder_of, width

SQUARES = 10.0                                  # weight of the mean square of the features of images
AT_ONCE = 1024                                  # copies in one pass where nothing is learnt


@full_precision()
def centre_triplet(features: Tensor, margin: float) -> Tensor:
    """The loss above for features (M, B, D) of B images under M transformations, a mean over all M·B."""
    centres = features.float().mean(1)                                                  # (M, D), with gradient
    squares = _to_centres(features, centres)                                            # (M, B, M)
    own = squares.diagonal(dim1=0, dim2=2).T                                            # (M, B)
    itself = torch.eye(len(centres), dtype=torch.bool, device=features.device)[:, None]
    nearest = squares.masked_fill(itself, torch.inf).amin(2)                            # (M, B)
    return (own + margin - nearest).clamp(min=0).mean()


def log_probability(squares: Tensor, epsilon: float) -> Tensor:
    """log P(m|T_m x), (M, B), of squared distances to all centres (M, B, M)."""
    own = squares.diagonal(dim1=0, dim2=2).T                                            # (M, B)
    if epsilon == 0:
        return -own - (-squares).logsumexp(2)
    return (own.neg().exp() + epsilon).log() - ((-squares).exp().sum(2) + squares.shape[2] * epsilon).log()


@full_precision()
def _to_centres(features: Tensor, centres: Tensor) -> Tensor:
    """Squared distances of features (M, B, D) to centres (M, D): (M, B, M)."""
    features, centres = features.float(), centres.float()
    lengths = features.square().sum(2, keepdim=True) + centres.square().sum(1)
    return (lengths - 2 * features @ centres.T).clamp(min=0)


def goad_loss(features: Tensor, logits: Tensor, *, margin: float, weight: float, squares: float = 0.0) -> Tensor:
    """Cross entropy + weight · centre-triplet + squares · mean square, of features (M, B, D) and logits (M, B, M)."""
    truth = torch.arange(len(logits), device=logits.device).repeat_interleave(logits.shape[1])
    value = F.cross_entropy(logits.flatten(0, 1), truth) + weight * centre_triplet(features, margin)
    return value + squares * features.square().mean() if squares else value


class GOAD(Trained):
    """Geometric transformations of images and a cluster for each.

    Args:
        shift: "rotations" (four), "geometric" (the paper's 72: mirrored, moved, turned) or a function, images
            (B, C, H, W) to (K·B, C, H, W), the images as they are first, see `augment.shift_of`; None leaves it to the
            profile.
        encoder: "small", "resnet18", "wide_resnet_10_4" (the paper's), or a network of one's own with `dim`, which is
            copied; None leaves it to the profile.
        margin: s.
        weight: λ, of the centre-triplet loss against the cross entropy.
        epsilon: ε.

    Attributes:
        centres_: (K, D).
    """

    training_steps: ClassVar = {"quick": 400, "gpu": 5000, "paper": 20_000}             # 16 epochs of 1,250 batches
    batch_sizes: ClassVar = {"quick": 16, "gpu": 16, "paper": 4}

    def __init__(self, *, shift: str | Callable[[Tensor], Tensor] | None = None,
                 encoder: str | nn.Module | None = None, margin: float = 0.1, weight: float = 0.1,
                 epsilon: float = 1e-6):
        super().__init__()
        self.shift = runtime.pick(quick="rotations", gpu="rotations", paper="geometric") if shift is None else shift
        augment.shift_of(self.shift)
        self.keep_encoder(runtime.pick(quick="small", gpu="wide_resnet_10_4") if encoder is None else encoder)
        self.margin, self.weight = checks.within(margin, 0, 1e6, "margin"), checks.within(weight, 0, 1e6, "weight")
        self.epsilon = checks.within(epsilon, 0, 1, "epsilon")
        self.register_buffer("centres_", torch.empty(0))

    def build(self, channels: int, side: int) -> None:
        self.net = encoder_of(self.encoder, channels, side)
        self.linear = nn.Linear(width(self.net), augment.count_of(self.shift, channels, side, minimum=2))

    def fit(self, images, *, epochs: int | None = None, batch_size: int | None = None, lr: float = 1e-3,
            callback: Callable[[int, Self], None] | None = None) -> Self:
        """Learn from normal images, square, two of them or more; all copies of an image share its batch.

        Args:
            epochs, batch_size: None leaves them to the profile. Each image of a batch becomes K copies.
            callback: called with (epoch, detector) after each epoch and, with 0, before the first step; the detector
                can score, for which it looks at all images once more.

        Raises:
            ValueError: images that are too few or not square; an encoder or a shift that does not suit them.
        """
        images = as_images(images)[:]
        new = self.afresh(images)
        batch_size = runtime.pick(**self.batch_sizes) if batch_size is None else batch_size

        def loss(batch: Tensor) -> Tensor:
            features = new.copies(batch)                                                # (K, B, D)
            return goad_loss(features, new.linear(features), margin=self.margin, weight=self.weight, squares=SQUARES)

        training.train(new, loss, images, epochs=self.epochs(epochs, len(images), batch_size, self.training_steps),
                       batch_size=batch_size, lr=lr, cosine=runtime.profile() != "paper", history=new.losses_,
                       callback=callback and (lambda epoch, _: callback(epoch, new.remember(images))))
        return self.take(new.remember(images))

    def remember(self, images, *, batch_size: int = 64) -> Self:
        """The second stage alone: set the centres from normal images; a threshold is forgotten."""
        where, images = self.trained().shape_.device, as_images(images)[:]
        sums = training.collect(lambda batch: self.copies(self.fitting(batch)).sum(1)[None], images,
                                batch_size=batch_size, device=where)                    # (batches, K, D)
        self.centres_ = (sums.sum(0) / len(images)).to(where)
        return self.fitted()

    def copies(self, images: Tensor) -> Tensor:
        """f of all transformed copies of images, (K, B, D)."""
        copies = 2 * augment.shift_of(self.shift)(images) - 1                           # (K·B, C, S, S), −1 to 1
        parts = [copies] if self.training else copies.split(AT_ONCE)
        return torch.cat([self.net(part) for part in parts]).float().unflatten(0, (-1, len(images)))

    def embed(self, images: Tensor) -> Tensor:
        """f(x) of the images as they are, (B, D)."""
        return self.net(2 * self.fitting(images) - 1)

    def anomaly_score(self, images: Tensor) -> Tensor:
        """−Σ_m log P(m|T_m x)."""
        squares = _to_centres(self.copies(self.fitting(images)), self.centres_)         # (K, B, K)
        return -log_probability(squares, self.epsilon).sum(0)


class TabularGOAD(StateSized):
    """GOAD for rows of numbers (B, F): the transformations are random and affine, x W_m + b_m, of normal numbers.

    The network is one for all m, layers of 1 × 1 convolutions along m. The defaults are the authors' for small sets; a
    single run varies much, their tables average 500. Their code leaves b_m out, though their paper has it. Without b_m
    a linear network has all its clusters in one place if the columns of the rows have mean 0, as standardised ones do.
    With it the score of a linear network orders such rows almost as their lengths do, trained or not.

    Args:
        transforms: M.
        dim: numbers that a row is mapped to; the paper's r.
        width: of the features.
        layers: 1 is a linear network; with more, leaky ReLU of slope 0.2 between them.
        shifted: with b_m.
        margin, weight, epsilon: see `GOAD`; ε is 0 in the authors' code. Above 0 it gives far rows the score of
            a guess, which near rows exceed unless they are at their own centres.

    It has `fit` and `score` only: thresholds, files and folders are for images.

    Attributes:
        losses_: one number an epoch.
        matrices_, offsets_: W, (M, F, dim), and b, (M, 1, dim).
        centres_: (M, width).
    """

    def __init__(self, *, transforms: int = 256, dim: int = 32, width: int = 8, layers: int = 1, shifted: bool = True,
                 margin: float = 1.0, weight: float = 0.1, epsilon: float = 0.0):
        super().__init__()
        self.transforms, self.dim = checks.positive_int(transforms, "transforms", 2), checks.positive_int(dim, "dim")
        self.width, self.layers = checks.positive_int(width, "width"), checks.positive_int(layers, "layers")
        self.margin, self.weight = checks.within(margin, 0, 1e6, "margin"), checks.within(weight, 0, 1e6, "weight")
        self.epsilon, self.shifted = checks.within(epsilon, 0, 1, "epsilon"), shifted
        self.losses_: list[float] = []
        self._build()
        for name in ("matrices_", "offsets_", "centres_"):
            self.register_buffer(name, torch.empty(0))

    def _build(self) -> None:
        parts: list[nn.Module] = []
        for before in [self.dim] + [self.width] * (self.layers - 1):
            parts += [nn.Linear(before, self.width, bias=False), nn.LeakyReLU(0.2)]
        self.net = nn.Sequential(*parts[:-1])
        self.linear = nn.Sequential(nn.LeakyReLU(0.2), nn.Linear(self.width, self.transforms))

    def fit(self, rows: Tensor, *, epochs: int = 1, batch_size: int = 64, lr: float = 1e-3,
            callback: Callable[[int, Self], None] | None = None) -> Self:
        """Learn from normal rows (N, F), two or more, whose columns should be of like scale.

        Args:
            epochs, batch_size, lr: Adam with β₁ = 0.5 at a constant rate.
            callback: called with (epoch, detector) after each epoch and, with 0, before the first step. This detector
                is a new one, which can score; the one that is fitted becomes it at the end.

        Raises:
            ValueError: rows that are no finite numbers, or too few.
        """
        rows = checks.rows(rows).float().to(self.matrices_.device)
        if len(rows) < 2:
            raise ValueError(f"rows must be at least 2 to learn from, got {len(rows)}")
        new = copy.deepcopy(self)
        new._build()
        new.to(rows.device)
        new.matrices_ = torch.randn(self.transforms, rows.shape[1], self.dim).to(rows)
        new.offsets_ = (torch.randn if self.shifted else torch.zeros)(self.transforms, 1, self.dim).to(rows)

        def loss(batch: Tensor) -> Tensor:
            features = new.copies(batch)
            return goad_loss(features, new.linear(features), margin=self.margin, weight=self.weight)

        training.train(new, loss, rows, epochs=epochs, batch_size=batch_size, history=new.losses_, cosine=False,
                       optimizer=training.Adam(new.parameters(), lr=lr, betas=(0.5, 0.999)),
                       callback=callback and (lambda epoch, _: callback(epoch, new._remember(rows))))
        self.__dict__.update(new._remember(rows).__dict__)
        return self

    @torch.no_grad()
    def _remember(self, rows: Tensor) -> Self:
        """Set the centres, (M, width)."""
        self.centres_ = sum(self.copies(batch).sum(1) for batch in rows.split(256)) / len(rows)
        return self.eval()

    def copies(self, rows: Tensor) -> Tensor:
        """f of all transformed copies of rows, (M, B, width)."""
        return self.net(rows @ self.matrices_ + self.offsets_).float()

    @torch.no_grad()
    def score(self, rows: Tensor) -> Tensor:
        """−Σ_m log P(m|W_m x) of rows (B, F), (B,) on the CPU."""
        self.check_fitted()
        rows = checks.rows(rows, width=self.matrices_.shape[1]).to(self.matrices_)
        squares = [_to_centres(self.copies(batch), self.centres_) for batch in rows.split(256)]        # (M, b, M) each
        return torch.cat([-log_probability(part, self.epsilon).sum(0) for part in squares]).cpu()
