"""GOAD: transform an image in many ways, learn features in which each way has a cluster, and see who misses his own.

M transformations T_m are fixed. A network f learns from normal images that each T_m(x) lies near the centre c_m of all
images transformed alike, and farther, by a margin s, from the other centres:

    L = Σ max(0, |f(T_m x) − c_m|² + s − min over m' ≠ m of |f(T_m x) − c_m'|²)      c_m the means over the batch

beside a cross entropy on a linear layer that names the transformation. An image is anomalous if its transformed copies
do not find their own clusters:

    P(m'|T_m x) = (exp(−|f(T_m x) − c_m'|²) + ε) / Σ (… + ε)            A(x) = −Σ_m log P(m|T_m x)

Distances, unlike a softmax of logits, make points that are far from all clusters uncertain and not arbitrarily sure.
Centres of the score come from a fresh pass over the training images (the authors' code averages them while the weights
still change). For rows of numbers the transformations are random matrices, `TabularGOAD`.

Bergman and Hoshen, "Classification-Based Anomaly Detection for General Data", 2020.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adlearn import augment, checks, runtime, training
from adlearn.data.folder import as_images
from adlearn.detector import Trained
from adlearn.neighbors import StateSized
from adlearn.nets import encoder_of, width


def centre_triplet(features: Tensor, margin: float) -> Tensor:
    """The loss above for features (M, B, D) of B images under M transformations, a mean over all M·B."""
    centres = features.mean(1)                                                          # (M, D), with gradient
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


def _to_centres(features: Tensor, centres: Tensor) -> Tensor:
    """Squared distances of features (M, B, D) to centres (M, D): (M, B, M)."""
    lengths = features.square().sum(2, keepdim=True) + centres.square().sum(1)
    return (lengths - 2 * features @ centres.T).clamp(min=0)


def objective(features: Tensor, logits: Tensor, *, margin: float, weight: float, decay: float = 0.0) -> Tensor:
    """Cross entropy + weight · centre-triplet + decay · mean square, of features (M, B, D) and logits (M, B, M)."""
    truth = torch.arange(len(logits), device=logits.device).repeat_interleave(logits.shape[1])
    value = F.cross_entropy(logits.flatten(0, 1), truth) + weight * centre_triplet(features, margin)
    return value + decay * features.square().mean() if decay else value


class GOAD(Trained):
    """Geometric transformations of images and a cluster for each.

    Args:
        shift: "rotations" (four), "geometric" (the paper's 72: mirrored, moved, turned) or a function, images
            (B, C, H, W) to (K·B, C, H, W), the images as they are first; see `augment.shift_of`.
        encoder: "small", "resnet18", "wide_resnet_10_4" (the paper's), or a network of one's own with `dim`, which is
            copied; None leaves it to the profile.
        margin: s.
        weight: λ, of the centre-triplet loss against the cross entropy.
        epsilon: ε.

    Attributes:
        centres_: (K, D).
    """

    training_steps: ClassVar = {"quick": 400, "gpu": 5000, "paper": 20_000}             # 16 epochs of 1,250 batches

    def __init__(self, *, shift: str | Callable[[Tensor], Tensor] = "rotations", encoder: str | nn.Module | None = None,
                 margin: float = 0.1, weight: float = 0.1, epsilon: float = 1e-6):
        super().__init__()
        augment.shift_of(shift)
        self.shift = shift
        self.encoder = runtime.pick(quick="small", gpu="wide_resnet_10_4") if encoder is None else encoder
        self.margin, self.weight = checks.within(margin, 0, 1e6, "margin"), checks.within(weight, 0, 1e6, "weight")
        self.epsilon = checks.within(epsilon, 0, 1, "epsilon")
        self.register_buffer("centres_", torch.empty(0))

    def build(self, channels: int, side: int) -> None:
        copies = len(augment.shift_of(self.shift)(torch.zeros(1, channels, side, side)))
        self.net = encoder_of(self.encoder, channels)
        self.linear = nn.Linear(width(self.net), copies)

    def fit(self, images, *, epochs: int | None = None, batch_size: int = 16, lr: float = 1e-3,
            callback: Callable[[int, Self], None] | None = None) -> Self:
        """Learn from normal images, square, two of them or more; all copies of an image share its batch.

        Args:
            epochs: None takes as many as give the profile's number of steps.
            batch_size: of images, each of which becomes K copies; the paper has 4 for its 72.
            callback: called with (epoch, detector) after each epoch and, with 0, before the first step.
        """
        images = as_images(images)[:]
        new = self.afresh(images)

        def loss(batch: Tensor) -> Tensor:
            features = new.copies(batch)                                                # (K, B, D)
            return objective(features, new.linear(features), margin=self.margin, weight=self.weight, decay=10.0)

        training.train(new, loss, images, epochs=self.epochs(epochs, len(images), batch_size, self.training_steps),
                       batch_size=batch_size, lr=lr, history=new.losses_,
                       callback=callback and (lambda epoch, _: callback(epoch, new.see(images))))
        return self.take(new.see(images))

    def see(self, images: Tensor, *, batch_size: int = 64) -> Self:
        """Set the centres from images, in evaluation mode."""
        where = self.shape_.device
        found = training.collect(lambda batch: self.eval().copies(batch).transpose(0, 1), images,
                                 batch_size=batch_size, device=where)                   # (N, K, D)
        self.centres_ = found.mean(0).to(where)
        return self

    def copies(self, images: Tensor) -> Tensor:
        """f of all transformed copies of images, (K, B, D)."""
        return self.net(augment.shift_of(self.shift)(images)).float().unflatten(0, (-1, len(images)))

    def embed(self, images: Tensor) -> Tensor:
        """f(x) of the images as they are, (B, D)."""
        return self.net(self.fitting(images))

    def anomaly_score(self, images: Tensor) -> Tensor:
        """−Σ_m log P(m|T_m x)."""
        squares = _to_centres(self.copies(self.fitting(images)), self.centres_)         # (K, B, K)
        return -log_probability(squares, self.epsilon).sum(0)


class TabularGOAD(StateSized):
    """GOAD for rows of numbers (B, F): the transformations are random and affine, x W_m + b_m, of normal numbers.

    The network is one for all m, layers of 1 × 1 convolutions along m. The defaults are the authors' for small sets; a
    single run varies much, their tables average 500. Their code leaves b_m out, though their paper has it. Without b_m
    a linear network has all its clusters in one place if the columns of the rows have mean 0, as standardised ones do.

    Args:
        transforms: M.
        dim: numbers that a row is mapped to; the paper's r.
        width: of the features.
        layers: 1 is a linear network; with more, leaky ReLU of slope 0.2 between them.
        shifted: with b_m.
        margin, weight, epsilon: see `GOAD`; ε is 0 in the authors' code. Above 0 it makes far rows as uncertain as a
            guess, which is still more than a network that has not learnt the near ones gives these.

    Attributes:
        losses_: one number an epoch.
    """

    def __init__(self, *, transforms: int = 256, dim: int = 32, width: int = 8, layers: int = 1, shifted: bool = True,
                 margin: float = 1.0, weight: float = 0.1, epsilon: float = 0.0):
        super().__init__()
        for name, value in (("transforms", transforms), ("dim", dim), ("width", width), ("layers", layers)):
            checks.positive_int(value, name, 2 if name == "transforms" else 1)
        self.margin, self.weight = checks.within(margin, 0, 1e6, "margin"), checks.within(weight, 0, 1e6, "weight")
        self.epsilon, self.dim, self.shifted = checks.within(epsilon, 0, 1, "epsilon"), dim, shifted
        self.losses_: list[float] = []
        parts: list[nn.Module] = []
        for before in [dim] + [width] * (layers - 1):
            parts += [nn.Linear(before, width, bias=False), nn.LeakyReLU(0.2)]
        self.net = nn.Sequential(*parts[:-1])
        self.linear = nn.Sequential(nn.LeakyReLU(0.2), nn.Linear(width, transforms))
        for name in ("matrices_", "offsets_", "centres_"):
            self.register_buffer(name, torch.empty(0))

    def fit(self, rows: Tensor, *, epochs: int = 1, batch_size: int = 64, lr: float = 1e-3,
            callback: Callable[[int, nn.Module], None] | None = None) -> Self:
        """Learn from normal rows (N, F), whose columns should be of like scale."""
        rows, M = checks.rows(rows).float().to(self.matrices_.device), self.linear[1].out_features
        self.matrices_ = torch.randn(M, rows.shape[1], self.dim).to(rows)
        self.offsets_ = (torch.randn if self.shifted else torch.zeros)(M, 1, self.dim).to(rows)

        def loss(batch: Tensor) -> Tensor:
            features = self.copies(batch)
            return objective(features, self.linear(features), margin=self.margin, weight=self.weight)

        training.train(self, loss, rows, epochs=epochs, batch_size=batch_size, callback=callback, history=self.losses_,
                       optimizer=torch.optim.Adam(self.parameters(), lr=lr, betas=(0.5, 0.999)))
        with torch.no_grad():
            self.centres_ = self.copies(rows).mean(1)                                   # (M, width)
        return self

    def copies(self, rows: Tensor) -> Tensor:
        """f of all transformed copies of rows, (M, B, width)."""
        return self.net(rows @ self.matrices_ + self.offsets_)

    @torch.no_grad()
    def score(self, rows: Tensor) -> Tensor:
        """−Σ_m log P(m|W_m x) of rows (B, F), (B,) on the CPU."""
        self.check_fitted()
        rows = checks.rows(rows, width=self.matrices_.shape[1]).to(self.matrices_)
        squares = [_to_centres(self.copies(batch), self.centres_) for batch in rows.split(256)]        # (M, b, M) each
        return torch.cat([-log_probability(part, self.epsilon).sum(0) for part in squares]).cpu()
